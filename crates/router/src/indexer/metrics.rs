//! The `dynamo_kvindexer_*` families, and the index's own.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use dynamo_kv_router::EventCounters;
use dynamo_runtime::metrics::{BoundHits, Gauge, Histogram, IntCounter, Metrics, MetricsError};
use parking_lot::Mutex;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};

use super::{
    registry::{ModelIndex, Registry},
    source::ListenerStatus,
};

/// The first bucket, in seconds; each of the others is twice the one before.
const FIRST_BUCKET: f64 = 0.0001;
const BUCKETS: usize = 20;

/// The paths that there are; others share a label.
pub(super) const PATHS: [&str; 10] = [
    "/register",
    "/unregister",
    "/workers",
    "/query",
    "/query_by_hash",
    "/dump",
    "/peers",
    "/register_peer",
    "/deregister_peer",
    "/health",
];

/// What requests count.
pub(super) struct RequestMetrics {
    errors: IntCounterVec,
    durations: HistogramVec,
    requests: IntCounterVec,
    /// Connections that had to wait for another one's end.
    pub(super) connection_bound: IntCounter,
    /// Access log lines that were dropped.
    pub(super) access_log_bound: IntCounter,
    /// Dumps that were refused because others were being written.
    pub(super) dump_bound: IntCounter,
    pub(super) recovery_seconds: Gauge,
    pub(super) recovered_blocks: IntGauge,
}

impl RequestMetrics {
    pub(super) fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let buckets: Vec<f64> = (0..BUCKETS).map(|power| FIRST_BUCKET * (1u64 << power) as f64).collect();
        let bounds = BoundHits::new(metrics)?;
        Ok(Self {
            errors: metrics.counter_vec(
                "dynamo_kvindexer_errors_total",
                "HTTP error responses (4xx/5xx)",
                &["endpoint", "status_class"],
            )?,
            durations: metrics.histogram_vec(
                "dynamo_kvindexer_request_duration_seconds",
                "HTTP request latency",
                &buckets,
                &["endpoint"],
            )?,
            requests: metrics.counter_vec(
                "dynamo_kvindexer_requests_total",
                "Total HTTP requests",
                &["endpoint", "method"],
            )?,
            connection_bound: bounds.of("indexer_connections"),
            access_log_bound: bounds.of("indexer_access_log"),
            dump_bound: bounds.of("indexer_dumps"),
            recovery_seconds: metrics.float_gauge(
                "dynamo_kvindexer_recovery_seconds",
                "How long taking over from a peer took at the start",
            )?,
            recovered_blocks: metrics.gauge(
                "dynamo_kvindexer_recovered_blocks",
                "Blocks that were taken over from a peer at the start",
            )?,
        })
    }

    /// A request was answered. `/metrics` itself does not count.
    pub(super) fn answered(&self, path: &str, method: &str, status: u16, elapsed: Duration) {
        if path == "/metrics" {
            return;
        }
        let endpoint = PATHS.into_iter().find(|known| *known == path).unwrap_or("other");
        let method = match method {
            "GET" | "POST" => method,
            _ => "other",
        };
        self.requests.with_label_values(&[endpoint, method]).inc();
        let duration: Histogram = self.durations.with_label_values(&[endpoint]);
        duration.observe(elapsed.as_secs_f64());
        let class = match status {
            400..500 => "4xx",
            500.. => "5xx",
            _ => return,
        };
        self.errors.with_label_values(&[endpoint, class]).inc();
    }
}

/// What is read from the registry when somebody scrapes.
struct RegistryMetrics {
    listeners: IntGaugeVec,
    models: IntGauge,
    workers: IntGauge,
    blocks: IntGaugeVec,
    bytes: IntGaugeVec,
    queued_messages: IntGaugeVec,
    queued_events: IntGaugeVec,
    queued_blocks: IntGaugeVec,
    broken: IntGaugeVec,
    refills: IntCounter,
    events: IntCounterVec,
    batches: IntCounter,
    lost: IntCounter,
    restarts: IntCounter,
    /// What each index had counted when it was last looked at: the family does not shrink when an index goes. No more
    /// than there are indexes.
    counted: Mutex<Vec<(Weak<ModelIndex>, EventCounters)>>,
}

