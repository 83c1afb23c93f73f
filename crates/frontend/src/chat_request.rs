//! From the public request to what a model is asked.

use axum::http::HeaderMap;
use dynamo_engine_api::{LatencyTargets, SamplingOptions};
use dynamo_llm::{ChatRequest, MAX_SESSION_ID, RoutingWishes, Session};
use dynamo_protocols::ChatCompletionRequest;
use serde_json::Value;

/// Headers that name a worker, the newer first.
const WORKER_HEADERS: [&str; 2] = ["x-dynamo-worker-instance-id", "x-worker-instance-id"];
/// Headers that name a rank.
const RANK_HEADERS: [&str; 4] =
    ["x-dynamo-dp-rank", "x-dp-rank", "x-dynamo-data-parallel-rank", "x-data-parallel-rank"];
/// Headers that name a prefill worker.
const PREFILL_WORKER_HEADERS: [&str; 2] = ["x-dynamo-prefill-instance-id", "x-prefill-instance-id"];
/// Headers that name a rank of it.
const PREFILL_RANK_HEADERS: [&str; 2] = ["x-dynamo-prefill-dp-rank", "x-prefill-dp-rank"];

/// The header that says how many seconds earlier a request counts as come.
const PRIORITY_HEADERS: [&str; 1] = ["x-dynamo-request-priority"];
/// The header that puts a request before all of a lower number.
const STRICT_PRIORITY_HEADERS: [&str; 1] = ["x-dynamo-request-strict-priority"];
/// The header that names a request's policy class.
const POLICY_CLASS_HEADER: &str = "x-dynamo-policy-class";
/// A rank that stands for none.
const NO_RANK: u32 = u32::MAX;

/// Which workers and ranks the headers name, with what priority and of which policy class; what does not parse is passed
/// over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoutingHeaders {
    pub(crate) worker_id: Option<u64>,
    pub(crate) dp_rank: Option<u32>,
    pub(crate) prefill_worker_id: Option<u64>,
    pub(crate) prefill_dp_rank: Option<u32>,
    pub(crate) priority: Option<i32>,
    pub(crate) strict_priority: Option<u32>,
    pub(crate) policy_class: Option<Box<str>>,
}

impl RoutingHeaders {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let rank = |names: &[&str]| number(headers, names).filter(|&rank| rank != NO_RANK);
        Self {
            worker_id: number(headers, &WORKER_HEADERS),
            dp_rank: rank(&RANK_HEADERS),
            prefill_worker_id: number(headers, &PREFILL_WORKER_HEADERS),
            prefill_dp_rank: rank(&PREFILL_RANK_HEADERS),
            priority: number(headers, &PRIORITY_HEADERS),
            strict_priority: number(headers, &STRICT_PRIORITY_HEADERS),
            policy_class: text(headers, POLICY_CLASS_HEADER),
        }
    }

    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, names: &[&str]) -> Option<T> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok()?.trim().parse().ok())
}

/// What a header says, if anything.
fn text(headers: &HeaderMap, name: &str) -> Option<Box<str>> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.into())
}

/// The session that the headers name. It chooses no worker by itself: only where an operator lets sessions stay with
/// their workers does it matter.
pub(crate) fn session(headers: &HeaderMap) -> Option<Session> {
    let text = |name: &str| text(headers, name).filter(|value| value.len() <= MAX_SESSION_ID);
    let is_final = text("x-dynamo-session-final").is_some_and(|value| matches!(&*value, "1" | "true"));
    Some(Session { id: text("x-dynamo-session-id")?, parent: text("x-dynamo-parent-session-id"), is_final })
}

