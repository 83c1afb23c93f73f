//! What it costs to serve a request somewhere.

use dynamo_tokens::BlockSize;

use super::{Balance, Candidate, Scored, SelectRequest, room::Fills};
use crate::{KvRouterConfig, Match, MatchBuffer, RouterOverrides, TierMatch};

/// Leading blocks of a prompt that a rank has, each in the nearest place where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// In device memory.
    pub device: u32,
    /// Beyond those, in host memory.
    pub host: u32,
    /// Beyond those, on disk or further.
    pub disk: u32,
}

impl Overlap {
    /// What an index found.
    pub(super) fn of(found: &Match) -> Self {
        Self { device: found.device_blocks, host: 0, disk: 0 }
    }

    /// What an index found below the device.
    pub(super) fn add_lower(&mut self, found: &TierMatch) {
        self.host = found.host_blocks.saturating_sub(self.device);
        self.disk = found.any_blocks.saturating_sub(self.device + self.host);
    }
}

/// The settings of the choice. The cost of a candidate is, in blocks:
///
/// ```text
/// credit  = overlap_score_credit / (1 + decay · (prefill − least prefill of all) / block size / max(1, blocks))
/// overlap = credit · device + host weight · host + disk weight · disk + shared
/// shared  = multiplier · beyond + max(0, multiplier − host weight) · host too + max(0, multiplier − disk weight) · disk too
/// prefill = max(0, (active prefill tokens + isl) / block size − overlap)
/// room    = room_weight · (isl / block size − device) · how full its cache is beside the fullest
/// cost    = prefill_load_scale · (prefill + room) + decode + decode_active_request_weight · requests
/// cost   *= exp(−tanh(Σ weights of preferred taints that it has))
/// ```
///
/// where `device`, `host` and `disk` are an [`Overlap`]; the prompt's leading blocks in storage that all workers share are, as
/// far as they go beyond `device`, also on its host (`host too`), also on its disk (`disk too`) or in none of its own
/// places (`beyond`). So beyond the device a block counts once, at the best of its weights. (The reference's term is
/// multiplier · (all three), so that a block on the host counts twice.) What is on the device counts for its credit alone.
/// Further, `blocks` are those of the prompt and `decode` is the blocks active there with the request's own. With the
/// reference's defaults this is `(active prefill tokens + new tokens) / block size + decode`. Where blocks are not
/// tracked, `decode` is the whole blocks of `prefill`. Where prefill tokens are not tracked, the cost is `max(0, decode − overlap)` and the
/// requests' part: a worker that only decodes is chosen for the blocks that need not be brought to it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the settings of KvRouterConfig")]
pub struct SelectConfig {
    /// Tokens per block.
    pub block_size: BlockSize,
    pub prefill_load_scale: f64,
    pub overlap_score_credit: f64,
    pub overlap_score_credit_decay: f64,
    pub host_cache_hit_weight: f64,
    pub disk_cache_hit_weight: f64,
    pub shared_cache_multiplier: f64,
    pub room_weight: f64,
    pub decode_active_request_weight: f64,
    pub temperature: f64,
    pub track_active_blocks: bool,
    pub track_prefill_tokens: bool,
    pub balance: Option<Balance>,
}

impl SelectConfig {
    /// The part of the router's settings that is about the choice.
    pub fn new(config: &KvRouterConfig, block_size: BlockSize) -> Self {
        Self {
            block_size,
            prefill_load_scale: config.prefill_load_scale,
            overlap_score_credit: config.overlap_score_credit,
            overlap_score_credit_decay: config.overlap_score_credit_decay,
            host_cache_hit_weight: config.host_cache_hit_weight,
            disk_cache_hit_weight: config.disk_cache_hit_weight,
            shared_cache_multiplier: config.shared_cache_multiplier,
            room_weight: config.room_weight,
            decode_active_request_weight: config.decode_active_request_weight,
            temperature: config.temperature,
            track_active_blocks: config.track_active_blocks,
            track_prefill_tokens: config.track_prefill_tokens,
            balance: config.max_imbalance.map(|factor| Balance { factor }),
        }
    }

