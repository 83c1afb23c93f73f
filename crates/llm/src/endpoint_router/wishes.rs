//! What a request asks of the router, checked and in the router's own terms.

use std::time::Instant;

use dynamo_engine_api::{PreprocessedRequest, RoutingHints};
use dynamo_kv_router::{MAX_SESSION_ID, RouterOverrides};
use dynamo_runtime::request_plane::StreamError;
use dynamo_tokens::HashSeed;

use super::INVALID_REQUEST;
use crate::{
    Session,
    router::{RouteRequest, WantedAdapter},
};

/// Taints that a request may name: each is looked for at each worker. As many as a frontend lets through.
const MAX_TAINTS: usize = 64;
/// Workers that a request may name as the only ones: each worker is looked for among them.
const MAX_ALLOWED: usize = 4096;

/// What a request asks of the router.
pub(super) struct Wishes {
    hints: RoutingHints,
    session: Option<Session>,
    preferred_taints: Vec<(String, f64)>,
    overrides: RouterOverrides,
}

impl Wishes {
    /// What the request's hints say; refuses what makes no sense.
    pub(super) fn of(request: &PreprocessedRequest) -> Result<Self, StreamError> {
        let hints = request.routing.clone();
        let constraints = hints.routing_constraints.as_ref();
        let preferred = constraints.map(|constraints| &constraints.preferred_taints);
        let preferred_taints: Vec<(String, f64)> =
            preferred.into_iter().flatten().map(|(taint, weight)| (taint.clone(), *weight)).collect();
        let taints = preferred_taints.len() + constraints.map_or(0, |it| it.required_taints.len());
        if taints > MAX_TAINTS {
            return Err(invalid(format!("routing_constraints: more than {MAX_TAINTS} taints")));
        }
        if preferred_taints.iter().any(|(_, weight)| !weight.is_finite()) {
            return Err(invalid("routing_constraints: weights must be finite numbers".to_owned()));
        }
        if hints.allowed_worker_ids.as_ref().is_some_and(|allowed| allowed.len() > MAX_ALLOWED) {
            return Err(invalid(format!("allowed_worker_ids: more than {MAX_ALLOWED} workers")));
        }
        if hints.priority.is_some_and(|priority| !priority.is_finite()) {
            return Err(invalid("priority must be a finite number of seconds".to_owned()));
        }
        let overrides = match &request.router_config_override {
            Some(asked) => RouterOverrides::try_from(asked)
                .map_err(|error| invalid(format!("router_config_override: {error}")))?,
            None => RouterOverrides::default(),
        };
        Ok(Self { session: session(&hints)?, hints, preferred_taints, overrides })
    }

    /// What the router is asked for a prompt.
    pub(super) fn route_request<'a>(
        &'a self,
        tokens: &'a [u32],
        excluded: &'a [u64],
        deadline: Option<Instant>,
    ) -> RouteRequest<'a> {
        let hints = &self.hints;
        let constraints = hints.routing_constraints.as_ref();
        RouteRequest {
            tokens,
            seed: HashSeed::new(hints.lora_name.as_deref(), hints.cache_salt.as_deref()),
            // Workers may have adapters of which no card says so: then any may serve.
            adapter: hints.lora_name.as_deref().map(|name| WantedAdapter { name, is_registered: false }),
            pinned_worker: hints.worker_id,
            pinned_rank: hints.dp_rank,
            expected_output_tokens: hints.expected_output_tokens,
            allowed: hints.allowed_worker_ids.as_deref(),
            excluded,
            session: self.session.as_ref(),
            priority_jump: hints.priority.unwrap_or(0.0).max(0.0),
            strict_priority: hints.strict_priority.unwrap_or(0),
            policy_class: hints.policy_class.as_deref(),
            deadline,
            required_taints: constraints.map_or(&[], |constraints| &constraints.required_taints),
            preferred_taints: &self.preferred_taints,
            overrides: self.overrides,
        }
    }
}

fn session(hints: &RoutingHints) -> Result<Option<Session>, StreamError> {
    let text = |name: &str, text: &Option<String>| match text {
        Some(text) if text.len() > MAX_SESSION_ID => {
            Err(invalid(format!("{name} has more than {MAX_SESSION_ID} bytes")))
        }
        text => Ok(text.as_deref().map(Box::<str>::from)),
    };
    let parent = text("parent_session_id", &hints.parent_session_id)?;
    let id = text("session_id", &hints.session_id)?;
    Ok(id.map(|id| Session { id, parent, is_final: hints.session_final }))
}

