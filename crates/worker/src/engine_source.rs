//! An engine's own KV events, on their way to the event plane.

use std::{collections::BTreeSet, sync::Arc};

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use dynamo_kv_router::{EngineEvent, EngineEventDecoder, FilterReason, ReplayFailure};
use dynamo_tokens::BlockSize;

use crate::{
    KvPublisher,
    engine_listener::{EngineBatches, SourceMetrics},
};

/// Times that blocks of another size are told of in the log.
const BLOCK_SIZE_WARNINGS: u32 = 3;

/// Converts an engine's batches and has them published. For an [`EngineListener`](crate::EngineListener).
pub struct EngineEventSource {
    /// For the log.
    name: String,
    publisher: Arc<KvPublisher>,
    block_size: BlockSize,
    /// The rank of batches that name none.
    default_rank: DpRank,
    decoder: EngineEventDecoder,
    metrics: SourceMetrics,
    /// Ranks that batches came of, all of them the publisher's.
    ranks: BTreeSet<DpRank>,
    events: Vec<EngineEvent>,
    block_size_warnings: u32,
    warned_of_payload: bool,
    warned_of_rank: bool,
}

impl EngineEventSource {
    /// Events of the engine called `name`, whose blocks should have `block_size` tokens, go to `publisher`.
    pub fn new(
        name: impl Into<String>,
        publisher: Arc<KvPublisher>,
        block_size: BlockSize,
        default_rank: DpRank,
        metrics: SourceMetrics,
    ) -> Self {
        Self {
            name: name.into(),
            publisher,
            block_size,
            default_rank,
            decoder: EngineEventDecoder::new(block_size),
            metrics,
            ranks: BTreeSet::new(),
            events: Vec::new(),
            block_size_warnings: 0,
            warned_of_payload: false,
            warned_of_rank: false,
        }
    }

    fn warn_of_block_size(&mut self, engine: Option<u64>) {
        if self.block_size_warnings < BLOCK_SIZE_WARNINGS {
            self.block_size_warnings += 1;
            tracing::warn!(
                engine = self.name,
                engine_block_size = engine,
                block_size = self.block_size.get(),
                "the engine's KV blocks have another size than the router's: they are left out, and no prompt will be \
                 found; start both with the same block size"
            );
        }
    }
}

impl EngineBatches for EngineEventSource {
    fn batch(&mut self, _sequence: u64, payload: &[u8]) {
        let before = *self.decoder.counters();
        let decoded = self.decoder.decode(payload, &mut self.events);
        let after = *self.decoder.counters();
        self.metrics.add(&before, &after);
        if after.filtered(FilterReason::BlockSize) > before.filtered(FilterReason::BlockSize) {
            self.warn_of_block_size(after.other_block_size);
        }
        let info = match decoded {
            Ok(info) => info,
            Err(error) => {
                self.metrics.bad_payload.inc();
                self.events.clear();
                if !std::mem::replace(&mut self.warned_of_payload, true) {
                    tracing::warn!(
                        engine = self.name, %error,
                        "a batch of KV events cannot be read; further ones are only counted"
                    );
                }
                return;
            }
        };
        let rank = info.dp_rank.unwrap_or(self.default_rank);
        if self.publisher.report(rank, self.events.drain(..)) {
            self.ranks.insert(rank);
        } else {
            self.metrics.unknown_rank.inc();
            if !std::mem::replace(&mut self.warned_of_rank, true) {
                tracing::warn!(
                    engine = self.name,
                    rank,
                    "the engine reports a rank that this worker does not have"
                );
            }
        }
    }

    fn restarted(&mut self) {
        self.decoder.restarted();
        for &rank in &self.ranks {
            let cleared = EngineEvent { tier: StorageTier::Device, data: KvCacheEventData::Cleared };
            self.publisher.report(rank, [cleared]);
        }
    }

    fn lost(&mut self, batches: u64, why: Option<ReplayFailure>) {
        let why = why.map_or_else(|| "it has no replay endpoint".to_owned(), |failure| failure.to_string());
        tracing::warn!(engine = self.name, batches, why, "KV events of the engine are lost");
    }

    fn silent(&mut self) {
        tracing::warn!(
            engine = self.name,
            "the engine has sent no KV events in the first minute: if it serves requests, check that it publishes them \
             (vLLM: --kv-events-config) and where"
        );
    }
}
