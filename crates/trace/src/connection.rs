//! One connection: writes a request, reads the answer, and keeps the time.
//!
//! A read costs one system call, one look at the clock and one pass over its bytes. The read buffer is shared by all
//! connections of a thread, so ten thousand open streams hold no buffers.

use std::{
    cell::RefCell,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    failure::{Failure, FailureKind},
    http1::ResponseParser,
    meter::{Meter, Served},
    sse::EventScanner,
};

/// Bytes of one read: some hundred events.
const READ_BYTES: usize = 64 << 10;
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an error's body is kept.
const MAX_ERROR_BYTES: usize = 400;
/// The largest body of a plain answer (`/v1/models`).
const MAX_PLAIN_BYTES: usize = 4 << 20;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A connection with the buffers of the request it carries.
pub(crate) struct Connection {
    stream: TcpStream,
    parser: ResponseParser,
    scanner: EventScanner,
    error_body: Vec<u8>,
    /// The request; filled by the caller.
    pub(crate) out: Vec<u8>,
    /// Scratch space for the request's body.
    pub(crate) body: Vec<u8>,
    used: bool,
}

/// When things happened to the request in flight.
struct Clock {
    /// The last text, or the start before there is any.
    last: Instant,
    any: bool,
    end: Instant,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, want_worker: bool) -> Result<Self, Failure> {
        let fail = |why: String| Failure::new(FailureKind::Connect, why);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| fail(format!("{address} did not accept within {CONNECT_TIMEOUT:?}")))?
            .map_err(|e| fail(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            stream,
            parser: ResponseParser::default(),
            scanner: EventScanner::new(want_worker),
            error_body: Vec::new(),
            out: Vec::new(),
            body: Vec::new(),
            used: false,
        })
    }

    /// Whether it carried a request before.
    pub(crate) fn is_used(&self) -> bool {
        self.used
    }

    /// Whether the server lets it carry another.
    pub(crate) fn is_reusable(&self) -> bool {
        self.parser.keeps_alive()
    }

    /// Sends what is in `out` and reads the stream to its end; times count from `origin`. `opened` is called at the head
    /// of a good answer.
    pub(crate) async fn exchange(
        &mut self,
        meter: &Meter,
        origin: Instant,
        mut opened: impl FnMut(),
    ) -> Result<Served, Failure> {
        let used = std::mem::replace(&mut self.used, true);
        self.parser.reset();
        self.scanner.reset();
        self.error_body.clear();
        if let Err(error) = self.stream.write_all(&self.out).await {
            return Err(Failure { stale: used, ..Failure::new(FailureKind::Send, error.to_string()) });
        }
        let mut clock = Clock { last: origin, any: false, end: origin };
        let mut was_opened = false;
        while !self.parser.is_done() {
            let read = std::future::poll_fn(|cx| self.poll_read(cx, meter, &mut clock)).await;
            // An idle connection that the server closes ends quietly or with a reset, as the race goes.
            let stale = used && !self.parser.has_started();
            let read = read.map_err(|failure| Failure { stale, ..failure })?;
            if !was_opened && self.parser.status() == 200 {
                was_opened = true;
                opened();
            }
            if read == 0 && !self.parser.end_of_input() {
                let message = "the connection ended before the answer was complete";
                return Err(Failure { stale, ..Failure::new(FailureKind::Cut, message) });
            }
        }
        self.outcome(clock.end)
    }

    fn outcome(&mut self, end: Instant) -> Result<Served, Failure> {
        let status = self.parser.status();
        if status != 200 {
            let body = String::from_utf8_lossy(&self.error_body);
            return Err(Failure::new(FailureKind::Status(status), body.trim()));
        }
        if let Some(error) = self.scanner.error.take() {
            return Err(Failure::new(FailureKind::ErrorEvent, error));
        }
        if !self.scanner.done {
            return Err(Failure::new(FailureKind::Cut, "the stream ended without [DONE]"));
        }
        let usage = self.scanner.usage().ok_or_else(|| {
            let why = "the last event has no usage; the server must honour stream_options.include_usage";
            Failure::new(FailureKind::NoUsage, why)
        })?;
        let (worker, content_events) = (self.scanner.worker, self.scanner.content_events);
        Ok(Served { usage, worker, content_events, end })
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        meter: &Meter,
        clock: &mut Clock,
    ) -> Poll<Result<usize, Failure>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                return Poll::Ready(Err(Failure::new(FailureKind::Cut, error.to_string())));
            }
            let now = Instant::now();
            clock.end = now;
            let (events, content) = (self.scanner.events, self.scanner.content_events);
            let (scanner, error_body) = (&mut self.scanner, &mut self.error_body);
            let parsed = self.parser.feed(buffer.filled(), |status, bytes| {
                if status == 200 {
                    scanner.feed(bytes);
                } else {
                    let room = MAX_ERROR_BYTES - error_body.len().min(MAX_ERROR_BYTES);
                    error_body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
            });
            let content = self.scanner.content_events - content;
            let events = self.scanner.events - events;
            if events > 0 {
                meter.read(events, content, now - clock.last, !clock.any);
            }
            if content > 0 {
                (clock.last, clock.any) = (now, true);
            }
            parsed.map_err(|e| Failure::new(FailureKind::Protocol, e.to_string()))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Sends a plain request and returns status and body.
    pub(crate) async fn fetch(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>), Failure> {
        let fail = |e: std::io::Error| Failure::new(FailureKind::Cut, e.to_string());
        self.used = true;
        self.parser.reset();
        self.stream.write_all(request).await.map_err(fail)?;
        let mut answer = Vec::new();
        while !self.parser.is_done() {
            let parser = &mut self.parser;
            let stream = &mut self.stream;
            let read = std::future::poll_fn(|cx| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buffer = ReadBuf::new(scratch);
                    ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).map_err(fail)?;
                    let parsed = parser.feed(buffer.filled(), |_, bytes| answer.extend_from_slice(bytes));
                    parsed.map_err(|e| Failure::new(FailureKind::Protocol, e.to_string()))?;
                    Poll::Ready(Ok::<_, Failure>(buffer.filled().len()))
                })
            })
            .await?;
            if answer.len() > MAX_PLAIN_BYTES {
                return Err(Failure::new(FailureKind::Protocol, "the answer is over 4 MiB"));
            }
            if read == 0 && !self.parser.end_of_input() {
                return Err(Failure::new(
                    FailureKind::Cut,
                    "the connection ended before the answer was complete",
                ));
            }
        }
        Ok((self.parser.status(), answer))
    }
}
