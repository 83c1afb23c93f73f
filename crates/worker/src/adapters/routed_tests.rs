//! Requests for an adapter from a router to a simulated engine, and the engine's blocks back to the router.

use std::time::{Duration, Instant};

use dynamo_engine_api::{PreprocessedRequest, RoutingHints, StopConditions};
use dynamo_llm::{EndpointRouter, EndpointRouterConfig, RouterConfig, RouterMode, UNKNOWN_ADAPTER};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, Metrics, Runtime, RuntimeConfig, request_plane::StreamError,
};

use crate::{WirePorts, Workers, test_member::tiny_worker};

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);
const PROMPT: u32 = 40;

async fn workers(config: &RuntimeConfig, loras: &[&str], over_the_wire: bool) -> Workers {
    tiny_worker(config, |worker| {
        if over_the_wire {
            worker.wire_ports = vec![WirePorts::default()];
        }
        worker.loras = loras.iter().map(|&name| name.to_owned()).collect();
    })
    .await
}

struct Router {
    router: EndpointRouter,
    _runtime: DistributedRuntime,
}

impl Router {
    async fn new(config: &RuntimeConfig, workers: usize) -> Self {
        let mut config = config.clone();
        config.metrics = Metrics::new();
        let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
        let runtime = DistributedRuntime::new(runtime, config).await.unwrap();
        let router = EndpointRouterConfig {
            endpoint: EndpointId::parse("ns.backend.generate"),
            router: RouterConfig::of(RouterMode::Kv),
            block_size: None,
            dump_patience: PATIENCE,
        };
        let router = EndpointRouter::start(&runtime, router, runtime.scope().child("router")).unwrap();
        let this = Self { router, _runtime: runtime };
        this.until("settled", async |router| router.is_settled() && router.loads().len() == workers).await;
        this
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut(&EndpointRouter) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.router).await {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.router.dump());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends a prompt and reads the answer; says who gave it.
    async fn send(&self, request: &PreprocessedRequest) -> Result<u64, StreamError> {
        let mut request = request.clone();
        let mut stream = self.router.forward(&mut request, "test".into(), None, Vec::new()).await?;
        let worker = stream.worker().0;
        while let Some(item) = stream.stream.next().await {
            item?;
        }
        Ok(worker)
    }

    async fn found(&self, request: &PreprocessedRequest) -> u32 {
        self.router.best_worker(request).await.unwrap().1
    }
}

fn prompt(lora_name: Option<&str>) -> PreprocessedRequest {
    PreprocessedRequest {
        token_ids: (0..PROMPT).map(|place| 5 + place * 7 % 90).collect(),
        stop_conditions: StopConditions { max_tokens: Some(2), ..StopConditions::default() },
        routing: RoutingHints { lora_name: lora_name.map(str::to_owned), ..RoutingHints::default() },
        ..PreprocessedRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_an_engine_caches_for_an_adapter_is_found_for_that_adapter_alone() {
    for over_the_wire in [false, true] {
        let config = RuntimeConfig::process_local();
        let _workers = workers(&config, &["sql", "chat"], over_the_wire).await;
        let router = Router::new(&config, 1).await;
        let sql = prompt(Some("sql"));
        router.send(&sql).await.unwrap();
        router.until("it is found", async |_| router.found(&sql).await == PROMPT / 4).await;
        assert_eq!(router.found(&prompt(None)).await, 0);
        assert_eq!(router.found(&prompt(Some("chat"))).await, 0);
        // The base model's own blocks are other ones.
        router.send(&prompt(None)).await.unwrap();
        router.until("it is found", async |_| router.found(&prompt(None)).await == PROMPT / 4).await;
        let found = (router.found(&sql).await, router.found(&prompt(Some("chat"))).await);
        assert_eq!(found, (PROMPT / 4, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_an_adapter_go_to_the_workers_that_have_it() {
    let config = RuntimeConfig::process_local();
    let (plain, adapted) = (workers(&config, &[], false).await, workers(&config, &["sql"], false).await);
    let id = |workers: &Workers| workers.runtime().unwrap().incarnation().worker_id.get();
    let router = Router::new(&config, 2).await;
    router
        .until("the adapter is known", async |router| {
            for _ in 0..20 {
                let (rank, _) = router.best_worker(&prompt(Some("sql"))).await.unwrap();
                if rank.worker_id != id(&adapted) {
                    return false;
                }
            }
            true
        })
        .await;
    for _ in 0..6 {
        assert_eq!(router.send(&prompt(Some("sql"))).await.unwrap(), id(&adapted));
    }
    // The emptier worker may get them all until events of what it stored are here.
    let (mut both, deadline) = (std::collections::BTreeSet::new(), Instant::now() + PATIENCE);
    let mut first_token = 100..;
    while both.len() < 2 && Instant::now() < deadline {
        let mut request = prompt(None);
        request.token_ids[0] = first_token.next().unwrap();
        both.insert(router.send(&request).await.unwrap());
    }
    assert_eq!(both, [id(&plain), id(&adapted)].into());
    // A worker says so itself when it is asked for what it does not have.
    let mut pinned = prompt(Some("nobody's"));
    pinned.routing.worker_id = Some(id(&plain));
    let refused = router.send(&pinned).await;
    assert!(matches!(&refused, Err(StreamError::Application { code: UNKNOWN_ADAPTER, .. })), "{refused:?}");
    // Of which no card says anything, any may have it: all are asked.
    assert!(router.send(&prompt(Some("nobody's"))).await.is_err());
    drop(adapted);
    router.until("it is gone", async |router| router.loads().len() == 1).await;
    assert!(router.send(&prompt(Some("sql"))).await.is_err());
    assert_eq!(router.send(&prompt(None)).await.unwrap(), id(&plain));
}
