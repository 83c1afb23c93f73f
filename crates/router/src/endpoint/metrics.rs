//! What a router process counts beside what the router within it does.

use dynamo_llm::EndpointRouter;
use dynamo_runtime::metrics::{IntCounter, Metrics, MetricsError};

/// One router's series.
#[derive(Clone)]
pub(super) struct ServiceMetrics {
    /// Requests that no worker answered to the end.
    pub(super) failed: IntCounter,
}

impl ServiceMetrics {
    /// Makes the families; those that tell of the router's state read it when somebody scrapes.
    pub(super) fn new(
        metrics: &Metrics,
        router: &EndpointRouter,
        booked: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Result<Self, MetricsError> {
        let name = |name: &str| format!("dynamo_component_router_{name}");
        let gauge = |family: &str, help: &str| metrics.gauge(&name(family), help);
        let gauges = [
            gauge(
                "cold_workers",
                "Workers that are routed to as if they held nothing, for their dump is not in",
            )?,
            gauge("mismatched_workers", "Workers that are not used because their blocks have another size")?,
            gauge(
                "unfound_workers",
                "Workers that report blocks among which nothing that they served is ever found: they hash otherwise",
            )?,
            gauge("index_blocks", "Pairs of worker rank and cached block in the prefix index")?,
            gauge("index_bytes", "Memory of the prefix index")?,
            gauge(
                "sent_blocks",
                "Pairs of worker rank and block of a prompt that was sent there and may still be cached",
            )?,
            gauge("sent_bytes", "Memory of what was sent to workers and may still be cached")?,
            gauge("bookings", "Requests that others run and have booked here")?,
        ];
        let late = metrics.counter(&name("late_dumps_total"), "Workers whose dump did not come in time")?;
        let speed = metrics.gauge_vec(
            &name("worker_prefill_tokens_per_second"),
            "Prompt tokens that a worker computes in a second, as this router measured it",
            &["worker_id", "dp_rank"],
        )?;
        let router = router.clone();
        metrics.on_scrape(move || {
            speed.reset();
            for (worker, tokens) in router.prefill_speeds() {
                let labels = [worker.worker_id.to_string(), worker.dp_rank.to_string()];
                speed.with_label_values(&labels).set(tokens.round() as i64);
            }
            let status = router.status();
            let values = [
                status.cold_workers,
                status.mismatched_workers,
                status.unfound_workers,
                status.index.blocks,
                status.index.bytes,
                status.sent.blocks,
                status.sent.bytes,
                booked(),
            ];
            gauges.iter().zip(values).for_each(|(gauge, value)| gauge.set(value as i64));
            late.inc_by((status.late_dumps as u64).saturating_sub(late.get()));
        });
        Ok(Self {
            failed: metrics
                .counter(&name("requests_failed_total"), "Requests that no worker answered to the end")?,
        })
    }
}
