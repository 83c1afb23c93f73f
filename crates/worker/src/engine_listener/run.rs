//! The listener's thread.

use std::{
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    time::{Duration, Instant},
};

use dynamo_kv_router::{BatchArrival, EngineSequence, ReplayFailure};
use zmq::{Context, DONTWAIT, Message, POLLIN, Socket};

use super::{EngineBatches, EngineEndpoint, ListenerError, SourceMetrics, replay};

/// Messages that libzmq may hold, as the ecosystem sets it.
const HIGH_WATER_MARK: i32 = 100_000;
/// The largest frame that is taken: a step that stores a million tokens has some ten MiB.
pub(super) const MAX_FRAME: i64 = 32 << 20;
/// Between attempts to reach the engine, in ms; grows from the first to the second.
const RECONNECT_MS: (i32, i32) = (100, 5_000);
/// A silent peer is asked for a sign of life, and given up after, in ms.
const HEARTBEAT_MS: (i32, i32) = (10_000, 30_000);
/// After so long without a message since the start, somebody is told.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the first replay may take, for which nothing waits but live messages, and a later one, which fills a gap.
const FIRST_REPLAY: Duration = Duration::from_secs(2);
const REPLAY: Duration = Duration::from_secs(10);

/// Frames of a batch.
const FRAMES: usize = 3;

pub(super) struct Listening<B> {
    endpoint: EngineEndpoint,
    context: Context,
    socket: Socket,
    stopped: UnixStream,
    sequence: EngineSequence,
    batches: B,
    metrics: SourceMetrics,
    /// Defects are logged once; further ones are only counted.
    warned: bool,
}

impl<B: EngineBatches> Listening<B> {
    pub(super) fn new(
        endpoint: EngineEndpoint,
        batches: B,
        metrics: SourceMetrics,
        stopped: UnixStream,
    ) -> Result<Self, ListenerError> {
        let context = Context::new();
        let made = subscribed(&context, &endpoint);
        let socket =
            made.map_err(|reason| ListenerError::Address { address: endpoint.events.clone(), reason })?;
        let sequence = EngineSequence::new();
        Ok(Self { endpoint, context, socket, stopped, sequence, batches, metrics, warned: false })
    }

