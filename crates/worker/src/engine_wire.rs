//! The socket of a simulated engine: it publishes KV events as vLLM does, so that what listens to real engines is
//! exercised end to end.

use std::{
    io::Write as _,
    net::IpAddr,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use dynamo_engine_api::{ActiveLoad, DpRank, EngineObserver, KvCacheEventData};
use dynamo_kv_router::{WireEvent, WireForm, write_batch};
use dynamo_tokens::TokenId;
use parking_lot::Mutex;

use crate::{EngineEndpoint, LoadedAdapters};

mod sockets;

/// Batches on their way to the socket's thread at most: seconds of a busy engine. Past it a batch is lost, as with an
/// engine whose socket is full; its number is not used again, so listeners see the gap.
const MAX_OUTGOING: usize = 16_384;

/// Where a simulated engine publishes: the ports of its first rank, the others follow. 0 is any free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WirePorts {
    /// For events.
    pub events: u16,
    /// For replays.
    pub replay: u16,
}

/// Why a simulated engine has no socket.
#[derive(Debug, thiserror::Error)]
pub enum EngineWireError {
    /// A port is taken, or none of this machine.
    #[error("cannot publish KV events on {address}: {reason}; give other --zmq-kv-events-ports")]
    Bind {
        /// As tried.
        address: String,
        /// What libzmq says.
        reason: zmq::Error,
    },
    /// More ranks than there are ports.
    #[error("port {base} and {ranks} ranks: there are not so many ports")]
    Ports {
        /// The first.
        base: u16,
        /// How many.
        ranks: u32,
    },
    /// No thread could be made.
    #[error("cannot publish KV events: {0}")]
    Start(#[from] std::io::Error),
}

/// Publishes what a simulated engine caches on its own sockets, one pair a rank. Dropping it closes them.
pub struct EngineWire {
    shared: Arc<Shared>,
    endpoints: Vec<EngineEndpoint>,
    block_size: u32,
    /// By these the adapters of blocks are found out: the engine tells of hashes alone.
    adapters: Arc<LoadedAdapters>,
    /// Who is told of the load.
    load: Arc<dyn EngineObserver>,
}

/// A batch of a rank, with its number.
struct Outgoing {
    rank: usize,
    number: u64,
    payload: Vec<u8>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// One byte here ends the thread's wait.
    wake: UnixStream,
    /// A byte is on its way: another would say nothing new.
    awake: AtomicBool,
}

#[derive(Default)]
struct Queue {
    outgoing: Vec<Outgoing>,
    /// By rank.
    next_numbers: Vec<u64>,
    closed: bool,
}

impl EngineWire {
    /// Binds to ports of `host` for each rank of an engine with such blocks.
    pub fn start(
        host: IpAddr,
        ports: WirePorts,
        ranks: DpRank,
        block_size: u32,
        adapters: Arc<LoadedAdapters>,
        load: Arc<dyn EngineObserver>,
    ) -> Result<Self, EngineWireError> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let bound = sockets::bind(host, ports, ranks)?;
        let endpoints = bound.iter().map(|rank| rank.endpoint.clone()).collect();
        let queue = Queue { next_numbers: vec![0; ranks as usize], ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), wake, awake: AtomicBool::new(false) });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("engine-wire".to_owned())
            .spawn(move || sockets::run(&of_thread, bound, woken))?;
        Ok(Self { shared, endpoints, block_size, adapters, load })
    }

    /// Where each rank publishes.
    pub fn endpoints(&self) -> &[EngineEndpoint] {
        &self.endpoints
    }
}

impl Shared {
    fn wake(&self) {
        if !self.awake.swap(true, Ordering::SeqCst) {
            // Full means that a byte is there; a closed end, that the thread is gone.
            let _ = (&self.wake).write(&[0]);
        }
    }
}

impl EngineObserver for EngineWire {
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        self.kv_events_with_tokens(dp_rank, events, &[]);
    }

    fn wants_tokens(&self) -> bool {
        true
    }

    fn kv_events_with_tokens(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>, tokens: &[TokenId]) {
        let rank = dp_rank as usize;
        let payload = self.encode(dp_rank, &events, tokens);
        {
            let mut queue = self.shared.queue.lock();
            let Some(next) = queue.next_numbers.get_mut(rank) else { return };
            let number = *next;
            *next += 1;
            if queue.outgoing.len() >= MAX_OUTGOING {
                return;
            }
            queue.outgoing.push(Outgoing { rank, number, payload });
        }
        self.shared.wake();
    }

    fn load(&self, load: ActiveLoad) {
        self.load.load(load);
    }
}

impl Drop for EngineWire {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake();
    }
}

impl EngineWire {
    /// The batch that says the same as `events`.
    fn encode(&self, dp_rank: DpRank, events: &[KvCacheEventData], mut tokens: &[TokenId]) -> Vec<u8> {
        let block_size = self.block_size;
        // One event is of one sequence, so that its first block speaks for all.
        let mut names = Vec::with_capacity(events.len());
        let mut rest = tokens;
        for event in events {
            let KvCacheEventData::Stored { blocks, .. } = event else {
                names.push(None);
                continue;
            };
            let (own, after) = rest.split_at(rest.len().min(blocks.len() * block_size as usize));
            rest = after;
            let first = own.get(..block_size as usize).zip(blocks.first());
            names.push(first.and_then(|(tokens, block)| self.adapters.name_of(tokens, block.tokens_hash)));
        }
        let mut hashes = Vec::new();
        for event in events {
            match event {
                KvCacheEventData::Stored { blocks, .. } => {
                    hashes.extend(blocks.iter().map(|block| block.block_hash.0));
                }
                KvCacheEventData::Removed { block_hashes } => {
                    hashes.extend(block_hashes.iter().map(|hash| hash.0))
                }
                KvCacheEventData::Cleared => {}
            }
        }
        let mut hashes = hashes.as_slice();
        let mut next_hashes = |count: usize| {
            let (taken, rest) = hashes.split_at(count);
            hashes = rest;
            taken
        };
        let mut wire = Vec::with_capacity(events.len());
        for (event, name) in events.iter().zip(&names) {
            wire.push(match event {
                KvCacheEventData::Stored { parent_hash, blocks } => {
                    let (own, rest) = tokens.split_at(tokens.len().min(blocks.len() * block_size as usize));
                    tokens = rest;
                    WireEvent::Stored {
                        block_hashes: next_hashes(blocks.len()),
                        parent: parent_hash.map(|parent| parent.0),
                        tokens: own,
                        block_size,
                        lora_name: name.as_deref(),
                    }
                }
                KvCacheEventData::Removed { block_hashes } => {
                    WireEvent::Removed { block_hashes: next_hashes(block_hashes.len()) }
                }
                KvCacheEventData::Cleared => WireEvent::Cleared,
            });
        }
        let timestamp =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut payload = Vec::new();
        write_batch(timestamp, &wire, Some(dp_rank), WireForm::Map, &mut payload);
        payload
    }
}

#[cfg(test)]
mod tests;
