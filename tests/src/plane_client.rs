//! The test as a member of the deployment: it asks endpoints over the request plane.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use dynamo_engine_api::{EngineOutput, KvCacheEventData, PreprocessedRequest, decode_output, encode_request};
use dynamo_kv_router::{KvQuery, KvQueryAnswer};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, OutgoingRequest, Runtime, RuntimeConfig, WorkerId,
    config::{Env, Layers},
    system::SystemFlags,
};

use crate::Stack;

/// No test waits longer for an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// A client of everything in a stack.
pub struct PlaneClient {
    distributed: DistributedRuntime,
    tokio: tokio::runtime::Runtime,
}

/// One block that a rank holds: the name of its parent, its own, and the hash of its tokens.
pub type HeldBlock = (Option<u64>, u64, u64);

/// What is held after `events` were applied in order to an empty rank.
pub fn held_blocks(events: &[KvCacheEventData]) -> BTreeSet<HeldBlock> {
    let mut held = BTreeSet::new();
    for event in events {
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                let mut parent = parent_hash.map(|hash| hash.0);
                for block in blocks {
                    held.insert((parent, block.block_hash.0, block.tokens_hash.0));
                    parent = Some(block.block_hash.0);
                }
            }
            KvCacheEventData::Removed { block_hashes } => {
                held.retain(|(_, name, _)| block_hashes.iter().all(|gone| gone.0 != *name));
            }
            KvCacheEventData::Cleared => held.clear(),
        }
    }
    held
}

impl PlaneClient {
    /// Joins the stack's discovery.
    pub fn join(stack: &Stack) -> Self {
        let tokio = tokio::runtime::Runtime::new().expect("threads");
        let folder = stack.discovery().to_str().expect("a plain path").to_owned();
        let env = Env::from([("DYN_FILE_KV", folder.as_str())]);
        let mut layers = Layers::new(&env, None);
        let config = RuntimeConfig::resolve(&mut layers, SystemFlags::default()).expect("a configuration");
        let joining = DistributedRuntime::new(Runtime::new(tokio.handle().clone()), config);
        let distributed = tokio.block_on(joining).expect("the stack's discovery");
        Self { distributed, tokio }
    }

    /// The workers that serve an endpoint, once there are some.
    pub fn workers(&self, endpoint: &str) -> Vec<u64> {
        let client = self.distributed.client(EndpointId::parse(endpoint));
        let instances = self.tokio.block_on(client.wait_for_instances(LIMIT)).expect("somebody serves it");
        instances.iter().map(|instance| instance.worker_id().get()).collect()
    }

    /// Asks an endpoint, a worker of it if one is named; the items of the answer, or what became of it.
    pub fn ask(&self, endpoint: &str, worker: Option<u64>, payload: Vec<u8>) -> Result<Vec<Bytes>, String> {
        let client = self.distributed.client(EndpointId::parse(endpoint));
        let request = OutgoingRequest {
            id: "test".into(),
            payload: payload.into(),
            time_left: Some(LIMIT),
            metadata: Vec::new(),
        };
        self.tokio.block_on(async {
            client.wait_for_instances(LIMIT).await.map_err(|error| error.to_string())?;
            let opened = match worker {
                Some(worker) => client.direct(request, WorkerId::from_bits(worker)).await,
                None => client.round_robin(request).await,
            };
            let mut stream = opened.map_err(|error| error.to_string())?.stream;
            let mut items = Vec::new();
            while let Some(item) = stream.next().await {
                items.push(item.map_err(|error| error.to_string())?);
            }
            Ok(items)
        })
    }

    /// Asks in JSON.
    pub fn ask_json(
        &self,
        endpoint: &str,
        question: &serde_json::Value,
    ) -> Result<serde_json::Value, String> {
        let items = self.ask(endpoint, None, question.to_string().into_bytes())?;
        serde_json::from_slice(&items.concat()).map_err(|error| error.to_string())
    }

    /// Generates, and gives all outputs.
    pub fn generate(
        &self,
        endpoint: &str,
        worker: Option<u64>,
        request: &PreprocessedRequest,
    ) -> Result<Vec<EngineOutput>, String> {
        let mut payload = Vec::new();
        encode_request(request, &mut payload);
        let items = self.ask(endpoint, worker, payload)?;
        let decode = |item: &Bytes| {
            let mut output = EngineOutput::default();
            decode_output(item, &mut output).map_err(|error| error.to_string())?;
            Ok(output)
        };
        items.iter().map(decode).collect()
    }

    /// What a worker of `dyn://dynamo.backend` says that it holds, and its last event.
    pub fn worker_holds(&self, worker: u64, dp_rank: u32) -> (BTreeSet<HeldBlock>, u64) {
        let query = KvQuery { dp_rank, start_event_id: None, end_event_id: None };
        let payload = rmp_serde::to_vec_named(&query).expect("a query serializes");
        let items = self.ask("dyn://dynamo.backend.kv_query", Some(worker), payload).expect("an answer");
        match rmp_serde::from_slice(&items.concat()).expect("an answer that reads") {
            KvQueryAnswer::TreeDump { events, last_event_id } => {
                let events: Vec<KvCacheEventData> = events.into_iter().map(|event| event.data).collect();
                (held_blocks(&events), last_event_id)
            }
            other => panic!("not a dump: {other:?}"),
        }
    }
}
