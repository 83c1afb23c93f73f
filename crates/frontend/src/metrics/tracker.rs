//! What is measured of one request, from its arrival to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use dynamo_engine_api::CompletionUsage;
use dynamo_llm::Generation;
use dynamo_protocols::Timing;
use prometheus::local::LocalHistogram;

use super::families::{FrontendMetrics, ModelMetrics, WorkerLast, WorkerSeries};
use crate::usage::hit_rate;

/// How often the gaps between a request's tokens go into the shared histogram.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Streamed or whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Stream,
    Unary,
}

impl RequestKind {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Unary => "unary",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Complete.
    Success,
    /// An error was told to the client.
    Error,
    /// All workers were busy.
    Rejected,
    /// Taken back.
    Cancelled,
}

/// Counts one request. Dropped without an outcome, it counts as left by its client.
pub(crate) struct RequestTracker {
    shared: Arc<FrontendMetrics>,
    model: Arc<ModelMetrics>,
    kind: RequestKind,
    received: Instant,
    received_unix: SystemTime,
    first_token: Option<Instant>,
    last_token: Instant,
    last_flush: Instant,
    gaps: Option<LocalHistogram>,
    tokens: u32,
    ended: bool,
}

impl RequestTracker {
    pub(crate) fn start(
        shared: Arc<FrontendMetrics>,
        model: Arc<ModelMetrics>,
        kind: RequestKind,
        received: Instant,
    ) -> Self {
        model.inflight.inc();
        model.active.inc();
        model.queued.inc();
        model.kind(kind).started.inc();
        Self {
            shared,
            model,
            kind,
            received,
            received_unix: SystemTime::now() - received.elapsed(),
            first_token: None,
            last_token: received,
            last_flush: received,
            gaps: None,
            tokens: 0,
            ended: false,
        }
    }

    /// Notes that `count` tokens came since the last call.
    pub(crate) fn tokens(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        self.tokens += count;
        self.model.output_tokens_total.inc_by(count.into());
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.last_flush = now;
            self.model.queued.dec();
            self.model.time_to_first_token.observe((now - self.received).as_secs_f64());
        } else {
            let gaps = self.gaps.get_or_insert_with(|| self.model.inter_token_latency.local());
            let gap = (now - self.last_token).as_secs_f64() / f64::from(count);
            for _ in 0..count {
                gaps.observe(gap);
            }
            if now - self.last_flush >= FLUSH_EVERY {
                gaps.flush();
                self.last_flush = now;
            }
        }
        self.last_token = now;
    }

    /// Tokens so far.
    pub(crate) fn count(&self) -> u32 {
        self.tokens
    }

    /// How long it has been.
    pub(crate) fn elapsed(&self) -> Duration {
        self.received.elapsed()
    }

    /// The times of a request that is about to end.
    pub(crate) fn timing(&self, usage: CompletionUsage) -> Timing {
        let since_unix = self.received_unix.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timing {
            request_received_ms: u64::try_from(since_unix.as_millis()).unwrap_or(u64::MAX),
            ttft_ms: self.first_token.map(|first| (first - self.received).as_secs_f64() * 1e3),
            total_time_ms: self.elapsed().as_secs_f64() * 1e3,
            kv_hit_rate: hit_rate(usage),
        }
    }

    /// Notes the counts that the model gave, and who answered.
    pub(crate) fn usage(&self, usage: CompletionUsage, generation: &dyn Generation) {
        self.model.input_tokens.observe(usage.prompt_tokens.into());
        self.model.output_tokens.observe(usage.completion_tokens.into());
        if let Some(details) = usage.prompt_tokens_details {
            self.model.cached_tokens.observe(details.cached_tokens.into());
        }
        let Some(first) = self.first_token else { return };
        let Some(decode) = generation.worker() else { return };
        let prefill = generation.prefill_worker().filter(|prefill| *prefill != decode);
        let series = |(worker_id, dp_rank), worker_type| WorkerSeries { worker_id, dp_rank, worker_type };
        let prompt = WorkerLast {
            time_to_first_token: Some((first - self.received).as_secs_f64()),
            input_tokens: Some(usage.prompt_tokens),
            inter_token_latency: None,
        };
        let gap = || (self.last_token - first).as_secs_f64() / f64::from(self.tokens - 1);
        let inter_token_latency = (self.tokens > 1).then(gap);
        let answer = match prefill {
            Some(prefill) => {
                self.shared.note_worker(series(prefill, "prefill"), prompt);
                WorkerLast { inter_token_latency, ..WorkerLast::default() }
            }
            None => WorkerLast { inter_token_latency, ..prompt },
        };
        self.shared.note_worker(series(decode, "decode"), answer);
    }

    /// Ends the count.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let kind = self.model.kind(self.kind);
        match outcome {
            Outcome::Success => kind.succeeded.inc(),
            Outcome::Error | Outcome::Rejected | Outcome::Cancelled => kind.failed.inc(),
        }
        match outcome {
            Outcome::Cancelled => kind.cancelled.inc(),
            Outcome::Rejected => self.model.rejections.inc(),
            Outcome::Success | Outcome::Error => {}
        }
        if self.first_token.is_none() {
            self.model.queued.dec();
        }
        if let Some(gaps) = &self.gaps {
            gaps.flush();
        }
        self.model.inflight.dec();
        self.model.active.dec();
        self.model.duration.observe(self.elapsed().as_secs_f64());
    }
}

impl Drop for RequestTracker {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.disconnected.inc();
            self.end(Outcome::Cancelled);
        }
    }
}
