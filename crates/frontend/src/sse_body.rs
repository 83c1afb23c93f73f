//! The body of a streamed answer: polls the generation and splices each delta into a prepared chunk.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Bytes;
use bytes::BytesMut;
use dynamo_llm::{GenerateError, Generation, Progress};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    answer::{AnswerShape, Ending},
    api_error::ApiError,
    chat::{log_failure, outcome_of},
    metrics::{Outcome, RequestTracker},
    request_id::RequestId,
    sse_frame::{ChunkFrames, push_annotation, push_done, push_error},
    stall::Connection,
};

/// Bytes after which a frame is handed on although there is more to take: what a connection holds for a client that
/// reads slowly is a few of these.
pub(crate) const FRAME_BYTES: usize = 16 << 10;
/// Polls of the generation before others get their turn: more than a full frame's tokens.
const MAX_POLLS: usize = 128;
/// What a stream starts with: a few chunks, so that ten thousand quiet streams need little.
const FIRST_CAPACITY: usize = 1 << 10;
/// Bytes of a frame over which its room is not kept: a client that was slow once needs it once.
const LARGEST_KEPT: usize = 4 * FRAME_BYTES;
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// One stream. Dropping it cancels the request.
pub(crate) struct SseBody {
    /// None once the stream has ended.
    generation: Option<Box<dyn Generation>>,
    frames: ChunkFrames,
    /// Written frames are split off; when the connection has sent them, their room is used again.
    buffer: BytesMut,
    /// Takes turns with `buffer` while full frames wait to be sent.
    spare: BytesMut,
    ending: Ending,
    shape: AnswerShape,
    tracker: RequestTracker,
    connection: Connection,
    keep_alive: Option<KeepAlive>,
    /// Whether a full frame was handed on, which is to be sent before more is made: so its room can be used again.
    full: bool,
}

impl SseBody {
    pub(crate) fn new(
        generation: Box<dyn Generation>,
        shape: AnswerShape,
        tracker: RequestTracker,
        connection: Connection,
        keep_alive: Option<Duration>,
    ) -> Self {
        Self {
            generation: Some(generation),
            frames: ChunkFrames::new(&shape.id, shape.created, &shape.model.info().id),
            buffer: BytesMut::with_capacity(FIRST_CAPACITY),
            spare: BytesMut::new(),
            ending: Ending::default(),
            shape,
            tracker,
            connection,
            keep_alive: keep_alive.map(KeepAlive::new),
            full: false,
        }
    }

    /// Puts an annotation before everything else.
    pub(crate) fn annotate(&mut self, name: &str, value: &str) {
        push_annotation(&mut self.buffer, name, value);
    }

    fn take_frame(&mut self) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.last_frame = Instant::now();
        }
        let frame = self.buffer.split().freeze();
        if frame.len() > LARGEST_KEPT {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    /// Room for a full frame at once, if possible where the last one but one was.
    fn make_room(&mut self) {
        let room = FRAME_BYTES + FIRST_CAPACITY;
        if !self.buffer.try_reclaim(room) {
            std::mem::swap(&mut self.buffer, &mut self.spare);
            self.buffer.reserve(room);
        }
    }

    fn end(&mut self, generation: &dyn Generation) {
        match self.ending.resolve() {
            Err(error) => self.fail(error),
            Ok((word, stop)) => {
                let usage = generation.usage();
                let nvext = self.shape.extra.answer(generation, usage, &self.tracker, stop);
                self.frames.push_finish(&mut self.buffer, word, nvext.as_ref());
                if self.shape.include_usage {
                    self.frames.push_usage(&mut self.buffer, usage);
                }
                push_done(&mut self.buffer);
                self.tracker.usage(usage, generation);
                self.tracker.end(Outcome::Success);
            }
        }
    }

    fn fail(&mut self, error: GenerateError) {
        log_failure(&RequestId(self.shape.id.clone()), &error);
        let outcome = outcome_of(&error);
        let error = ApiError::from_generate(&error, self.shape.overload_status);
        push_error(&mut self.buffer, error.stream_error());
        push_done(&mut self.buffer);
        self.tracker.end(outcome);
    }
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.full) {
            this.make_room();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        for _ in 0..MAX_POLLS {
            let Some(generation) = &mut this.generation else { return Poll::Ready(None) };
            let Self { frames, buffer, ending, .. } = this;
            let mut tokens = 0;
            let polled = generation.poll_deltas(cx, &mut |delta| {
                tokens += delta.tokens;
                if !delta.text.is_empty() {
                    buffer.reserve(frames.overhead() + delta.text.len());
                    frames.push_text(buffer, delta.text);
                }
                ending.note(delta);
            });
            this.tracker.tokens(tokens);
            match polled {
                Poll::Ready(Progress::More) if this.buffer.len() < FRAME_BYTES => continue,
                Poll::Ready(Progress::More) => {
                    this.full = true;
                    return this.take_frame();
                }
                Poll::Pending if this.buffer.is_empty() => return this.poll_keep_alive(cx),
                Poll::Pending => return this.take_frame(),
                Poll::Ready(last) => {
                    if let Some(generation) = this.generation.take() {
                        match last {
                            Progress::Failed(error) if !this.ending.is_complete() => this.fail(error),
                            _ => this.end(&*generation),
                        }
                    }
                    return this.take_frame();
                }
            }
        }
        if this.buffer.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.full = true;
        this.take_frame()
    }

    fn is_end_stream(&self) -> bool {
        self.generation.is_none()
    }
}

impl SseBody {
    fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(keep_alive) = &mut self.keep_alive else { return Poll::Pending };
        ready!(keep_alive.poll_due(cx));
        self.buffer.extend_from_slice(KEEP_ALIVE);
        self.take_frame()
    }
}

impl Drop for SseBody {
    fn drop(&mut self) {
        if self.generation.is_some() {
            let why = if self.connection.is_stalled() { "it read too slowly" } else { "it left" };
            tracing::debug!(
                request_id = %self.shape.id,
                tokens = self.tracker.count(),
                "client lost before the end of its stream: {why}"
            );
        }
    }
}

/// When a comment is due. The timer is not touched per frame: when it fires, it looks at when the last frame was.
struct KeepAlive {
    every: Duration,
    last_frame: Instant,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    fn new(every: Duration) -> Self {
        Self { every, last_frame: Instant::now(), timer: Box::pin(sleep(every)) }
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.last_frame + self.every;
            let now = Instant::now();
            self.timer.as_mut().reset(if due > now { due } else { now + self.every });
            if due <= now {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}
