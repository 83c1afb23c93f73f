//! What the router knows, for `/metrics`: read when somebody scrapes, so that nothing is kept up to date for nobody.

use std::sync::{Arc, Weak};

use dynamo_kv_router::EventCounters;
use dynamo_runtime::metrics::{Metrics, MetricsError};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec};

use crate::{catalog::Shared, router::Router};

const WORKER_LABELS: [&str; 3] = ["worker_id", "dp_rank", "worker_type"];
const QUEUE_LABELS: [&str; 3] = ["model", "worker_type", "policy_class"];

pub(crate) struct CatalogMetrics {
    decode_blocks: IntGaugeVec,
    prefill_tokens: IntGaugeVec,
    active_requests: IntGaugeVec,
    prefill_speed: IntGaugeVec,
    queue_requests: IntGaugeVec,
    queue_isl_tokens: IntGaugeVec,
    queue_cached_tokens: IntGaugeVec,
    active_bytes: IntGaugeVec,
    index_blocks: IntGaugeVec,
    index_bytes: IntGaugeVec,
    sent_blocks: IntGaugeVec,
    sent_bytes: IntGaugeVec,
    queued_events: IntGaugeVec,
    queued_blocks: IntGaugeVec,
    broken_lanes: IntGaugeVec,
    cold_workers: IntGaugeVec,
    unfound_workers: IntGaugeVec,
    lower_bytes: IntGaugeVec,
    events: IntCounterVec,
    /// What each model's index had counted when it was last looked at: the family grows by the difference, and does not
    /// shrink when a model leaves. No more than twice the models.
    counted: Mutex<Vec<(Weak<Router>, EventCounters)>>,
}

impl CatalogMetrics {
    /// Registers the families; they read the catalogue for as long as it lives.
    pub(crate) fn register(metrics: &Metrics, shared: &Arc<Shared>) -> Result<(), MetricsError> {
        let families = Self {
            decode_blocks: metrics.gauge_vec(
                "dynamo_frontend_worker_active_decode_blocks",
                "KV blocks of the requests that this router has running on a worker",
                &WORKER_LABELS,
            )?,
            prefill_tokens: metrics.gauge_vec(
                "dynamo_frontend_worker_active_prefill_tokens",
                "Prompt tokens that a worker has still to compute for this router",
                &WORKER_LABELS,
            )?,
            active_requests: metrics.gauge_vec(
                "dynamo_frontend_worker_active_requests",
                "Requests that this router has running on a worker",
                &WORKER_LABELS,
            )?,
            prefill_speed: metrics.gauge_vec(
                "dynamo_frontend_worker_prefill_tokens_per_second",
                "Prompt tokens that a worker computes in a second, as this router measured it",
                &WORKER_LABELS,
            )?,
            queue_requests: metrics.gauge_vec(
                "dynamo_frontend_router_queue_pending_requests",
                "Requests that wait for a worker",
                &QUEUE_LABELS,
            )?,
            queue_isl_tokens: metrics.gauge_vec(
                "dynamo_frontend_router_queue_pending_isl_tokens",
                "Prompt tokens of requests that wait for a worker",
                &QUEUE_LABELS,
            )?,
            queue_cached_tokens: metrics.gauge_vec(
                "dynamo_frontend_router_queue_pending_cached_tokens",
                "Of those, tokens that some worker had cached when they came",
                &QUEUE_LABELS,
            )?,
            active_bytes: metrics.gauge_vec(
                "dynamo_kvrouter_active_bytes",
                "Memory of what is known of running requests",
                &["model"],
            )?,
            index_blocks: metrics.gauge_vec(
                "dynamo_kvrouter_index_blocks",
                "Pairs of worker rank and cached block in the prefix index",
                &["model"],
            )?,
            index_bytes: metrics.gauge_vec(
                "dynamo_kvrouter_index_bytes",
                "Memory of the prefix index",
                &["model"],
            )?,
            sent_blocks: metrics.gauge_vec(
                "dynamo_kvrouter_sent_blocks",
                "Pairs of worker rank and block of a prompt that was sent there and may still be cached",
                &["model"],
            )?,
            sent_bytes: metrics.gauge_vec(
                "dynamo_kvrouter_sent_bytes",
                "Memory of what was sent to workers and may still be cached",
                &["model"],
            )?,
            queued_events: metrics.gauge_vec(
                "dynamo_kvrouter_index_queued_events",
                "KV events that wait for a lane of the prefix index",
                &["model"],
            )?,
            queued_blocks: metrics.gauge_vec(
                "dynamo_kvrouter_index_queued_blocks",
                "Blocks of the KV events that wait for a lane of the prefix index",
                &["model"],
            )?,
            broken_lanes: metrics.gauge_vec(
                "dynamo_kvrouter_index_broken",
                "1 if a lane of the prefix index broke: what it knows is out of date, restart",
                &["model"],
            )?,
            cold_workers: metrics.gauge_vec(
                "dynamo_kvrouter_cold_workers",
                "Workers that are routed to as if they held nothing, for their dump is not in",
                &["model"],
            )?,
            unfound_workers: metrics.gauge_vec(
                "dynamo_kvrouter_unfound_workers",
                "Workers that report blocks among which nothing that they served is ever found: they hash otherwise",
                &["model"],
            )?,
            lower_bytes: metrics.gauge_vec(
                "dynamo_kvrouter_index_lower_bytes",
                "Memory of the prefix index of lower tiers, where a worker with any has all of its blocks",
                &["model"],
            )?,
            events: metrics.counter_vec(
                "dynamo_kvrouter_kv_cache_events_applied",
                "KV cache events that reached the prefix index, by outcome",
                &["event_type", "status"],
            )?,
            counted: Mutex::new(Vec::new()),
        };
        let shared = Arc::downgrade(shared);
        metrics.on_scrape(move || families.refresh(&shared));
        Ok(())
    }

