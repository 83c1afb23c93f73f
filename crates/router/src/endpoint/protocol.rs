//! What `best_worker` is asked and answers: maps tagged by `method`, in MessagePack or JSON; the answer is in the form of
//! the question.

use dynamo_engine_api::{DpRank, PreprocessedRequest, RouterConfigOverride, RoutingHints};
use serde::{Deserialize, Serialize};

/// A question.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum RouterRequest {
    /// Chooses a worker and counts the request there until it is marked free.
    New(Box<NewRequest>),
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

/// A request that wants a worker. All but the tokens may be absent, and fields that are not known are passed over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct NewRequest {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Names the request in marks; absent: the stream's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Milliseconds from now until its answer is of no use any more. It waits in the queue until then at most, and no longer
    /// than the stream of this question has time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Settings of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_config_override: Option<RouterConfigOverride>,
    /// Who may serve it, and its place among others.
    #[serde(flatten)]
    pub hints: RoutingHints,
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

impl NewRequest {
    /// In the shape that the router takes.
    pub(super) fn into_prompt(self) -> PreprocessedRequest {
        PreprocessedRequest {
            token_ids: self.tokens,
            routing: self.hints,
            router_config_override: self.router_config_override,
            ..PreprocessedRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_tagged_by_method_in_both_forms() {
        let text = br#"{"method": "new", "tokens": [1, 2]}"#;
        assert_eq!(Form::of(text), Form::Json);
        let expected =
            RouterRequest::New(Box::new(NewRequest { tokens: vec![1, 2], ..NewRequest::default() }));
        assert_eq!(Form::Json.read::<RouterRequest>(text).unwrap(), expected);
        let packed = Form::MessagePack.write(&expected).unwrap();
        assert_eq!(Form::of(&packed), Form::MessagePack);
        assert_eq!(Form::MessagePack.read::<RouterRequest>(&packed).unwrap(), expected);
        let free: RouterRequest = Form::Json.read(br#"{"method": "mark_free"}"#).unwrap();
        assert_eq!(free, RouterRequest::MarkFree { request_id: None });
        let answer = Form::Json.write(&RouterAnswer::FreeMarked { success: true }).unwrap();
        assert_eq!(answer, br#"{"method":"free_marked","success":true}"#);
    }

    #[test]
    fn a_new_request_says_all_that_a_choice_can_use() {
        let text = br#"{"method": "new", "tokens": [1], "request_id": "r", "deadline_ms": 500, "lora_name": "a",
            "cache_salt": "s", "expected_output_tokens": 9, "worker_id": 9007199254740991, "dp_rank": 1,
            "allowed_worker_ids": [3, 4], "priority": -2, "strict_priority": 7, "policy_class": "batch",
            "session_id": "x", "parent_session_id": "y", "session_final": true,
            "routing_constraints": {"required_taints": ["gpu=b"], "preferred_taints": {"fast": 0.5}},
            "router_config_override": {"overlap_score_weight": 2, "router_temperature": 0.5, "assume_kv_reuse": false},
            "news": {"of": ["a", "later", "release"]}}"#;
        let question: RouterRequest = Form::Json.read(text).unwrap();
        let RouterRequest::New(new) = &question else { panic!("{question:?}") };
        let hints = &new.hints;
        assert_eq!((new.request_id.as_deref(), new.deadline_ms), (Some("r"), Some(500)));
        assert_eq!((hints.worker_id, hints.dp_rank), (Some((1 << 53) - 1), Some(1)));
        assert_eq!((hints.lora_name.as_deref(), hints.cache_salt.as_deref()), (Some("a"), Some("s")));
        assert_eq!((hints.priority, hints.strict_priority), (Some(-2.0), Some(7)));
        assert_eq!((hints.policy_class.as_deref(), hints.expected_output_tokens), (Some("batch"), Some(9)));
        assert_eq!(hints.allowed_worker_ids.as_deref(), Some(&[3, 4][..]));
        let constraints = hints.routing_constraints.as_ref().unwrap();
        assert_eq!(constraints.required_taints, ["gpu=b"]);
        assert_eq!(constraints.preferred_taints.get("fast"), Some(&0.5));
        let session = (hints.session_id.as_deref(), hints.parent_session_id.as_deref(), hints.session_final);
        assert_eq!(session, (Some("x"), Some("y"), true));
        let overrides = new.router_config_override.as_ref().unwrap();
        assert_eq!((overrides.overlap_score_weight, overrides.assume_kv_reuse), (Some(2.0), Some(false)));
        assert_eq!((overrides.router_temperature, overrides.prefill_load_scale), (Some(0.5), None));
        // Both forms say the same.
        let packed = Form::MessagePack.write(&question).unwrap();
        assert_eq!(Form::MessagePack.read::<RouterRequest>(&packed).unwrap(), question);
        let prompt = new.as_ref().clone().into_prompt();
        assert_eq!((&prompt.routing, &prompt.router_config_override), (hints, &new.router_config_override));
    }
}
