//! The thread that holds a simulated engine's sockets.

use std::{
    collections::VecDeque,
    io::Read as _,
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    sync::atomic::Ordering,
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::END_OF_REPLAY;
use zmq::{Context, DONTWAIT, POLLIN, PollItem, Socket};

use super::{EngineWireError, Outgoing, Shared, WirePorts};
use crate::EngineEndpoint;

/// Batches kept for replays, as many as vLLM keeps by default, and their bytes.
const KEPT_BATCHES: usize = 10_000;
const KEPT_BYTES: usize = 64 << 20;
/// Messages that libzmq may hold per peer: a whole replay and more.
const HIGH_WATER_MARK: i32 = 100_000;
/// How long a closed socket may take to send what it holds, in ms.
const LINGER_MS: i32 = 200;

/// The sockets of one rank.
pub(super) struct RankSockets {
    pub(super) endpoint: EngineEndpoint,
    events: Socket,
    replay: Socket,
    kept: VecDeque<(u64, Vec<u8>)>,
    kept_bytes: usize,
}

pub(super) fn bind(
    host: IpAddr,
    ports: WirePorts,
    ranks: DpRank,
) -> Result<Vec<RankSockets>, EngineWireError> {
    let context = Context::new();
    (0..ranks)
        .map(|rank| {
            let (events, address) = socket(&context, zmq::PUB, host, port(ports.events, rank, ranks)?)?;
            let (replay, replay_address) =
                socket(&context, zmq::ROUTER, host, port(ports.replay, rank, ranks)?)?;
            let endpoint =
                EngineEndpoint { events: address, topic: String::new(), replay: Some(replay_address) };
            Ok(RankSockets { endpoint, events, replay, kept: VecDeque::new(), kept_bytes: 0 })
        })
        .collect()
}

/// `None` is any free one.
fn port(base: u16, rank: DpRank, ranks: DpRank) -> Result<Option<u16>, EngineWireError> {
    if base == 0 {
        return Ok(None);
    }
    let port = u16::try_from(rank).ok().and_then(|rank| base.checked_add(rank));
    port.map(Some).ok_or(EngineWireError::Ports { base, ranks })
}

fn socket(
    context: &Context,
    kind: zmq::SocketType,
    host: IpAddr,
    port: Option<u16>,
) -> Result<(Socket, String), EngineWireError> {
    let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
    let address = match port {
        Some(port) => format!("tcp://{host}:{port}"),
        None => format!("tcp://{host}:*"),
    };
    let bound = || {
        let socket = context.socket(kind)?;
        socket.set_sndhwm(HIGH_WATER_MARK)?;
        socket.set_linger(LINGER_MS)?;
        socket.set_ipv6(host.starts_with('['))?;
        socket.bind(&address)?;
        let bound = socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)?;
        Ok((socket, bound))
    };
    bound().map_err(|reason| EngineWireError::Bind { address: address.clone(), reason })
}

/// Runs until the engine is dropped.
pub(super) fn run(shared: &Shared, mut ranks: Vec<RankSockets>, mut woken: UnixStream) {
    let mut batches = Vec::new();
    loop {
        let closed = {
            let mut queue = shared.queue.lock();
            std::mem::swap(&mut queue.outgoing, &mut batches);
            queue.closed
        };
        for batch in batches.drain(..) {
            ranks[batch.rank].publish(batch);
        }
        if closed {
            return;
        }
        let mut items = vec![PollItem::from_fd(woken.as_raw_fd(), POLLIN)];
        items.extend(ranks.iter().map(|rank| rank.replay.as_poll_item(POLLIN)));
        // libzmq sees subscribers come and go while it is waited on.
        items.extend(ranks.iter().map(|rank| rank.events.as_poll_item(POLLIN)));
        if let Err(error) = zmq::poll(&mut items, -1)
            && error != zmq::Error::EINTR
        {
            tracing::error!(%error, "the simulated engine's KV event socket failed");
            return;
        }
        let asked: Vec<bool> = items[1..=ranks.len()].iter().map(PollItem::is_readable).collect();
        if items[0].is_readable() {
            let mut bytes = [0; 64];
            while woken.read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
            // Before the queue is looked at: what is added later writes another byte.
            shared.awake.store(false, Ordering::SeqCst);
        }
        for (rank, _) in ranks.iter().zip(asked).filter(|(_, asked)| *asked) {
            rank.answer();
        }
    }
}

impl RankSockets {
    fn publish(&mut self, batch: Outgoing) {
        let Outgoing { number, payload, .. } = batch;
        // Fails only when the context is gone; a PUB socket drops what nobody takes.
        let _ = self.events.send_multipart([&[][..], &number.to_be_bytes(), &payload], DONTWAIT);
        self.kept_bytes += payload.len();
        self.kept.push_back((number, payload));
        while self.kept.len() > KEPT_BATCHES || self.kept_bytes > KEPT_BYTES {
            let Some((_, oldest)) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.len();
        }
    }

    /// Gives out again what was asked for: a peer, nothing, the first number wanted.
    fn answer(&self) {
        let Ok(question) = self.replay.recv_multipart(DONTWAIT) else { return };
        let [peer, _, first] = &question[..] else { return };
        let Ok(first) = <[u8; 8]>::try_from(&first[..]).map(u64::from_be_bytes) else { return };
        let send = |number: u64, payload: &[u8]| {
            // To a peer that is gone it goes nowhere.
            let _ = self.replay.send_multipart([&peer[..], &[], &number.to_be_bytes(), payload], DONTWAIT);
        };
        for (number, payload) in self.kept.iter().filter(|(number, _)| *number >= first) {
            send(*number, payload);
        }
        send(END_OF_REPLAY, &[]);
    }
}
