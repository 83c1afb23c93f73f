//! Lets routers in other processes ask the indexes of this one.
//!
//! An endpoint's routers are asked together: models that share a component have a router each, and who asks knows only its
//! own workers. A question names the size of blocks, and only indexes of that size answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dynamo_kv_router::{IndexQuery, RankMatches};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, ServeError, ServedEndpoint, TaskScope,
    request_plane::{Handler, IncomingRequest, Responder, StreamError},
};
use dynamo_tokens::LocalBlockHash;
use parking_lot::RwLock;
use prometheus::IntCounterVec;
use tokio::sync::{Mutex, Semaphore};

use crate::router::Router;

/// How often an index that begins is looked at whether it knows what the workers hold.
const LOOK: Duration = Duration::from_millis(20);
/// From one try to register to the next.
const RETRY: Duration = Duration::from_secs(1);
/// Questions of more bytes are answered in the blocking pool: of 16,000 blocks, which takes some 0.3 ms.
const INLINE_BYTES: usize = 128 << 10;
/// Long questions that are answered at once or wait for it; more are refused, and are at most 64 MiB of hashes.
const LONG_QUESTIONS: usize = 64;
/// The code of a question that makes no sense, or that no index here can answer.
const INVALID_QUESTION: u16 = 400;

type Routers = Arc<RwLock<Vec<Arc<Router>>>>;

/// What this process serves, by endpoint. No more than its models.
pub(crate) struct IndexServers {
    runtime: DistributedRuntime,
    queries: IntCounterVec,
    desks: Mutex<BTreeMap<EndpointId, Desk>>,
}

struct Desk {
    routers: Routers,
    _served: ServedEndpoint,
}

impl IndexServers {
    /// Serves nothing yet; `queries` counts by status.
    pub(crate) fn new(runtime: DistributedRuntime, queries: IntCounterVec) -> Self {
        Self { runtime, queries, desks: Mutex::default() }
    }

    /// Serves a router's index at `endpoint` from when it is settled until the scope is cancelled.
    pub(crate) async fn serve(
        &self,
        endpoint: EndpointId,
        router: &Arc<Router>,
        is_settled: impl Fn() -> bool,
        scope: &TaskScope,
    ) {
        let joined = async {
            while !is_settled() {
                tokio::time::sleep(LOOK).await;
            }
            while let Err(error) = self.join(&endpoint, router).await {
                tracing::warn!(%endpoint, %error, "the index cannot be served yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = scope.cancelled() => {}
            () = joined => {
                tracing::info!(%endpoint, "the index is served to others");
                scope.cancelled().await;
            }
        }
        self.leave(&endpoint, router).await;
    }

    async fn join(&self, endpoint: &EndpointId, router: &Arc<Router>) -> Result<(), ServeError> {
        let mut desks = self.desks.lock().await;
        if let Some(desk) = desks.get(endpoint) {
            desk.routers.write().push(router.clone());
            return Ok(());
        }
        let routers: Routers = Arc::new(RwLock::new(vec![router.clone()]));
        let handler = IndexHandler {
            routers: routers.clone(),
            queries: self.queries.clone(),
            long: Arc::new(Semaphore::new(LONG_QUESTIONS)),
            scope: self.runtime.scope().clone(),
        };
        let served = self.runtime.serve_endpoint(endpoint.clone(), Arc::new(handler)).await?;
        desks.insert(endpoint.clone(), Desk { routers, _served: served });
        Ok(())
    }

    async fn leave(&self, endpoint: &EndpointId, router: &Arc<Router>) {
        let mut desks = self.desks.lock().await;
        let Some(desk) = desks.get(endpoint) else { return };
        let mut routers = desk.routers.write();
        routers.retain(|known| !Arc::ptr_eq(known, router));
        let is_over = routers.is_empty();
        drop(routers);
        if is_over {
            desks.remove(endpoint);
        }
    }
}

/// Answers questions.
struct IndexHandler {
    routers: Routers,
    queries: IntCounterVec,
    long: Arc<Semaphore>,
    scope: TaskScope,
}

impl Handler for IndexHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let (routers, queries) = (self.routers.clone(), self.queries.clone());
        if request.payload.len() <= INLINE_BYTES {
            return reply(&routers, &queries, &request.payload, responder);
        }
        let Ok(turn) = self.long.clone().try_acquire_owned() else {
            queries.with_label_values(&["overloaded"]).inc();
            return responder
                .fail(StreamError::Overloaded("too many long questions to the index".to_owned()));
        };
        self.scope.spawn_blocking("long-index-query", move || {
            let _turn = turn;
            reply(&routers, &queries, &request.payload, responder);
        });
    }
}

fn reply(routers: &Routers, queries: &IntCounterVec, question: &[u8], mut responder: Responder) {
    match answer(&routers.read(), question) {
        Ok(answer) => {
            queries.with_label_values(&["ok"]).inc();
            responder.push(&answer);
            responder.finish();
        }
        Err(message) => {
            queries.with_label_values(&["invalid"]).inc();
            responder.fail(StreamError::Application { code: INVALID_QUESTION, message });
        }
    }
}

fn answer(routers: &[Arc<Router>], question: &[u8]) -> Result<Vec<u8>, String> {
    let query: IndexQuery = rmp_serde::from_slice(question).map_err(|error| error.to_string())?;
    let mut blocks: Vec<LocalBlockHash> = Vec::new();
    query.read_blocks(&mut blocks).map_err(|error| error.to_string())?;
    let mut found = RankMatches::default();
    let mut fits =
        routers.iter().filter(|router| router.block_size().get() as u32 == query.block_size).peekable();
    if fits.peek().is_none() {
        return Err(format!("no index here has blocks of {} tokens", query.block_size));
    }
    fits.for_each(|router| router.tell_matches(&blocks, &mut found));
    rmp_serde::to_vec_named(&found).map_err(|error| error.to_string())
}