/// Registers the families of a registry; they read it for as long as it lives.
pub(super) fn register(metrics: &Metrics, registry: &Arc<Registry>) -> Result<(), MetricsError> {
    let labels = ["model", "routing_group"];
    let families = RegistryMetrics {
        listeners: metrics.gauge_vec(
            "dynamo_kvindexer_listeners",
            "Number of ZMQ listeners by status",
            &["status"],
        )?,
        models: metrics.gauge("dynamo_kvindexer_models", "Number of active model+routing-group indexers")?,
        workers: metrics.gauge("dynamo_kvindexer_workers", "Number of registered worker instances")?,
        blocks: metrics.gauge_vec(
            "dynamo_kvindexer_index_blocks",
            "Pairs of worker rank and cached block in the index",
            &labels,
        )?,
        bytes: metrics.gauge_vec("dynamo_kvindexer_index_bytes", "Memory of the index", &labels)?,
        queued_messages: metrics.gauge_vec(
            "dynamo_kvindexer_queued_messages",
            "Messages of engines that wait to be brought to the index",
            &labels,
        )?,
        queued_events: metrics.gauge_vec(
            "dynamo_kvindexer_index_queued_events",
            "KV events that wait for a lane of the index",
            &labels,
        )?,
        queued_blocks: metrics.gauge_vec(
            "dynamo_kvindexer_index_queued_blocks",
            "Blocks of the KV events that wait for a lane of the index",
            &labels,
        )?,
        broken: metrics.gauge_vec(
            "dynamo_kvindexer_index_broken",
            "1 if a lane of the index broke: its answers are not to be trusted, restart",
            &labels,
        )?,
        refills: metrics.counter(
            "dynamo_kvindexer_refills_total",
            "Engine ranks of which a peer gave what was missing between its dump and the first message heard",
        )?,
        events: metrics.counter_vec(
            "dynamo_kvrouter_kv_cache_events_applied",
            "KV cache events that reached the prefix index, by outcome",
            &["event_type", "status"],
        )?,
        batches: metrics
            .counter("dynamo_kvindexer_batches_total", "Messages of engines that were applied")?,
        lost: metrics.counter(
            "dynamo_kvindexer_lost_messages_total",
            "Messages of engines that were lost and could not be had again",
        )?,
        restarts: metrics
            .counter("dynamo_kvindexer_engine_restarts_total", "Engines that began their events anew")?,
        counted: Mutex::new(Vec::new()),
    };
    let registry = Arc::downgrade(registry);
    metrics.on_scrape(move || {
        if let Some(registry) = registry.upgrade() {
            families.refresh(&registry);
        }
    });
    Ok(())
}

impl RegistryMetrics {
    /// Those whose series go with their model.
    fn by_model(&self) -> [&IntGaugeVec; 6] {
        let Self { blocks, bytes, queued_messages, queued_events, queued_blocks, broken, .. } = self;
        [blocks, bytes, queued_messages, queued_events, queued_blocks, broken]
    }

    fn refresh(&self, registry: &Registry) {
        let models = registry.models();
        let mut by_status = [0i64; ListenerStatus::ALL.len()];
        let mut workers = 0;
        for family in self.by_model() {
            family.reset();
        }
        let mut counted = self.counted.lock();
        counted.retain(|(model, _)| model.strong_count() > 0);
        for (key, model) in &models {
            {
                let engines = model.engines.read();
                workers += engines.len();
                for listening in engines.values().flat_map(|ranks| ranks.values()) {
                    by_status[registry.status(listening) as usize] += 1;
                }
            }
            let counts = model.index.counts();
            let labels = [key.model_name.as_str(), key.routing_group.as_str()];
            self.blocks.with_label_values(&labels).set(counts.blocks as i64);
            self.bytes.with_label_values(&labels).set(counts.bytes as i64);
            let queued = model.index.gauges();
            self.queued_messages.with_label_values(&labels).set(registry.waiting_messages(key) as i64);
            self.queued_events.with_label_values(&labels).set(queued.queued_events as i64);
            self.queued_blocks.with_label_values(&labels).set(queued.queued_blocks as i64);
            self.broken.with_label_values(&labels).set(i64::from(model.index.is_broken()));
            self.count(&mut counted, model);
        }
        for status in ListenerStatus::ALL {
            self.listeners.with_label_values(&[status.label()]).set(by_status[status as usize]);
        }
        self.models.set(models.len() as i64);
        self.workers.set(workers as i64);
        let counters = registry.counters();
        for (family, now) in [
            (&self.batches, counters.batches()),
            (&self.lost, counters.lost()),
            (&self.restarts, counters.restarts()),
            (&self.refills, counters.refills()),
        ] {
            family.inc_by(now.saturating_sub(family.get()));
        }
    }

    fn count(&self, counted: &mut Vec<(Weak<ModelIndex>, EventCounters)>, model: &Arc<ModelIndex>) {
        let counters = model.index.counters();
        let weak = Arc::downgrade(model);
        let place = counted.iter().position(|(known, _)| known.ptr_eq(&weak)).unwrap_or_else(|| {
            counted.push((weak, EventCounters::default()));
            counted.len() - 1
        });
        let before = std::mem::replace(&mut counted[place].1, counters);
        for (kind, status, count) in counters.iter() {
            let grown = count - before.get(kind, status);
            self.events.with_label_values(&[kind.label(), status.label()]).inc_by(grown);
        }
    }
}
