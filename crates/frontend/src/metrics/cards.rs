//! Gauges that repeat what the models' cards say.

use std::collections::HashSet;

use dynamo_llm::ModelInfo;
use dynamo_runtime::metrics::MetricsError;
use parking_lot::Mutex;
use prometheus::IntGaugeVec;

use super::families::Maker;

/// They, by model.
pub(super) struct CardGauges {
    total_kv_blocks: IntGaugeVec,
    max_num_seqs: IntGaugeVec,
    max_num_batched_tokens: IntGaugeVec,
    context_length: IntGaugeVec,
    kv_cache_block_size: IntGaugeVec,
    migration_limit: IntGaugeVec,
    /// Models that have series; bounded by the catalogue.
    shown: Mutex<HashSet<String>>,
}

impl CardGauges {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self, MetricsError> {
        let gauge = |name: &str, help: &str| make.gauges(name, help, &["model"]);
        Ok(Self {
            total_kv_blocks: gauge("model_total_kv_blocks", "KV blocks of one worker")?,
            max_num_seqs: gauge("model_max_num_seqs", "Concurrent requests of one worker")?,
            max_num_batched_tokens: gauge("model_max_num_batched_tokens", "Tokens per step of one worker")?,
            context_length: gauge("model_context_length", "Tokens of prompt and answer together")?,
            kv_cache_block_size: gauge("model_kv_cache_block_size", "Tokens of one KV block")?,
            migration_limit: gauge("model_migration_limit", "Tries of a request on another worker")?,
            shown: Mutex::default(),
        })
    }

    /// Shows these models, and no others.
    pub(super) fn set(&self, models: &[ModelInfo]) {
        let mut shown = self.shown.lock();
        shown.retain(|name| {
            let here = models.iter().any(|model| &model.id == name);
            if !here {
                for family in self.all() {
                    // An error only says that this card had no such value.
                    let _ = family.remove_label_values(&[name]);
                }
            }
            here
        });
        for model in models {
            let set = |family: &IntGaugeVec, value: Option<u64>| {
                if let Some(value) = value {
                    family.with_label_values(&[&model.id]).set(i64::try_from(value).unwrap_or(i64::MAX));
                }
            };
            set(&self.total_kv_blocks, model.total_kv_blocks);
            set(&self.max_num_seqs, model.max_num_seqs);
            set(&self.max_num_batched_tokens, model.max_num_batched_tokens);
            set(&self.context_length, Some(model.context_length.into()));
            set(&self.kv_cache_block_size, Some(model.kv_block_size.into()));
            set(&self.migration_limit, Some(model.migration_limit.into()));
            if !shown.contains(&model.id) {
                shown.insert(model.id.clone());
            }
        }
    }

    fn all(&self) -> [&IntGaugeVec; 6] {
        [
            &self.total_kv_blocks,
            &self.max_num_seqs,
            &self.max_num_batched_tokens,
            &self.context_length,
            &self.kv_cache_block_size,
            &self.migration_limit,
        ]
    }
}