    pub(super) fn run(mut self) {
        let silence = Instant::now() + SILENCE;
        let mut heard = false;
        // What the engine cached before this process was there.
        if self.endpoint.replay.is_some() {
            let (taken, result) = self.replay(0, None, FIRST_REPLAY);
            heard = taken > 0;
            // An engine that is not up yet, or that has nothing: no defect.
            if let Err(failure) = result
                && !matches!(failure, ReplayFailure::Timeout | ReplayFailure::Empty)
            {
                self.metrics.replay_failed(failure);
            }
        }
        let mut told = false;
        loop {
            let wait = if heard || told {
                -1
            } else {
                // At most a minute.
                silence.saturating_duration_since(Instant::now()).as_millis() as i64 + 1
            };
            let mut items =
                [zmq::PollItem::from_fd(self.stopped.as_raw_fd(), POLLIN), self.socket.as_poll_item(POLLIN)];
            match zmq::poll(&mut items, wait) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => {
                    tracing::error!(endpoint = self.endpoint.events, %error, "listening to the engine failed");
                    return;
                }
            }
            if items[0].is_readable() || items[0].is_error() {
                return;
            }
            if items[1].is_readable() && self.receive() {
                heard = true;
                self.metrics.silent.set(0);
            }
            if !heard && !told && Instant::now() >= silence {
                told = true;
                self.metrics.silent.set(1);
                self.batches.silent();
            }
        }
    }

    /// Takes a message; whether it was a batch.
    fn receive(&mut self) -> bool {
        let mut frames: [Message; FRAMES] = std::array::from_fn(|_| Message::new());
        match receive(&self.socket, &mut frames) {
            Ok(FRAMES) => {}
            Ok(count) => {
                self.metrics.bad_frames.inc();
                self.warn_once(format_args!("it has {count} frames in place of {FRAMES}"));
                return false;
            }
            Err(_) => return false,
        }
        let [_, number, payload] = &frames;
        let Ok(number) = <[u8; 8]>::try_from(&**number) else {
            self.metrics.bad_number.inc();
            self.warn_once(format_args!("its number has {} bytes in place of 8", number.len()));
            return false;
        };
        self.live(u64::from_be_bytes(number), payload);
        true
    }

    fn live(&mut self, number: u64, payload: &[u8]) {
        match self.sequence.look(number) {
            BatchArrival::Duplicate => return,
            BatchArrival::Next => {}
            BatchArrival::Gap { from } => self.fill(from, number),
            BatchArrival::Restart => {
                tracing::info!(endpoint = self.endpoint.events, "the engine counts its KV events anew");
                self.metrics.restarts.inc();
                self.batches.restarted();
                if number > 0 {
                    self.fill(0, number);
                }
            }
        }
        // A replay may have brought it, and more.
        if number >= self.sequence.next() {
            self.metrics.batches.inc();
            self.batches.batch(number, payload);
            self.sequence.took(number);
        }
    }

    /// Gets the batches from `from` to before `number`.
    fn fill(&mut self, from: u64, number: u64) {
        let (mut taken, mut why) = (0, None);
        if self.endpoint.replay.is_some() {
            let (came, result) = self.replay(from, Some(number - 1), REPLAY);
            taken = came;
            why = result.err();
            if let Some(failure) = why {
                self.metrics.replay_failed(failure);
            }
        }
        let lost = (number - from).saturating_sub(taken);
        if lost > 0 {
            self.metrics.lost.inc_by(lost);
            self.batches.lost(lost, why);
        }
    }

    /// Hands over what a replay brings; how many batches of those that are needed that were.
    fn replay(&mut self, from: u64, to: Option<u64>, patience: Duration) -> (u64, Result<(), ReplayFailure>) {
        let Self { sequence, batches, metrics, endpoint, context, stopped, .. } = self;
        let Some(address) = &endpoint.replay else { return (0, Ok(())) };
        let mut taken = 0;
        let asked = replay::Asked { address, from, to, deadline: Instant::now() + patience };
        let result = replay::replay(context, stopped, &asked, |number, payload| {
            if sequence.took_replayed(number) {
                metrics.batches.inc();
                metrics.replayed.inc();
                batches.batch(number, payload);
                taken += u64::from(to.is_none_or(|to| number <= to));
            }
        });
        (taken, result)
    }

    fn warn_once(&mut self, defect: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                endpoint = self.endpoint.events,
                "a message of the engine is no batch of KV events: {defect}; further ones are only counted"
            );
        }
    }
}

fn subscribed(context: &Context, endpoint: &EngineEndpoint) -> zmq::Result<Socket> {
    let socket = context.socket(zmq::SUB)?;
    socket.set_rcvhwm(HIGH_WATER_MARK)?;
    socket.set_linger(0)?;
    socket.set_maxmsgsize(MAX_FRAME)?;
    socket.set_reconnect_ivl(RECONNECT_MS.0)?;
    socket.set_reconnect_ivl_max(RECONNECT_MS.1)?;
    socket.set_heartbeat_ivl(HEARTBEAT_MS.0)?;
    socket.set_heartbeat_timeout(HEARTBEAT_MS.1)?;
    socket.set_ipv6(endpoint.events.starts_with("tcp://["))?;
    socket.set_subscribe(endpoint.topic.as_bytes())?;
    socket.connect(&endpoint.events)?;
    Ok(socket)
}

/// Receives one message; returns how many frames it had. Only the first ones are kept.
pub(super) fn receive<const N: usize>(socket: &Socket, frames: &mut [Message; N]) -> zmq::Result<usize> {
    let mut count = 0;
    let mut surplus = Message::new();
    loop {
        let frame = frames.get_mut(count).unwrap_or(&mut surplus);
        socket.recv(frame, DONTWAIT)?;
        let more = frame.get_more();
        count += 1;
        if !more {
            return Ok(count);
        }
    }
}
