//! Asks an engine for batches again. The question is two frames, nothing and the first number wanted; each answer three,
//! nothing, number and payload; the last has the number `u64::MAX` and no payload.

use std::{
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    time::Instant,
};

use dynamo_kv_router::{END_OF_REPLAY, ReplayCheck, ReplayFailure};
use zmq::{Context, Message, POLLIN, Socket};

use super::run::{MAX_FRAME, receive};

/// Answers at most: ten times what engines keep by default.
const MAX_ANSWERS: usize = 100_000;

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) address: &'a str,
    pub(super) from: u64,
    /// The last number that is needed; none for whatever there is.
    pub(super) to: Option<u64>,
    pub(super) deadline: Instant,
}

/// Calls `each` with every batch that comes, in the order in which they come.
pub(super) fn replay(
    context: &Context,
    stopped: &UnixStream,
    asked: &Asked<'_>,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), ReplayFailure> {
    // One socket a question: what comes late is for nobody.
    let socket = ask(context, asked).map_err(|_| ReplayFailure::Timeout)?;
    let mut check = ReplayCheck::new(asked.from, asked.to.unwrap_or(0));
    for _ in 0..MAX_ANSWERS {
        wait(&socket, stopped, asked.deadline)?;
        let mut frames: [Message; 3] = std::array::from_fn(|_| Message::new());
        let count = receive(&socket, &mut frames).map_err(|_| ReplayFailure::Malformed)?;
        let [_, number, payload] = &frames;
        let Ok(number) = <[u8; 8]>::try_from(&**number) else { return Err(ReplayFailure::Malformed) };
        if count != frames.len() {
            return Err(ReplayFailure::Malformed);
        }
        let number = u64::from_be_bytes(number);
        if number == END_OF_REPLAY && payload.is_empty() {
            return check.ended();
        }
        check.came(number);
        each(number, payload);
    }
    Err(ReplayFailure::EndedBeforeTarget)
}

fn ask(context: &Context, asked: &Asked<'_>) -> zmq::Result<Socket> {
    let socket = context.socket(zmq::DEALER)?;
    socket.set_linger(0)?;
    socket.set_maxmsgsize(MAX_FRAME)?;
    socket.set_ipv6(asked.address.starts_with("tcp://["))?;
    socket.connect(asked.address)?;
    socket.send_multipart([&[][..], &asked.from.to_be_bytes()], zmq::DONTWAIT)?;
    Ok(socket)
}

fn wait(socket: &Socket, stopped: &UnixStream, deadline: Instant) -> Result<(), ReplayFailure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut items = [zmq::PollItem::from_fd(stopped.as_raw_fd(), POLLIN), socket.as_poll_item(POLLIN)];
        // Seconds at most; rounded up, so that it does not spin in the last millisecond.
        let ready = zmq::poll(&mut items, left.as_millis() as i64 + 1);
        if items[1].is_readable() {
            return Ok(());
        }
        let stops = items[0].is_readable() || items[0].is_error();
        if stops || left.is_zero() || !matches!(ready, Ok(_) | Err(zmq::Error::EINTR)) {
            return Err(ReplayFailure::Timeout);
        }
    }
}
