//! A request's place in its worker's load.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::{ActiveSequenceChange, PrefillLoadHint, Reservation, ReservationId, WorkerRank};
use dynamo_tokens::{LocalBlockHash, SequenceHash};

use super::{RouteRequest, Router};

/// A request's place in its worker's load; taken back when dropped.
pub(crate) struct Booking {
    router: Arc<Router>,
    id: Option<ReservationId>,
    worker: WorkerRank,
    overlap_blocks: u32,
    /// Of the request, where other routers are told.
    lora_name: Option<String>,
    /// Of the prompt, if it has one: a sequence begins with its first block's own hash.
    first_block: Option<LocalBlockHash>,
    started: Instant,
    first_token: Option<Instant>,
    /// The last one, if any was given.
    sign_of_life: Option<Instant>,
    last_token: Option<Instant>,
    tokens: usize,
}

impl Booking {
    pub(super) fn new(
        router: Arc<Router>,
        request: &RouteRequest<'_>,
        reservation: &Reservation,
        sequence: &[SequenceHash],
        now: Instant,
    ) -> Self {
        let selection = &reservation.selection;
        let input_tokens = request.tokens.len();
        let cached = selection.overlap_blocks as usize * router.block_size.get();
        router.meters.requests_started.inc();
        router.meters.input_tokens.observe(input_tokens as f64);
        router.meters.hit_rate.observe(cached as f64 / input_tokens.max(1) as f64);
        let told = request.adapter.filter(|_| router.replicas.is_some());
        let booking = Self {
            router,
            lora_name: told.map(|adapter| adapter.name.to_owned()),
            id: Some(reservation.id),
            worker: selection.worker,
            overlap_blocks: selection.overlap_blocks,
            first_block: sequence.first().map(|first| LocalBlockHash(first.0)),
            started: now,
            first_token: None,
            sign_of_life: None,
            last_token: None,
            tokens: 0,
        };
        booking.tell(|router| {
            let kv = &router.config.kv;
            let prefill_tokens = reservation.prefill_tokens;
            ActiveSequenceChange::AddRequest {
                token_sequence: kv.track_active_blocks.then(|| sequence.to_vec()),
                track_prefill_tokens: kv.track_prefill_tokens,
                expected_output_tokens: request.expected_output_tokens,
                prefill_load_hint: kv
                    .track_prefill_tokens
                    .then_some(PrefillLoadHint { initial_effective_prefill_tokens: prefill_tokens }),
            }
        });
        booking
    }

    /// The worker and rank.
    pub(crate) fn worker(&self) -> (u64, DpRank) {
        (self.worker.worker_id, self.worker.dp_rank)
    }

    /// Leading blocks of the prompt that the worker is believed to hold.
    pub(crate) fn overlap_blocks(&self) -> u32 {
        self.overlap_blocks
    }

    /// The worker's answer went on, by `tokens`: the first time ends the prefill, and each block counts. An answer that
    /// is slow to fill a block gives a sign of life now and then, so that it goes on counting.
    pub(crate) fn on_progress(&mut self, tokens: usize, now: Instant) {
        let Some(id) = self.id else { return };
        let block_size = self.router.block_size.get();
        let blocks = (self.tokens + tokens) / block_size - self.tokens / block_size;
        self.tokens += tokens;
        self.last_token = Some(now);
        let alive = self.sign_of_life.is_some_and(|at| now < at + self.router.sign_of_life);
        if alive && blocks == 0 {
            return;
        }
        let mut scheduler = self.router.scheduler.lock();
        // After the first time it is a sign of life and nothing else.
        scheduler.mark_prefill_completed(id, now);
        for _ in 0..blocks {
            scheduler.add_output_block(id, now);
        }
        drop(scheduler);
        self.sign_of_life = Some(now);
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.on_first_token(now.saturating_duration_since(self.started));
        }
    }

    fn on_first_token(&self, took: Duration) {
        let router = &self.router;
        router.meters.time_to_first_token.observe(took.as_secs_f64());
        self.tell(|_| ActiveSequenceChange::MarkPrefillCompleted);
        router.call_next();
    }

    /// The request is over.
    pub(crate) fn release(&mut self) {
        let Some(id) = self.id else { return };
        self.tell(|_| ActiveSequenceChange::Free);
        self.id = None;
        let router = &self.router;
        router.scheduler.lock().free(id, Instant::now());
        if let (Some(first_block), Some(last)) = (self.first_block, self.last_token) {
            router.unfound.served(self.worker, first_block, last);
        }
        router.meters.requests.inc();
        router.meters.output_tokens.observe(self.tokens as f64);
        if let (Some(first), Some(last), 2..) = (self.first_token, self.last_token, self.tokens) {
            let each =
                last.saturating_duration_since(first) / u32::try_from(self.tokens - 1).unwrap_or(u32::MAX);
            router.meters.inter_token_latency.observe(each.as_secs_f64());
        }
        router.call_next();
    }

    /// Tells other routers, where there are any.
    fn tell(&self, what: impl FnOnce(&Router) -> ActiveSequenceChange) {
        if let (Some(replicas), Some(id)) = (&self.router.replicas, self.id) {
            let told = replicas.tell(id, self.worker, what(&self.router), self.lora_name.clone());
            if !told {
                self.router.meters.outbox_full.inc();
            }
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.release();
    }
}
