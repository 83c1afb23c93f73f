//! `best_worker_id` and `best_worker`: whom a request would go to, and the books of requests that others send.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_engine_api::PreprocessedRequest;
use dynamo_llm::EndpointRouter;
use dynamo_runtime::{
    TaskScope,
    request_plane::{Handler, IncomingRequest, Responder, StreamError},
};
use serde::Serialize;
use tokio::sync::Notify;

use super::{
    bookings::{BookingRefused, Bookings},
    generate::INVALID_REQUEST,
    protocol::{Form, LoadEntry, RouterAnswer, RouterRequest},
};

/// Serves `best_worker_id`.
pub(super) struct BestWorkerIdHandler {
    pub(super) router: EndpointRouter,
    pub(super) scope: TaskScope,
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
        let asked = match form.read::<PreprocessedRequest>(&request.payload) {
            Ok(asked) => asked,
            Err(message) => return responder.fail(invalid(message)),
        };
        let (router, scope) = (self.router.clone(), self.scope.clone());
        // An index elsewhere may have to be asked.
        self.scope.spawn("best-worker-id", async move {
            let finding = async {
                let (worker, overlap_blocks) = router.best_worker(&asked).await?;
                Ok(BestWorker { worker_id: worker.worker_id, dp_rank: worker.dp_rank, overlap_blocks })
            };
            tokio::select! {
                found = finding => answer(form, found, responder),
                () = scope.cancelled() => {}
            }
        });
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
        let cancelled = Arc::new(Notify::new());
        let hook = cancelled.clone();
        responder.on_cancel(move |_| hook.notify_one());
        // A new request waits for its turn where requests queue, as long as somebody waits for the answer.
        self.scope.spawn("best-worker", async move {
            tokio::select! {
                () = cancelled.notified() => {}
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
            RouterRequest::New(new) => {
                let id = new.request_id.clone().unwrap_or_else(|| stream_id.to_owned());
                self.bookings.admit(&id).map_err(|refused| match refused {
                    BookingRefused::Full => StreamError::Overloaded(refused.to_string()),
                    BookingRefused::Id => invalid(refused.to_string()),
                })?;
                let deadline = earlier(deadline, new.deadline_ms, now);
                let request = new.into_prompt();
                let (worker, overlap_blocks, booking) = self.router.book(&request, deadline).await?;
                self.bookings.keep(id, booking, Instant::now());
                RouterAnswer::New { worker_id: worker.worker_id, dp_rank: worker.dp_rank, overlap_blocks }
            }
            RouterRequest::PotentialLoads { tokens } => {
                let prompt = PreprocessedRequest { token_ids: tokens, ..PreprocessedRequest::default() };
                let loads = self.router.potential_loads(&prompt).await?;
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

/// The earlier of the stream's deadline and the request's own, so that nothing is booked for a client that is gone.
fn earlier(stream: Option<Instant>, own_ms: Option<u64>, now: Instant) -> Option<Instant> {
    let own = own_ms.and_then(|left| now.checked_add(Duration::from_millis(left)));
    [stream, own].into_iter().flatten().min()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_counts() {
        let now = Instant::now();
        let at = |milliseconds| Some(now + Duration::from_millis(milliseconds));
        assert_eq!(earlier(at(300), Some(200), now), at(200));
        assert_eq!(earlier(at(100), Some(200), now), at(100));
        assert_eq!((earlier(None, Some(200), now), earlier(at(100), None, now)), (at(200), at(100)));
        assert_eq!(earlier(None, Some(u64::MAX), now), now.checked_add(Duration::from_millis(u64::MAX)));
    }
}
