//! Token counts, from the engine's form to the public one.

use dynamo_engine_api::CompletionUsage;
use dynamo_protocols::{Usage, UsageDetails};

pub(crate) fn public_usage(usage: CompletionUsage) -> Usage {
    Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        prompt_tokens_details: usage
            .prompt_tokens_details
            .map(|details| UsageDetails { cached_tokens: details.cached_tokens }),
    }
}

/// The share of prompt tokens that was found in a cache.
pub(crate) fn hit_rate(usage: CompletionUsage) -> Option<f64> {
    let cached = usage.prompt_tokens_details?.cached_tokens;
    (usage.prompt_tokens > 0).then(|| f64::from(cached) / f64::from(usage.prompt_tokens))
}
