//! An index in another process, asked over the request plane.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dynamo_kv_router::{IndexQuery, RankMatches};
use dynamo_runtime::{
    Client, ClientError, Instance,
    request_plane::{OutgoingRequest, StreamError},
};
use dynamo_tokens::{BlockSize, LocalBlockHash};
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use tokio::time::{Instant, timeout_at};

/// How long a request waits for an answer, over all servers that it asks. A worker computes a prompt of some hundred tokens
/// in this time: waiting longer costs more than most hits are worth. A server answers within a millisecond.
const PATIENCE: Duration = Duration::from_millis(50);
/// An outage is over when nothing has failed for so long: twice the longest time for which a server that failed is left
/// alone, so that one that fails whenever it is tried again is told of once.
const CALM: Duration = Duration::from_secs(10);

/// What became of a question, as the counter labels it (`status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryStatus {
    /// It was answered.
    Ok,
    /// Not in time.
    Timeout,
    /// It was refused, broke off, or the answer made no sense.
    Error,
    /// Nobody is there to ask, or all failed just now.
    NoServer,
}

impl QueryStatus {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::NoServer => "no_server",
        }
    }
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the stream ended without an answer")]
    Empty,
    #[error("the answer does not read: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
}

impl AskError {
    fn is_timeout(&self) -> bool {
        let (Self::Stream(error) | Self::Client(ClientError::Failed(error))) = self else { return false };
        *error == StreamError::DeadlineExceeded
    }
}

/// Asks those who serve an index, in turn. One that does not answer is left alone for a while, as the request plane does
/// with workers, so that requests wait for it seldom.
pub(crate) struct RemoteIndex {
    client: Client,
    block_size: BlockSize,
    patience: Duration,
    turn: AtomicUsize,
    queries: IntCounterVec,
    outage: Outage,
}

impl RemoteIndex {
    /// `client` is one of the index's endpoint, `queries` counts by [`QueryStatus`].
    pub(crate) fn new(client: Client, block_size: BlockSize, queries: IntCounterVec) -> Self {
        let (turn, outage) = (AtomicUsize::new(0), Outage::default());
        Self { client, block_size, patience: PATIENCE, turn, queries, outage }
    }

    /// Who has how much of a prompt; nothing if nobody says so in time.
    pub(crate) async fn ask(&self, blocks: &[LocalBlockHash]) -> Option<RankMatches> {
        // A shorter prompt has no block to be cached; sizes matter to the choice, but not enough to ask for them.
        if blocks.is_empty() {
            return None;
        }
        let deadline = Instant::now() + self.patience;
        let (status, answer) = match self.payload(blocks) {
            Some(payload) => self.ask_in_turn(&payload, deadline).await,
            None => (QueryStatus::Error, None),
        };
        self.queries.with_label_values(&[status.label()]).inc();
        if answer.is_none() {
            if self.outage.failed(Instant::now()) {
                tracing::warn!(
                    endpoint = %self.client.endpoint(),
                    status = status.label(),
                    "no served index says what is cached: requests are routed as if nothing were; is a process with \
                     --serve-indexer there? (told once, others are counted)"
                );
            }
        } else if self.outage.answered(Instant::now()) {
            tracing::info!(endpoint = %self.client.endpoint(), "a served index says again what is cached");
        }
        answer
    }

    fn payload(&self, blocks: &[LocalBlockHash]) -> Option<Bytes> {
        let query = IndexQuery::new(self.block_size, blocks);
        rmp_serde::to_vec_named(&query).ok().map(Bytes::from)
    }

    async fn ask_in_turn(&self, payload: &Bytes, deadline: Instant) -> (QueryStatus, Option<RankMatches>) {
        let instances = self.client.instances();
        let servers: Vec<&Instance> = instances.iter().filter(|server| server.is_available()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut status = QueryStatus::NoServer;
        for place in 0..servers.len() {
            let server = servers[turn.wrapping_add(place) % servers.len()];
            match timeout_at(deadline, self.ask_one(server, payload.clone(), deadline)).await {
                Ok(Ok(answer)) => return (QueryStatus::Ok, Some(answer)),
                Ok(Err(error)) if !error.is_timeout() => {
                    tracing::debug!(%error, server = %server.worker_id(), "a served index did not answer");
                    if matches!(error, AskError::Stream(_)) {
                        // It had accepted, so the client takes it for well.
                        self.client.report_lost(server.incarnation());
                    }
                    status = QueryStatus::Error;
                }
                _ => {
                    self.client.report_lost(server.incarnation());
                    return (QueryStatus::Timeout, None);
                }
            }
        }
        (status, None)
    }

    async fn ask_one(
        &self,
        server: &Instance,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<RankMatches, AskError> {
        let request = OutgoingRequest {
            id: Arc::from("kv-index"),
            payload,
            time_left: Some(deadline.saturating_duration_since(Instant::now())),
            metadata: Vec::new(),
        };
        let mut stream = self.client.open(server, request).await?;
        let answer = stream.next().await.ok_or(AskError::Empty)??;
        // Its end comes with it; a stream that is left before that is taken back at the far end.
        if let Some(Err(error)) = stream.next().await {
            return Err(error.into());
        }
        Ok(rmp_serde::from_slice(&answer)?)
    }
}

/// Whether servers have failed lately, so that it is told of once.
#[derive(Default)]
struct Outage {
    is_on: AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Outage {
    /// Nobody answered; whether it is news.
    fn failed(&self, now: Instant) -> bool {
        let news = self.last.lock().replace(now).is_none();
        self.is_on.store(true, Ordering::Relaxed);
        news
    }

    /// Somebody answered; whether that ends an outage.
    fn answered(&self, now: Instant) -> bool {
        if !self.is_on.load(Ordering::Relaxed) {
            return false;
        }
        let mut last = self.last.lock();
        let is_over = last.is_some_and(|last| now.saturating_duration_since(last) >= CALM);
        if is_over {
            *last = None;
            self.is_on.store(false, Ordering::Relaxed);
        }
        is_over
    }
}

#[cfg(test)]
mod tests;
