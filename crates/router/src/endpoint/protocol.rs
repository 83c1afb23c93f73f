//! What `best_worker` is asked and answers: maps tagged by `method`, in MessagePack or JSON; the answer is in the form of
//! the question.

use dynamo_engine_api::{DpRank, PreprocessedRequest, RoutingHints};
use serde::{Deserialize, Serialize};

/// A question.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum RouterRequest {
    /// Chooses a worker and counts the request there until it is marked free.
    New {
        /// The prompt.
        tokens: Vec<u32>,
        /// Names the request in marks; absent: the stream's own id.
        #[serde(default)]
        request_id: Option<String>,
        /// The adapter.
        #[serde(default)]
        lora_name: Option<String>,
        /// Separates caches of tenants.
        #[serde(default)]
        cache_salt: Option<String>,
        /// Tokens of the answer that are expected.
        #[serde(default)]
        expected_output_tokens: Option<u32>,
    },
    /// What would be on each rank if a request went there.
    PotentialLoads {
        /// The prompt.
        tokens: Vec<u32>,
    },
    /// The first token came.
    MarkPrefill {
        /// As given with `new`.
        #[serde(default)]
        request_id: Option<String>,
    },
    /// The request is over.
    MarkFree {
        /// As given with `new`.
        #[serde(default)]
        request_id: Option<String>,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum RouterAnswer {
    /// Where the request was counted.
    New {
        /// The worker.
        worker_id: u64,
        /// Its rank.
        dp_rank: DpRank,
        /// Leading blocks that it is believed to hold.
        overlap_blocks: u32,
    },
    /// To `potential_loads`.
    PotentialLoads {
        /// By rank.
        loads: Vec<LoadEntry>,
        /// Requests that wait in the router.
        pending_count: u64,
        /// Their prompt tokens.
        pending_isl_tokens: u64,
    },
    /// To `mark_prefill`.
    PrefillMarked {
        /// Whether the request was known.
        success: bool,
    },
    /// To `mark_free`.
    FreeMarked {
        /// Whether the request was known.
        success: bool,
    },
}

/// What would be on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct LoadEntry {
    /// The worker.
    pub worker_id: u64,
    /// Its rank.
    pub dp_rank: DpRank,
    /// Prompt tokens to compute, the request's included.
    pub potential_prefill_tokens: u64,
    /// Blocks, the request's included.
    pub potential_decode_blocks: u64,
    /// Requests, without this one.
    pub active_requests: u32,
}

/// The two forms of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    MessagePack,
    Json,
}

impl Form {
    /// No map in MessagePack begins as one in JSON does.
    pub(super) fn of(payload: &[u8]) -> Self {
        if payload.first() == Some(&b'{') { Self::Json } else { Self::MessagePack }
    }

    pub(super) fn read<'a, T: Deserialize<'a>>(self, payload: &'a [u8]) -> Result<T, String> {
        match self {
            Self::MessagePack => rmp_serde::from_slice(payload).map_err(|error| error.to_string()),
            Self::Json => serde_json::from_slice(payload).map_err(|error| error.to_string()),
        }
    }

    pub(super) fn write(self, answer: &impl Serialize) -> Result<Vec<u8>, String> {
        match self {
            Self::MessagePack => rmp_serde::to_vec_named(answer).map_err(|error| error.to_string()),
            Self::Json => serde_json::to_vec(answer).map_err(|error| error.to_string()),
        }
    }
}

/// A prompt in the shape that the router takes.
pub(super) fn prompt(
    tokens: Vec<u32>,
    lora_name: Option<String>,
    cache_salt: Option<String>,
    expected_output_tokens: Option<u32>,
) -> PreprocessedRequest {
    PreprocessedRequest {
        token_ids: tokens,
        routing: RoutingHints { lora_name, cache_salt, expected_output_tokens, ..RoutingHints::default() },
        ..PreprocessedRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_tagged_by_method_in_both_forms() {
        let text = br#"{"method": "new", "tokens": [1, 2]}"#;
        assert_eq!(Form::of(text), Form::Json);
        let expected = RouterRequest::New {
            tokens: vec![1, 2],
            request_id: None,
            lora_name: None,
            cache_salt: None,
            expected_output_tokens: None,
        };
        assert_eq!(Form::Json.read::<RouterRequest>(text).unwrap(), expected);
        let packed = Form::MessagePack.write(&expected).unwrap();
        assert_eq!(Form::of(&packed), Form::MessagePack);
        assert_eq!(Form::MessagePack.read::<RouterRequest>(&packed).unwrap(), expected);
        let free: RouterRequest = Form::Json.read(br#"{"method": "mark_free"}"#).unwrap();
        assert_eq!(free, RouterRequest::MarkFree { request_id: None });
        let answer = Form::Json.write(&RouterAnswer::FreeMarked { success: true }).unwrap();
        assert_eq!(answer, br#"{"method":"free_marked","success":true}"#);
    }
}
