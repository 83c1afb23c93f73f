//! A running answer: items of the request plane in, deltas of text out.

use std::{
    task::{Context, Poll, ready},
    time::Instant,
};

use dynamo_engine_api::{CompletionUsage, EngineOutput, FinishReason, StopReason, decode_output};
use dynamo_runtime::{
    Client, Incarnation,
    request_plane::{ResponseStream, StreamError, StreamProgress},
};
use dynamo_text::{OutputDecoder, Stopped};

use crate::{
    Delta, GenerateError, Generation, Progress, dispatch::Accepted, model::Prefilled, router::Booking,
};

/// The code of a worker's failure that is the request's own fault.
const INVALID_REQUEST: u16 = 400;

/// An answer that a worker is generating.
pub(crate) struct RoutedGeneration {
    stream: ResponseStream,
    client: Client,
    /// Who answers.
    incarnation: Incarnation,
    /// Who computed the prompt, if it was another one, and its rank.
    prefill: Option<(u64, u32)>,
    decoded: DecodedOutput,
    /// Frees the worker's reservation when the answer ends, whatever the way.
    booking: Booking,
    ended: bool,
}

/// The part that turns engine outputs into deltas; separate from the stream so that both can be borrowed at once.
struct DecodedOutput {
    decoder: OutputDecoder,
    output: EngineOutput,
    text: String,
    usage: CompletionUsage,
    /// Set when nothing more is to be shown.
    closed: Option<Closed>,
    /// Whether the engine itself said that it is done, so that the stream's end is near.
    engine_ended: bool,
    /// Whether another worker computed the prompt: what this one found of it says nothing of caches.
    is_prefilled: bool,
}

enum Closed {
    Finished,
    Failed(GenerateError),
}

impl RoutedGeneration {
    pub(crate) fn new(
        client: Client,
        accepted: Accepted,
        decoder: OutputDecoder,
        prompt_tokens: u32,
        prefilled: Option<Prefilled>,
    ) -> Self {
        let Accepted { stream, incarnation, booking } = accepted;
        let details = prefilled.as_ref().and_then(|prefilled| prefilled.details).unwrap_or_default();
        let usage = CompletionUsage {
            prompt_tokens,
            total_tokens: prompt_tokens,
            prompt_tokens_details: Some(details),
            ..CompletionUsage::default()
        };
        let decoded = DecodedOutput {
            decoder,
            output: EngineOutput::default(),
            text: String::with_capacity(64),
            usage,
            closed: None,
            engine_ended: false,
            is_prefilled: prefilled.is_some(),
        };
        let prefill = prefilled.map(|prefilled| (prefilled.worker.worker_id, prefilled.worker.dp_rank));
        Self { stream, client, incarnation, prefill, decoded, booking, ended: false }
    }
}

impl Generation for RoutedGeneration {
    fn poll_deltas(&mut self, cx: &mut Context<'_>, each: &mut dyn FnMut(Delta<'_>)) -> Poll<Progress> {
        if self.ended {
            return Poll::Ready(Progress::End);
        }
        let before = self.decoded.usage.completion_tokens;
        let decoded = &mut self.decoded;
        let progress = ready!(self.stream.poll_items(cx, &mut |item| decoded.show(item, each)));
        if progress == StreamProgress::More {
            let tokens = self.decoded.usage.completion_tokens - before;
            self.booking.on_progress(tokens as usize, Instant::now());
        }
        if self.decoded.engine_ended {
            // The end mostly comes with the last item. A stream that was not seen to end is cancelled when it goes.
            let _ = self.stream.poll_items(cx, &mut |_| {});
        }
        let progress = match (self.decoded.closed.take(), progress) {
            (Some(Closed::Finished), _) => Progress::End,
            (Some(Closed::Failed(error)), _) => Progress::Failed(error),
            (None, StreamProgress::More) => return Poll::Ready(Progress::More),
            (None, StreamProgress::End) => Progress::Failed(GenerateError::WorkerLost),
            (None, StreamProgress::Failed(error)) => {
                if error == StreamError::Disconnected {
                    self.client.report_lost(self.incarnation);
                }
                Progress::Failed(stream_error(error))
            }
        };
        self.ended = true;
        self.booking.release();
        Poll::Ready(progress)
    }

    fn usage(&self) -> CompletionUsage {
        self.decoded.usage
    }

    fn worker(&self) -> Option<(u64, u32)> {
        Some(self.booking.worker())
    }

    fn prefill_worker(&self) -> Option<(u64, u32)> {
        self.prefill.or_else(|| self.worker())
    }
}

