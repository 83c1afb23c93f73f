//! What the router is told of requests and workers.

use std::time::Instant;

use dynamo_engine_api::DpRank;
use dynamo_kv_router::{RankLimits, RouterOverrides, WorkerProfile};
use dynamo_tokens::HashSeed;

/// A worker of the model, as discovery and its card describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoutedWorker {
    pub(crate) worker_id: u64,
    pub(crate) epoch: u64,
    pub(crate) first_rank: DpRank,
    pub(crate) ranks: u32,
    /// Of each rank.
    pub(crate) limits: RankLimits,
    pub(crate) draining: bool,
    /// Labels that requests may ask for.
    pub(crate) taints: Vec<String>,
    /// Adapters that it has, in order.
    pub(crate) adapters: Vec<String>,
}

impl RoutedWorker {
    pub(super) fn blocks_per_rank(&self) -> Option<u32> {
        self.limits.total_kv_blocks.and_then(|blocks| u32::try_from(blocks).ok())
    }

    pub(super) fn profile(&self) -> WorkerProfile {
        let (taints, adapters) = (self.taints.clone(), Some(self.adapters.clone()));
        WorkerProfile { limits: self.limits, taints, adapters }
    }
}

/// The session that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub id: Box<str>,
    /// The session that it came out of: it begins where that one is.
    pub parent: Option<Box<str>>,
    /// Whether this is its last request.
    pub is_final: bool,
}

/// The adapter that a request is for: it goes to workers that have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedAdapter<'a> {
    pub(crate) name: &'a str,
    /// Whether it is a model by a worker's card. If not, workers may have it without a word: it binds only while a card
    /// names it.
    pub(crate) is_registered: bool,
}

/// What a request asks of the router.
#[derive(Clone, Copy)]
pub(crate) struct RouteRequest<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) seed: HashSeed,
    pub(crate) adapter: Option<WantedAdapter<'a>>,
    pub(crate) pinned_worker: Option<u64>,
    pub(crate) pinned_rank: Option<DpRank>,
    pub(crate) expected_output_tokens: Option<u32>,
    /// Workers that may serve it; absent: all.
    pub(crate) allowed: Option<&'a [u64]>,
    /// Workers that just refused it.
    pub(crate) excluded: &'a [u64],
    pub(crate) session: Option<&'a Session>,
    /// Seconds by which it counts as come earlier where requests queue.
    pub(crate) priority_jump: f64,
    /// A higher one goes before all lower ones where requests queue.
    pub(crate) strict_priority: u32,
    /// The policy class that it names, where requests queue by classes.
    pub(crate) policy_class: Option<&'a str>,
    /// When an answer is of no use any more.
    pub(crate) deadline: Option<Instant>,
    /// Labels that its worker must have, all of them.
    pub(crate) required_taints: &'a [String],
    /// Labels that its worker should have, by weight.
    pub(crate) preferred_taints: &'a [(String, f64)],
    /// Settings of its own.
    pub(crate) overrides: RouterOverrides,
}