    pub(super) fn overridden(&self, overrides: &RouterOverrides) -> Self {
        let mut config = *self;
        if let Some(weight) = overrides.overlap_score_weight {
            config.prefill_load_scale = weight;
            if weight == 0.0 {
                config.overlap_score_credit = 0.0;
            }
        }
        config.overlap_score_credit = overrides.overlap_score_credit.unwrap_or(config.overlap_score_credit);
        config.prefill_load_scale = overrides.prefill_load_scale.unwrap_or(config.prefill_load_scale);
        if config.overlap_score_credit == 0.0 {
            // Caches do not matter to this request, for better or worse.
            config.room_weight = 0.0;
            config.shared_cache_multiplier = 0.0;
        }
        config.temperature = overrides.temperature.unwrap_or(config.temperature);
        config.track_prefill_tokens = overrides.track_prefill_tokens.unwrap_or(config.track_prefill_tokens);
        config
    }

    /// What leading blocks in shared storage save a candidate, in blocks, beside what it has itself.
    fn saved_by_sharing(&self, shared_blocks: u32, own: Overlap) -> f64 {
        let beyond_device = shared_blocks.saturating_sub(own.device);
        let host_too = beyond_device.min(own.host);
        let disk_too = (beyond_device - host_too).min(own.disk);
        let beyond = beyond_device - host_too - disk_too;
        let multiplier = self.shared_cache_multiplier;
        multiplier * f64::from(beyond)
            + (multiplier - self.host_cache_hit_weight).max(0.0) * f64::from(host_too)
            + (multiplier - self.disk_cache_hit_weight).max(0.0) * f64::from(disk_too)
    }
}

/// Sets the cost of each.
pub(super) fn score(
    scored: &mut [Scored],
    request: &SelectRequest<'_>,
    candidates: &[Candidate],
    matches: &MatchBuffer,
    config: &SelectConfig,
) {
    let block_size = config.block_size.get() as f64;
    let blocks = config.block_size.blocks_for(request.isl_tokens).max(1) as f64;
    let least_prefill = scored.iter().map(|scored| scored.load.prefill_tokens).min().unwrap_or(0);
    let shared_blocks = if config.shared_cache_multiplier > 0.0 { matches.shared_blocks() } else { 0 };
    let fills = (config.room_weight > 0.0).then(|| Fills::new(scored, candidates, matches));
    for entry in scored {
        let Scored { overlap, load, .. } = *entry;
        let behind = (load.prefill_tokens - least_prefill) as f64 / block_size;
        let credit =
            config.overlap_score_credit / (1.0 + config.overlap_score_credit_decay * behind / blocks);
        let mut saved = credit * f64::from(overlap.device)
            + config.host_cache_hit_weight * f64::from(overlap.host)
            + config.disk_cache_hit_weight * f64::from(overlap.disk);
        if shared_blocks > 0 {
            saved += config.saved_by_sharing(shared_blocks, overlap);
        }
        let requests = config.decode_active_request_weight * f64::from(load.requests);
        entry.cost = requests
            + if config.track_prefill_tokens {
                let raw = (load.prefill_tokens as f64 + request.isl_tokens as f64) / block_size;
                let prefill = (raw - saved).max(0.0);
                let decode = if config.track_active_blocks { load.decode_blocks } else { prefill.floor() };
                let room = fills.as_ref().map_or(0.0, |fills| {
                    let new_blocks = request.isl_tokens as f64 / block_size - f64::from(overlap.device);
                    config.room_weight * new_blocks.max(0.0) * fills.of(entry)
                });
                config.prefill_load_scale * (prefill + room) + decode
            } else {
                let saved = if config.overlap_score_credit > 0.0 { saved } else { 0.0 };
                (load.decode_blocks - saved).max(0.0)
            };
        if !request.preferred_taints.is_empty() {
            let taints = &candidates[entry.place as usize].profile.taints;
            let has = |(taint, _): &&(String, f64)| taints.contains(taint);
            let weight: f64 = request.preferred_taints.iter().filter(has).map(|(_, weight)| weight).sum();
            entry.cost *= (-weight.tanh()).exp();
        }
    }
}