impl DecodedOutput {
    fn show(&mut self, item: &[u8], each: &mut dyn FnMut(Delta<'_>)) {
        if self.closed.is_some() {
            return;
        }
        if let Err(error) = decode_output(item, &mut self.output) {
            self.closed = Some(Closed::Failed(GenerateError::Internal(error.to_string())));
            return;
        }
        if let Some(usage) = self.output.completion_usage
            && usage.prompt_tokens_details.is_some()
            && !self.is_prefilled
        {
            self.usage.prompt_tokens_details = usage.prompt_tokens_details;
        }
        self.engine_ended |= self.output.finish_reason.is_some();
        let index = self.output.index.unwrap_or(0);
        for position in 0..self.output.token_ids.len() {
            self.usage.completion_tokens += 1;
            self.usage.total_tokens += 1;
            self.text.clear();
            let stopped = self.decoder.push(self.output.token_ids[position], &mut self.text);
            let (finish_reason, stop_reason) = stopped.map_or((None, None), ended_by);
            let finished = finish_reason.is_some();
            each(Delta { index, text: &self.text, tokens: 1, finish_reason, stop_reason });
            if finished {
                self.closed = Some(Closed::Finished);
                return;
            }
        }
        let Some(reason) = self.output.finish_reason.take() else { return };
        self.closed = Some(match reason {
            FinishReason::Cancelled => Closed::Failed(GenerateError::Cancelled),
            FinishReason::Error(message) => Closed::Failed(GenerateError::Engine(message)),
            reason => {
                self.text.clear();
                let (finish_reason, stop_reason) = match self.decoder.finish(&mut self.text) {
                    Some(stopped) => ended_by(stopped),
                    None => (Some(reason), self.output.stop_reason.take()),
                };
                each(Delta { index, text: &self.text, tokens: 0, finish_reason, stop_reason });
                Closed::Finished
            }
        });
    }
}

fn ended_by(stopped: Stopped) -> (Option<FinishReason>, Option<StopReason>) {
    match stopped {
        Stopped::Eos => (Some(FinishReason::Eos), None),
        Stopped::StopToken(token) => (Some(FinishReason::Stop), Some(StopReason::Token(token))),
        Stopped::StopString(text) => (Some(FinishReason::Stop), Some(StopReason::Text(text))),
    }
}

/// What a client is told of a stream that broke off.
pub(crate) fn stream_error(error: StreamError) -> GenerateError {
    match error {
        StreamError::Overloaded(_) => GenerateError::Overloaded,
        StreamError::DeadlineExceeded => GenerateError::DeadlineExceeded,
        StreamError::SlowReader => GenerateError::SlowReader,
        StreamError::Cancelled(_) => GenerateError::Cancelled,
        StreamError::TooLarge(message) => GenerateError::Invalid { param: Some("messages"), message },
        StreamError::Application { code: INVALID_REQUEST, message } => {
            GenerateError::Invalid { param: None, message }
        }
        StreamError::Application { code: crate::UNKNOWN_ADAPTER, .. } => GenerateError::NoWorkers,
        StreamError::Application { code, message } => {
            GenerateError::Engine(format!("{message} (code {code})"))
        }
        _ => GenerateError::WorkerLost,
    }
}

#[cfg(test)]
mod tests;