/// What the model is asked; headers go over the body.
pub(crate) fn chat_request(request: ChatCompletionRequest, headers: RoutingHeaders) -> ChatRequest {
    let max_tokens = request.answer_limit();
    let mut nvext = request.nvext.unwrap_or_default();
    let worker_id = headers.worker_id.or_else(|| nvext.worker_id());
    let hints = nvext.agent_hints.clone().unwrap_or_default();
    let constraints = nvext.routing_constraints.take().unwrap_or_default();
    let preferred = constraints.preferred_taints.into_iter();
    let mut sampling = SamplingOptions {
        n: None,
        best_of: None,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repetition_penalty: request.repetition_penalty,
        temperature: request.temperature,
        top_p: request.top_p,
        // Zero is one of two ways to say "all".
        top_k: request.top_k.map(|top_k| if top_k == 0 { -1 } else { top_k }),
        min_p: request.min_p,
        seed: request.seed,
        include_stop_str_in_output: request.include_stop_str_in_output,
    };
    if nvext.greed_sampling == Some(true) {
        sampling = SamplingOptions {
            temperature: Some(0.0),
            seed: sampling.seed,
            include_stop_str_in_output: sampling.include_stop_str_in_output,
            ..SamplingOptions::default()
        };
    }
    let mut template_args = request.chat_template_args;
    if let Some(effort) = request.reasoning_effort {
        template_args.get_or_insert_default().entry("reasoning_effort").or_insert(Value::String(effort));
    }
    ChatRequest {
        messages: request.messages,
        tools: request.tools.map(Value::Array),
        template_args,
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
        stop: request.stop.map(|stop| stop.0).unwrap_or_default(),
        include_stop_str_in_output: request.include_stop_str_in_output.unwrap_or(false),
        stop_token_ids: request.stop_token_ids.unwrap_or_default(),
        max_tokens,
        min_tokens: request.min_tokens,
        ignore_eos: request.ignore_eos.unwrap_or(false),
        skip_special_tokens: request.skip_special_tokens,
        sampling,
        token_data: nvext.token_data.take(),
        annotations: nvext.annotations.take().unwrap_or_default(),
        worker_id,
        dp_rank: headers.dp_rank.or(nvext.dp_rank),
        prefill_worker_id: headers.prefill_worker_id.or(nvext.prefill_worker_id),
        prefill_dp_rank: headers.prefill_dp_rank.or(nvext.prefill_dp_rank),
        expected_output_tokens: nvext.expected_output_tokens(),
        cache_salt: request.cache_salt.or_else(|| nvext.cache_salt.take()),
        latency_targets: latency_targets(nvext.router.as_ref()),
        routing: RoutingWishes {
            priority_jump: headers.priority.map_or(hints.priority_jump(), |jump| f64::from(jump).max(0.0)),
            strict_priority: headers.strict_priority.or(hints.strict_priority).unwrap_or(0),
            policy_class: headers.policy_class.or(hints.policy_class.map(Into::into)),
            session: None,
            required_taints: constraints.required_taints,
            preferred_taints: preferred.map(|(taint, weight)| (taint, f64::from(weight))).collect(),
        },
    }
}