fn invalid(message: String) -> StreamError {
    StreamError::Application { code: INVALID_REQUEST, message }
}

#[cfg(test)]
mod tests {
    use dynamo_engine_api::{RouterConfigOverride, RoutingConstraints};

    use super::*;

    fn request(routing: RoutingHints) -> PreprocessedRequest {
        PreprocessedRequest { token_ids: vec![1; 8], routing, ..PreprocessedRequest::default() }
    }

    #[test]
    fn a_request_can_ask_for_all_that_the_router_knows() {
        let constraints = RoutingConstraints {
            required_taints: vec!["gpu=b".into()],
            preferred_taints: [("fast".into(), 0.5)].into(),
        };
        let mut asked = request(RoutingHints {
            worker_id: Some(7),
            dp_rank: Some(1),
            expected_output_tokens: Some(50),
            allowed_worker_ids: Some(vec![7, 8]),
            routing_constraints: Some(constraints),
            priority: Some(2.5),
            strict_priority: Some(3),
            policy_class: Some("batch".into()),
            session_id: Some("s".into()),
            parent_session_id: Some("p".into()),
            session_final: true,
            ..RoutingHints::default()
        });
        asked.router_config_override =
            Some(RouterConfigOverride { router_temperature: Some(0.5), ..RouterConfigOverride::default() });
        let wishes = Wishes::of(&asked).unwrap();
        let deadline = Some(Instant::now());
        let wanted = wishes.route_request(&asked.token_ids, &[9], deadline);
        assert_eq!((wanted.pinned_worker, wanted.pinned_rank), (Some(7), Some(1)));
        assert_eq!((wanted.allowed, wanted.excluded), (Some(&[7, 8][..]), &[9][..]));
        assert_eq!((wanted.priority_jump, wanted.strict_priority), (2.5, 3));
        assert_eq!((wanted.policy_class, wanted.deadline), (Some("batch"), deadline));
        assert_eq!((wanted.expected_output_tokens, wanted.overrides.temperature), (Some(50), Some(0.5)));
        assert_eq!(wanted.required_taints, ["gpu=b"]);
        assert_eq!(wanted.preferred_taints, [("fast".to_owned(), 0.5)]);
        let session = Session { id: "s".into(), parent: Some("p".into()), is_final: true };
        assert_eq!(wanted.session, Some(&session));
    }

    #[test]
    fn a_request_that_asks_for_nothing_is_like_any_other() {
        let asked = request(RoutingHints { priority: Some(-3.0), ..RoutingHints::default() });
        let wishes = Wishes::of(&asked).unwrap();
        let wanted = wishes.route_request(&asked.token_ids, &[], None);
        assert!(wanted.session.is_none() && wanted.allowed.is_none() && wanted.required_taints.is_empty());
        assert_eq!((wanted.priority_jump, wanted.overrides), (0.0, RouterOverrides::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let hints = RoutingHints::default;
        let taints = |count: usize, weight| RoutingConstraints {
            required_taints: vec!["x".into(); count],
            preferred_taints: [("fast".into(), weight)].into(),
        };
        let unusable = [
            (RoutingHints { priority: Some(f64::NAN), ..hints() }, "priority"),
            (RoutingHints { routing_constraints: Some(taints(64, 1.0)), ..hints() }, "taints"),
            (RoutingHints { routing_constraints: Some(taints(0, f64::INFINITY)), ..hints() }, "weights"),
            (RoutingHints { allowed_worker_ids: Some(vec![1; MAX_ALLOWED + 1]), ..hints() }, "allowed"),
            (RoutingHints { session_id: Some("x".repeat(MAX_SESSION_ID + 1)), ..hints() }, "session_id"),
        ];
        let message = |asked: &PreprocessedRequest| match Wishes::of(asked).err() {
            Some(StreamError::Application { code: 400, message }) => message,
            other => panic!("{other:?}"),
        };
        for (routing, words) in unusable {
            let message = message(&request(routing));
            assert!(message.contains(words), "{message}");
        }
        let mut asked = request(hints());
        asked.router_config_override =
            Some(RouterConfigOverride { overlap_score_weight: Some(-1.0), ..Default::default() });
        assert!(message(&asked).starts_with("router_config_override: overlap_score_weight"));
    }
}
