//! `best_worker_id` and `best_worker`: whom a request would go to, and the books of requests that others send.

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::PreprocessedRequest;
use dynamo_llm::EndpointRouter;
use dynamo_runtime::{
    TaskScope,
    request_plane::{Handler, IncomingRequest, Responder, StreamError},
};
use serde::Serialize;

use super::{
    bookings::{BookingRefused, Bookings},
    generate::INVALID_REQUEST,
    protocol::{Form, LoadEntry, RouterAnswer, RouterRequest, prompt},
};

/// Serves `best_worker_id`.
pub(super) struct BestWorkerIdHandler {
    pub(super) router: EndpointRouter,
}

#[derive(Serialize)]
struct BestWorker {
    worker_id: u64,
    dp_rank: u32,
    overlap_blocks: u32,
}

impl Handler for BestWorkerIdHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let form = Form::of(&request.payload);
        let found = form.read::<PreprocessedRequest>(&request.payload).map_err(invalid).and_then(|request| {
            let (worker, overlap_blocks) = self.router.best_worker(&request)?;
            Ok(BestWorker { worker_id: worker.worker_id, dp_rank: worker.dp_rank, overlap_blocks })
        });
        answer(form, found, responder);
    }
}

/// Serves `best_worker`.
pub(super) struct BestWorkerHandler {
    pub(super) router: EndpointRouter,
    pub(super) bookings: Arc<Bookings>,
    pub(super) scope: TaskScope,
}

impl Handler for BestWorkerHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let form = Form::of(&request.payload);
        let asked = match form.read(&request.payload) {
            Ok(asked) => asked,
            Err(message) => return responder.fail(invalid(message)),
        };
        let desk = Desk { router: self.router.clone(), bookings: self.bookings.clone() };
        let scope = self.scope.clone();
        // A new request waits for its turn where requests queue.
        self.scope.spawn("best-worker", async move {
            tokio::select! {
                done = desk.serve(asked, &request.id, request.deadline) => answer(form, done, responder),
                () = scope.cancelled() => {}
            }
        });
    }
}

/// Where one question is answered.
struct Desk {
    router: EndpointRouter,
    bookings: Arc<Bookings>,
}

impl Desk {
    async fn serve(
        &self,
        asked: RouterRequest,
        stream_id: &str,
        deadline: Option<Instant>,
    ) -> Result<RouterAnswer, StreamError> {
        let now = Instant::now();
        Ok(match asked {
            RouterRequest::New { tokens, request_id, lora_name, cache_salt, expected_output_tokens } => {
                let id = request_id.unwrap_or_else(|| stream_id.to_owned());
                self.bookings.admit(&id).map_err(|refused| match refused {
                    BookingRefused::Full => StreamError::Overloaded(refused.to_string()),
                    BookingRefused::Id => invalid(refused.to_string()),
                })?;
                let request = prompt(tokens, lora_name, cache_salt, expected_output_tokens);
                let (worker, overlap_blocks, booking) = self.router.book(&request, deadline).await?;
                self.bookings.keep(id, booking, Instant::now());
                RouterAnswer::New { worker_id: worker.worker_id, dp_rank: worker.dp_rank, overlap_blocks }
            }
            RouterRequest::PotentialLoads { tokens } => {
                let loads = self.router.potential_loads(&prompt(tokens, None, None, None))?;
                let entry = |load: dynamo_kv_router::PotentialLoad| LoadEntry {
                    worker_id: load.worker.worker_id,
                    dp_rank: load.worker.dp_rank,
                    potential_prefill_tokens: load.potential_prefill_tokens,
                    potential_decode_blocks: load.potential_decode_blocks.round() as u64,
                    active_requests: load.active_requests,
                };
                let mut loads: Vec<LoadEntry> = loads.into_iter().map(entry).collect();
                loads.sort_by_key(|load| (load.worker_id, load.dp_rank));
                let waiting = self.router.queue_depth();
                RouterAnswer::PotentialLoads {
                    loads,
                    pending_count: waiting.requests as u64,
                    pending_isl_tokens: waiting.isl_tokens,
                }
            }
            RouterRequest::MarkPrefill { request_id } => {
                let id = request_id.as_deref().unwrap_or(stream_id);
                let success = self.bookings.mark(id, now, |booking| booking.mark_prefill(now));
                RouterAnswer::PrefillMarked { success }
            }
            RouterRequest::MarkFree { request_id } => {
                let id = request_id.as_deref().unwrap_or(stream_id);
                RouterAnswer::FreeMarked { success: self.bookings.free(id) }
            }
        })
    }
}

fn invalid(message: String) -> StreamError {
    StreamError::Application { code: INVALID_REQUEST, message }
}

fn answer(form: Form, result: Result<impl Serialize, StreamError>, mut responder: Responder) {
    match result.and_then(|answer| form.write(&answer).map_err(invalid)) {
        Ok(bytes) => {
            responder.push(&bytes);
            responder.finish();
        }
        Err(error) => responder.fail(error),
    }
}
