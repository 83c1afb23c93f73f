//! `GET /dump`: everything as events, written as it is read.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use dynamo_engine_api::{KvCacheEventData, RouterEvent, StorageTier};
use dynamo_kv_router::DumpError;
use dynamo_runtime::TaskScope;
use http_body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::registry::{ModelIndex, ModelKey, Registry};

/// Pieces of a dump between the index and the connection.
const PIECES: usize = 4;
/// A piece is sent when it has so many bytes; one event of a dump has some 80 KiB at most.
const PIECE_BYTES: usize = 64 << 10;
/// Blocks that are written without a look at others that have something to do: some 80 KiB.
const CHUNK_BLOCKS: usize = 1024;
/// A reader that takes nothing for this long gets no more: its dump holds memory.
const STALL: Duration = Duration::from_secs(30);

/// The body of a dump. It ends with an error where the dump was not written to its end.
pub(super) struct DumpBody {
    pieces: mpsc::Receiver<Bytes>,
    last: Option<u8>,
}

impl DumpBody {
    /// Begins to write a dump of all that `registry` has. The turn is kept until it is written.
    pub(super) fn start(registry: &Arc<Registry>, turn: OwnedSemaphorePermit, scope: &TaskScope) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        let writer = Writer { pieces: sender, text: Vec::with_capacity(2 * PIECE_BYTES) };
        let (registry, ended) = (registry.clone(), scope.clone());
        let blocking = scope.clone();
        scope.spawn("dump", async move {
            tokio::select! {
                () = ended.cancelled() => {}
                _ = writer.write(&registry, &blocking) => {}
            }
            drop(turn);
        });
        Self { pieces, last: None }
    }
}

impl http_body::Body for DumpBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        Poll::Ready(match piece {
            Some(piece) => {
                self.last = piece.last().copied();
                Some(Ok(Frame::data(piece)))
            }
            // Only the end of the whole is the end of a line.
            None if self.last == Some(b'\n') => None,
            None => {
                self.last = Some(b'\n');
                Some(Err(io::Error::other("the dump was not written to its end")))
            }
        })
    }
}

/// Nobody reads any more, or an index does not say what it holds.
struct Gone;

struct Writer {
    pieces: mpsc::Sender<Bytes>,
    text: Vec<u8>,
}

impl Writer {
    async fn write(mut self, registry: &Registry, scope: &TaskScope) -> Result<(), Gone> {
        self.text.push(b'{');
        for (place, (key, model)) in registry.models().into_iter().enumerate() {
            if place > 0 {
                self.text.push(b',');
            }
            self.begin(&key, &model);
            let mut first = true;
            for rank in model.ranks() {
                let dumped = model.clone();
                let dumping = scope.spawn_blocking("dump-rank", move || dumped.index.dump_rank(rank));
                let mut dump = match dumping.await.map_err(|_| Gone)? {
                    Ok(dump) => dump,
                    // It was unregistered just now.
                    Err(DumpError::UnknownWorker) => continue,
                    Err(error) => {
                        tracing::warn!(worker_id = rank.worker_id, dp_rank = rank.dp_rank, %error, "no dump");
                        return Err(Gone);
                    }
                };
                while !dump.is_empty() {
                    for event in dump.next_chunk(CHUNK_BLOCKS) {
                        if !std::mem::take(&mut first) {
                            self.text.push(b',');
                        }
                        write_event(&event, &mut self.text);
                        if self.text.len() >= PIECE_BYTES {
                            self.send().await?;
                        }
                    }
                    tokio::task::consume_budget().await;
                }
            }
            self.text.extend_from_slice(b"]}");
        }
        self.text.extend_from_slice(b"}\n");
        self.send().await
    }

    fn begin(&mut self, key: &ModelKey, model: &ModelIndex) {
        let name = format!("{}:{}", key.model_name, key.routing_group);
        let name = serde_json::Value::String(name).to_string();
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b":{\"block_size\":");
        write_number(model.block_size.get() as u64, &mut self.text);
        self.text.extend_from_slice(b",\"events\":[");
    }

    async fn send(&mut self) -> Result<(), Gone> {
        let piece = std::mem::replace(&mut self.text, Vec::with_capacity(2 * PIECE_BYTES));
        match timeout(STALL, self.pieces.send(piece.into())).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// Writes an event as the ecosystem's indexers do. By hand, for a dump has millions of blocks.
fn write_event(event: &RouterEvent, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"worker_id\":");
    write_number(event.worker_id, out);
    out.extend_from_slice(b",\"storage_tier\":\"");
    out.extend_from_slice(match event.storage_tier {
        StorageTier::Device => b"device",
        StorageTier::HostPinned => b"host_pinned",
        StorageTier::Disk => b"disk",
        StorageTier::External => b"external",
    });
    out.extend_from_slice(b"\",\"residency_domain\":\"worker\",\"event\":{\"event_id\":");
    write_number(event.event.event_id, out);
    out.extend_from_slice(b",\"data\":");
    match &event.event.data {
        KvCacheEventData::Stored { parent_hash, blocks } => {
            out.extend_from_slice(b"{\"stored\":{\"parent_hash\":");
            match parent_hash {
                Some(parent) => write_number(parent.0, out),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(b",\"start_position\":null,\"blocks\":[");
            for (place, block) in blocks.iter().enumerate() {
                out.extend_from_slice(if place == 0 { b"{\"block_hash\":" } else { b",{\"block_hash\":" });
                write_number(block.block_hash.0, out);
                out.extend_from_slice(b",\"tokens_hash\":");
                write_number(block.tokens_hash.0, out);
                out.extend_from_slice(b",\"mm_extra_info\":null}");
            }
            out.extend_from_slice(b"]}}");
        }
        KvCacheEventData::Removed { block_hashes } => {
            out.extend_from_slice(b"{\"removed\":{\"block_hashes\":[");
            for (place, hash) in block_hashes.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                write_number(hash.0, out);
            }
            out.extend_from_slice(b"]}}");
        }
        KvCacheEventData::Cleared => out.extend_from_slice(b"\"cleared\""),
    }
    out.extend_from_slice(b",\"dp_rank\":");
    write_number(u64::from(event.event.dp_rank), out);
    out.extend_from_slice(b"}}");
}

fn write_number(mut number: u64, out: &mut Vec<u8>) {
    // As many digits as a u64 can have.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use dynamo_engine_api::{ExternalBlockHash, KvCacheEvent, StoredBlock};
    use dynamo_tokens::LocalBlockHash;

    use super::*;

    #[test]
    fn events_are_written_as_serde_reads_them() {
        let block = |name| StoredBlock {
            block_hash: ExternalBlockHash(name),
            tokens_hash: LocalBlockHash(u64::MAX - name),
        };
        let tiers = [StorageTier::Device, StorageTier::HostPinned, StorageTier::Disk, StorageTier::External];
        let events = [
            KvCacheEventData::Stored { parent_hash: None, blocks: vec![block(0)] },
            KvCacheEventData::Stored {
                parent_hash: Some(ExternalBlockHash(9)),
                blocks: vec![block(1), block(2)],
            },
            KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(10), ExternalBlockHash(100)] },
            KvCacheEventData::Cleared,
        ];
        for (data, storage_tier) in events.into_iter().zip(tiers) {
            let event = KvCacheEvent { event_id: 12, data, dp_rank: 3 };
            let event = RouterEvent { worker_id: 7, event, storage_tier };
            let mut text = Vec::new();
            write_event(&event, &mut text);
            let read: RouterEvent = serde_json::from_slice(&text).unwrap();
            assert_eq!(read, event);
        }
    }
}
