//! Prompts computed by one engine and answered by another.
//!
//! What an engine says of a prompt that it computed has the shape of vLLM's NIXL connector, without the blocks' numbers:
//! nothing is copied here, so nobody reads them.

use std::fmt;
use std::str::FromStr;

use dynamo_engine_api::PrefillResult;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Which half of a request a worker is there for. All take any request: the role says how they are found, and what they
/// say at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DisaggregationMode {
    /// Both halves.
    #[default]
    Agg,
    /// Prompts: the last output says how another engine gets the blocks.
    Prefill,
    /// Answers, to prompts that came with a prefill worker's word too.
    Decode,
}

/// A name that no role has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no disaggregation mode {0:?}: give agg, prefill or decode")]
pub struct UnknownMode(String);

impl FromStr for DisaggregationMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        match name {
            "agg" => Ok(Self::Agg),
            "prefill" => Ok(Self::Prefill),
            "decode" => Ok(Self::Decode),
            _ => Err(UnknownMode(name.to_owned())),
        }
    }
}

impl fmt::Display for DisaggregationMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Agg => "agg",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// What the engine that computed a prompt says, for another to fetch the blocks.
pub(crate) fn handed_over(engine_id: Option<&str>, prompt_tokens: usize) -> serde_json::Value {
    json!({
        "kv_transfer_params": {
            "do_remote_prefill": true,
            "do_remote_decode": false,
            "remote_engine_id": engine_id,
            "prompt_tokens": prompt_tokens,
        }
    })
}

#[derive(Deserialize)]
struct Params {
    kv_transfer_params: KvTransferParams,
}

#[derive(Deserialize)]
#[serde(default)]
struct KvTransferParams {
    do_remote_prefill: bool,
    /// Of engines that do not say, the whole prompt.
    prompt_tokens: usize,
}

impl Default for KvTransferParams {
    fn default() -> Self {
        Self { do_remote_prefill: false, prompt_tokens: usize::MAX }
    }
}

/// Leading tokens of the prompt whose blocks another engine has and gives away; `None` if it says nothing of the kind.
pub(crate) fn promised_tokens(result: &PrefillResult) -> Option<usize> {
    let params = Params::deserialize(&result.disaggregated_params).ok()?.kv_transfer_params;
    params.do_remote_prefill.then_some(params.prompt_tokens)
}