    fn refresh(&self, shared: &Weak<Shared>) {
        for family in [
            &self.decode_blocks,
            &self.prefill_tokens,
            &self.active_requests,
            &self.prefill_speed,
            &self.queue_requests,
            &self.queue_isl_tokens,
            &self.queue_cached_tokens,
            &self.active_bytes,
            &self.index_blocks,
            &self.index_bytes,
            &self.sent_blocks,
            &self.sent_bytes,
            &self.queued_events,
            &self.queued_blocks,
            &self.broken_lanes,
            &self.cold_workers,
            &self.unfound_workers,
            &self.lower_bytes,
        ] {
            family.reset();
        }
        let Some(shared) = shared.upgrade() else { return };
        let mut counted = self.counted.lock();
        counted.retain(|(router, _)| router.strong_count() > 0);
        for (name, served) in shared.models.load().iter() {
            self.cold_workers.with_label_values(&[name]).set(served.cold_workers() as i64);
            for (router, worker_type) in served.routers() {
                self.refresh_router(name, &router, worker_type.label());
                self.count_events(&mut counted, &router);
            }
        }
    }

    /// Adds what a model's router knows: a model may have two.
    fn refresh_router(&self, name: &str, router: &Router, worker_type: &str) {
        for (worker, load) in router.loads() {
            let labels = [&worker.worker_id.to_string(), &worker.dp_rank.to_string(), worker_type];
            self.decode_blocks.with_label_values(&labels).add(load.decode_blocks.round() as i64);
            self.prefill_tokens.with_label_values(&labels).add(load.prefill_tokens as i64);
            self.active_requests.with_label_values(&labels).add(i64::from(load.requests));
        }
        for (worker, speed) in router.prefill_speeds() {
            let labels = [&worker.worker_id.to_string(), &worker.dp_rank.to_string(), worker_type];
            self.prefill_speed.with_label_values(&labels).set(speed.round() as i64);
        }
        for (class, depth) in router.queue_depths() {
            let labels = [name, worker_type, class];
            self.queue_requests.with_label_values(&labels).set(depth.requests as i64);
            self.queue_isl_tokens.with_label_values(&labels).set(depth.isl_tokens as i64);
            self.queue_cached_tokens.with_label_values(&labels).set(depth.cached_tokens as i64);
        }
        let (index, sent) = (router.index(), router.sent_counts());
        let (counts, lanes) = (index.counts(), index.gauges());
        for (family, value) in [
            (&self.unfound_workers, router.unfound_workers()),
            (&self.active_bytes, router.active_bytes()),
            (&self.index_blocks, counts.blocks),
            (&self.index_bytes, counts.bytes),
            (&self.lower_bytes, index.lower_counts().bytes),
            (&self.sent_blocks, sent.blocks),
            (&self.sent_bytes, sent.bytes),
            (&self.queued_events, lanes.queued_events),
            (&self.queued_blocks, lanes.queued_blocks),
            (&self.broken_lanes, usize::from(index.broken().is_some())),
        ] {
            family.with_label_values(&[name]).add(value as i64);
        }
    }

    /// Adds what a router's index has counted since it was last looked at.
    fn count_events(&self, counted: &mut Vec<(Weak<Router>, EventCounters)>, router: &Arc<Router>) {
        let counters = router.index().counters();
        let router = Arc::downgrade(router);
        let place = match counted.iter().position(|(known, _)| known.ptr_eq(&router)) {
            Some(place) => place,
            None => {
                counted.push((router, EventCounters::default()));
                counted.len() - 1
            }
        };
        let before = std::mem::replace(&mut counted[place].1, counters);
        for (kind, status, count) in counters.iter() {
            let new = count.saturating_sub(before.get(kind, status));
            if new > 0 {
                self.events.with_label_values(&[kind.label(), status.label()]).inc_by(new);
            }
        }
    }
}
