//! An engine with readers, and a list of what it reported.

use std::sync::Arc;
use std::time::Duration;

use dynamo_engine_api::{
    ActiveLoad, DpRank, Engine, EngineObserver, EngineOutput, FinishReason, KvCacheEventData, OutputSink,
    PreprocessedRequest, Refused, RequestKey, SinkState, StopConditions, Submission,
};
use dynamo_tokens::TokenId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{MockEngine, MockStats, MockerConfig};

/// Longer than anything simulated here takes; a test that waits so long has failed.
pub(super) const TOO_LONG: Duration = Duration::from_secs(24 * 3600);

#[derive(Default)]
pub(super) struct Observed {
    pub(super) events: Mutex<Vec<(DpRank, KvCacheEventData)>>,
    pub(super) loads: Mutex<Vec<ActiveLoad>>,
}

impl EngineObserver for Observed {
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        self.events.lock().extend(events.into_iter().map(|event| (dp_rank, event)));
    }

    fn load(&self, load: ActiveLoad) {
        self.loads.lock().push(load);
    }
}

#[derive(Default)]
pub(super) struct Read {
    /// With the time at which they came.
    pub(super) outputs: Vec<(Instant, EngineOutput)>,
    pub(super) flushed: usize,
    pub(super) dropped: bool,
    pub(super) refused: Option<Refused>,
    pub(super) closed_after: Option<usize>,
}

/// The reader's end of one request.
#[derive(Clone, Default)]
pub(super) struct Reader {
    pub(super) read: Arc<Mutex<Read>>,
    changed: Arc<Notify>,
}

struct Sink(Reader);

impl OutputSink for Sink {
    fn push(&mut self, output: &EngineOutput) -> SinkState {
        let mut read = self.0.read.lock();
        read.outputs.push((Instant::now(), output.clone()));
        if read.closed_after.is_some_and(|count| read.outputs.len() >= count) {
            SinkState::Closed
        } else {
            SinkState::Open
        }
    }

    fn flush(&mut self) {
        let mut read = self.0.read.lock();
        read.flushed = read.outputs.len();
        self.0.changed.notify_one();
    }

    fn refuse(&mut self, refused: Refused) {
        self.0.read.lock().refused = Some(refused);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.read.lock().dropped = true;
        self.0.changed.notify_one();
    }
}

impl Reader {
    pub(super) fn tokens(&self) -> Vec<TokenId> {
        self.read.lock().outputs.iter().flat_map(|(_, output)| output.token_ids.clone()).collect()
    }

    pub(super) fn last(&self) -> EngineOutput {
        self.read.lock().outputs.last().unwrap().1.clone()
    }

    pub(super) fn finish(&self) -> Option<FinishReason> {
        self.last().finish_reason
    }

    pub(super) fn refused(&self) -> Option<Refused> {
        self.read.lock().refused.clone()
    }

    pub(super) fn cached_tokens(&self) -> u32 {
        self.last().completion_usage.unwrap().prompt_tokens_details.unwrap().cached_tokens
    }

    /// Waits until at least so many outputs were flushed.
    pub(super) async fn flushed(&self, count: usize) {
        let until = async {
            while self.read.lock().flushed < count {
                self.changed.notified().await;
            }
        };
        tokio::time::timeout(TOO_LONG, until).await.unwrap();
    }

    /// Waits until the engine let go of the sink.
    pub(super) async fn ended(&self) {
        let until = async {
            while !self.read.lock().dropped {
                self.changed.notified().await;
            }
        };
        tokio::time::timeout(TOO_LONG, until).await.unwrap();
    }
}

pub(super) struct Harness {
    pub(super) engine: MockEngine,
    pub(super) observed: Arc<Observed>,
    pub(super) tasks: JoinSet<()>,
    keys: u64,
}

impl Harness {
    pub(super) fn new(config: MockerConfig) -> Self {
        let observed = Arc::new(Observed::default());
        let mut tasks = JoinSet::new();
        let engine = MockEngine::start(config, observed.clone(), |task| {
            tasks.spawn(task);
        });
        Self { engine: engine.unwrap(), observed, tasks, keys: 0 }
    }

    pub(super) fn submit(&mut self, request: PreprocessedRequest) -> (RequestKey, Reader) {
        self.submit_to(0, request, Reader::default())
    }

    pub(super) fn submit_to(
        &mut self,
        dp_rank: DpRank,
        request: PreprocessedRequest,
        reader: Reader,
    ) -> (RequestKey, Reader) {
        self.keys += 1;
        let key = RequestKey(self.keys);
        let sink = Box::new(Sink(reader.clone()));
        self.engine.submit(Submission { key, dp_rank, request, sink });
        (key, reader)
    }

    /// With a key that may be taken.
    pub(super) fn submit_as(&self, key: RequestKey, request: PreprocessedRequest) -> Reader {
        let reader = Reader::default();
        let sink = Box::new(Sink(reader.clone()));
        self.engine.submit(Submission { key, dp_rank: 0, request, sink });
        reader
    }

    /// Serves requests to their end, all submitted at once.
    pub(super) async fn serve(
        &mut self,
        requests: impl IntoIterator<Item = PreprocessedRequest>,
    ) -> Vec<Reader> {
        let readers: Vec<Reader> = requests.into_iter().map(|request| self.submit(request).1).collect();
        for reader in &readers {
            reader.ended().await;
        }
        readers
    }

    /// Waits until nothing is left of any request.
    pub(super) async fn empty(&self) -> MockStats {
        let until = async {
            loop {
                let stats = self.engine.stats();
                let gauges = [stats.live, stats.running, stats.waiting, stats.used_blocks, stats.held_blocks];
                if gauges == [0; 5] {
                    return stats;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(TOO_LONG, until).await.unwrap()
    }
}

pub(super) fn request(token_ids: Vec<TokenId>, max_tokens: u32) -> PreprocessedRequest {
    let stop_conditions = StopConditions { max_tokens: Some(max_tokens), ..StopConditions::default() };
    PreprocessedRequest { token_ids, stop_conditions, ..PreprocessedRequest::default() }
}

/// A prompt that no other seed has a block in common with.
pub(super) fn prompt(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|i| seed * 100_000 + i).collect()
}

pub(super) fn instant() -> MockerConfig {
    MockerConfig { speedup_ratio: 0.0, ..MockerConfig::default() }
}