/// A hint: what makes no sense in it counts as not given.
fn latency_targets(router: Option<&Value>) -> LatencyTargets {
    let target = |name| {
        let milliseconds = router?.get(name)?.as_f64()?;
        (milliseconds.is_finite() && milliseconds >= 0.0).then_some(milliseconds)
    };
    LatencyTargets { ttft_target: target("ttft_target"), itl_target: target("itl_target") }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use dynamo_protocols::{UnknownFields, parse_chat_request};
    use serde_json::json;

    use super::*;

    fn request(fields: Value) -> ChatCompletionRequest {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parse_chat_request(&serde_json::to_vec(&body).unwrap(), UnknownFields::Refuse).unwrap()
    }

    #[test]
    fn latency_targets_are_numbers_of_milliseconds_or_not_given() {
        let targets = |router: Value| {
            let body = json!({"nvext": {"router": router}});
            chat_request(request(body), RoutingHeaders::default()).latency_targets
        };
        let given = targets(json!({"ttft_target": 200, "itl_target": 12.5}));
        assert_eq!((given.ttft_target, given.itl_target), (Some(200.0), Some(12.5)));
        assert_eq!(targets(json!({"ttft_target": "fast", "itl_target": -1})), LatencyTargets::default());
    }

    #[test]
    fn greedy_leaves_no_other_sampling() {
        let asked =
            request(json!({"temperature": 1.5, "top_p": 0.5, "top_k": 3, "presence_penalty": 1, "seed": 7,
            "nvext": {"greed_sampling": true}}));
        let sampling = chat_request(asked, RoutingHeaders::default()).sampling;
        let greedy = SamplingOptions { temperature: Some(0.0), seed: Some(7), ..SamplingOptions::default() };
        assert_eq!(sampling, greedy);
    }

    #[test]
    fn headers_go_over_the_body() {
        let body = json!({"nvext": {"backend_instance_id": 1, "dp_rank": 2}, "top_k": 0});
        let plain = chat_request(request(body.clone()), RoutingHeaders::default());
        assert_eq!((plain.worker_id, plain.dp_rank, plain.sampling.top_k), (Some(1), Some(2), Some(-1)));
        let mut headers = HeaderMap::new();
        headers.insert("x-worker-instance-id", HeaderValue::from_static("9"));
        headers.insert("x-dp-rank", HeaderValue::from_static("many"));
        let routed = chat_request(request(body), RoutingHeaders::of(&headers));
        assert_eq!((routed.worker_id, routed.dp_rank), (Some(9), Some(2)));
    }

    #[test]
    fn the_worker_of_the_prompt_may_be_another_one() {
        let body = json!({"nvext":
            {"decode_worker_id": 1, "prefill_worker_id": 3, "dp_rank": 2, "prefill_dp_rank": 4}});
        let named = |asked: &ChatRequest| {
            (asked.worker_id, asked.dp_rank, asked.prefill_worker_id, asked.prefill_dp_rank)
        };
        let plain = chat_request(request(body.clone()), RoutingHeaders::default());
        assert_eq!(named(&plain), (Some(1), Some(2), Some(3), Some(4)));
        let mut headers = HeaderMap::new();
        headers.insert("x-prefill-instance-id", HeaderValue::from_static("9"));
        headers.insert("x-dynamo-prefill-dp-rank", HeaderValue::from_static("4294967295"));
        let routed = chat_request(request(body.clone()), RoutingHeaders::of(&headers));
        assert_eq!(named(&routed), (Some(1), Some(2), Some(9), Some(4)), "that rank is none");
        headers.insert("x-dynamo-prefill-dp-rank", HeaderValue::from_static("5"));
        let routed = chat_request(request(body), RoutingHeaders::of(&headers));
        assert_eq!(named(&routed), (Some(1), Some(2), Some(9), Some(5)));
    }

    #[test]
    fn taints_are_read() {
        let body = json!({"nvext": {"routing_constraints":
            {"required_taints": ["gpu=b"], "preferred_taints": {"fast": 0.5}}}});
        let routing = chat_request(request(body), RoutingHeaders::default()).routing;
        assert_eq!(routing.required_taints, ["gpu=b"]);
        assert_eq!(routing.preferred_taints, [("fast".to_owned(), 0.5)]);
    }

    #[test]
    fn priorities_and_sessions_are_read() {
        let body = json!({"nvext": {"agent_hints":
            {"priority": 4, "strict_priority": 1, "policy_class": "chat"}}});
        let plain = chat_request(request(body.clone()), RoutingHeaders::default()).routing;
        assert_eq!((plain.priority_jump, plain.strict_priority), (4.0, 1));
        assert_eq!(plain.policy_class.as_deref(), Some("chat"));
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-dynamo-request-priority", "-2"),
            ("x-dynamo-request-strict-priority", "7"),
            ("x-dynamo-policy-class", " batch "),
            ("x-dynamo-dp-rank", "4294967295"),
            ("x-dynamo-session-id", " s "),
            ("x-dynamo-parent-session-id", "p"),
            ("x-dynamo-session-final", "true"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let routed = chat_request(request(body), RoutingHeaders::of(&headers));
        assert_eq!(
            (routed.routing.priority_jump, routed.routing.strict_priority, routed.dp_rank),
            (0.0, 7, None)
        );
        assert_eq!(routed.routing.policy_class.as_deref(), Some("batch"));
        let found = Session { id: "s".into(), parent: Some("p".into()), is_final: true };
        assert_eq!(session(&headers), Some(found));
        headers.insert("x-dynamo-session-id", HeaderValue::from_str(&"x".repeat(300)).unwrap());
        assert_eq!(session(&headers), None);
    }

    #[test]
    fn effort_is_a_template_argument_unless_there_is_one() {
        let asked = chat_request(request(json!({"reasoning_effort": "low"})), RoutingHeaders::default());
        assert_eq!(asked.template_args.unwrap()["reasoning_effort"], "low");
        let both = json!({"reasoning_effort": "low", "chat_template_args": {"reasoning_effort": "high"}});
        let asked = chat_request(request(both), RoutingHeaders::default());
        assert_eq!(asked.template_args.unwrap()["reasoning_effort"], "high");
    }
}
