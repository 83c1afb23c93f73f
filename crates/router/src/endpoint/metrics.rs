//! The `dynamo_component_router_*` families.

use std::time::Instant;

use dynamo_llm::EndpointRouter;
use dynamo_runtime::{
    EndpointId,
    metrics::{Histogram, IntCounter, Metrics, MetricsError},
};

const LABELS: [&str; 3] = ["dynamo_namespace", "dynamo_component", "dynamo_endpoint"];

/// Seconds to a first token.
const TTFT: [f64; 14] = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Seconds between items.
const ITL: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.5, 2.0];
/// Tokens.
const TOKENS: [f64; 12] = [1.0, 10.0, 50.0, 100.0, 500.0, 1e3, 2e3, 4e3, 8e3, 16e3, 64e3, 256e3];
/// Parts of a prompt.
const RATE: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// One router's series.
#[derive(Clone)]
pub(super) struct RouterMetrics {
    pub(super) requests: IntCounter,
    pub(super) started: IntCounter,
    pub(super) failed: IntCounter,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    input_tokens: Histogram,
    output_tokens: Histogram,
    hit_rate: Histogram,
}

impl RouterMetrics {
    /// Makes the families; those that tell of the router's state read it when somebody scrapes.
    pub(super) fn new(
        metrics: &Metrics,
        endpoint: &EndpointId,
        router: &EndpointRouter,
        booked: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Result<Self, MetricsError> {
        let labels = [endpoint.namespace.as_str(), endpoint.component.as_str(), endpoint.endpoint.as_str()];
        let name = |name: &str| format!("dynamo_component_router_{name}");
        let counter = |family: &str, help: &str| {
            Ok(metrics.counter_vec(&name(family), help, &LABELS)?.with_label_values(&labels))
        };
        let histogram = |family: &str, help: &str, buckets: &[f64]| {
            Ok(metrics.histogram_vec(&name(family), help, buckets, &LABELS)?.with_label_values(&labels))
        };
        let gauge = |family: &str, help: &str| metrics.gauge(&name(family), help);
        let gauges = [
            gauge(
                "cold_workers",
                "Workers that are routed to as if they held nothing, for their dump is not in",
            )?,
            gauge("mismatched_workers", "Workers that are not used because their blocks have another size")?,
            gauge("index_blocks", "Pairs of worker rank and cached block in the prefix index")?,
            gauge("index_bytes", "Memory of the prefix index")?,
            gauge("bookings", "Requests that others run and have booked here")?,
        ];
        let late = metrics.counter(&name("late_dumps_total"), "Workers whose dump did not come in time")?;
        let router = router.clone();
        metrics.on_scrape(move || {
            let status = router.status();
            let values = [
                status.cold_workers,
                status.mismatched_workers,
                status.index.blocks,
                status.index.bytes,
                booked(),
            ];
            gauges.iter().zip(values).for_each(|(gauge, value)| gauge.set(value as i64));
            late.inc_by((status.late_dumps as u64).saturating_sub(late.get()));
        });
        Ok(Self {
            requests: counter("requests_total", "Requests whose answer ended, whatever the way")?,
            started: counter("requests_started_total", "Requests that came")?,
            failed: counter("requests_failed_total", "Requests that no worker answered to the end")?,
            time_to_first_token: histogram(
                "time_to_first_token_seconds",
                "From request to first item",
                &TTFT,
            )?,
            inter_token_latency: histogram("inter_token_latency_seconds", "Between items", &ITL)?,
            input_tokens: histogram("input_sequence_tokens", "Prompt tokens of a request", &TOKENS)?,
            output_tokens: histogram("output_sequence_tokens", "Items of an answer", &TOKENS)?,
            hit_rate: histogram(
                "kv_hit_rate",
                "Part of a prompt that its worker was believed to hold",
                &RATE,
            )?,
        })
    }
}

/// What one answer counts.
pub(super) struct AnswerMetrics {
    metrics: RouterMetrics,
    began: Instant,
    last: Option<Instant>,
    items: usize,
}

impl AnswerMetrics {
    /// A request of so many tokens begins.
    pub(super) fn begin(metrics: &RouterMetrics, began: Instant, tokens: usize) -> Self {
        metrics.input_tokens.observe(tokens as f64);
        Self { metrics: metrics.clone(), began, last: None, items: 0 }
    }

    /// A worker was chosen.
    pub(super) fn routed(&self, overlap_tokens: usize, tokens: usize) {
        self.metrics.hit_rate.observe(overlap_tokens as f64 / tokens.max(1) as f64);
    }

    pub(super) fn on_items(&mut self, items: usize, now: Instant) {
        match self.last {
            None => self.metrics.time_to_first_token.observe((now - self.began).as_secs_f64()),
            // Items that came together share the time since those before.
            Some(last) => {
                let each = (now - last).as_secs_f64() / items.max(1) as f64;
                (0..items).for_each(|_| self.metrics.inter_token_latency.observe(each));
            }
        }
        self.last = Some(now);
        self.items += items;
    }
}

impl Drop for AnswerMetrics {
    fn drop(&mut self) {
        self.metrics.requests.inc();
        self.metrics.output_tokens.observe(self.items as f64);
    }
}
