use std::{
    path::Path,
    time::{Duration, Instant},
};

use dynamo_llm::{CardOptions, Catalog, CatalogConfig, ModelCatalog as _, RouterConfig, RouterMode};
use dynamo_runtime::{
    RuntimeConfig, ServedEndpoint,
    request_plane::{IncomingRequest, Responder},
};
use serde_json::{Value, json};

use super::*;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

fn generate() -> EndpointId {
    EndpointId::new("ns", "backend", "generate")
}

fn card(name: &str) -> ModelCard {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama");
    let name = Some(name.to_owned());
    let options = CardOptions { kv_cache_block_size: 4, name, ..CardOptions::default() };
    ModelCard::from_directory(&model, options).unwrap()
}

/// Members of one deployment in this process.
struct Deployment(RuntimeConfig);

struct Worker {
    adapters: Arc<WorkerAdapters>,
    loaded: Arc<LoadedAdapters>,
    _registered: (ServedEndpoint, Announcement),
}

impl Deployment {
    fn new() -> Self {
        Self(RuntimeConfig::process_local())
    }

    async fn member(&self, worker_id: Option<u64>) -> DistributedRuntime {
        crate::test_member::member(&self.0, worker_id).await
    }

    /// A worker of a model that answers nothing.
    async fn worker(&self, worker_id: u64, model: &str) -> Worker {
        let runtime = self.member(Some(worker_id)).await;
        let refuse = |_: IncomingRequest, _: Responder| {};
        let served = runtime.serve_endpoint(generate(), Arc::new(refuse)).await.unwrap();
        let card = card(model);
        let announced = announce_model(&runtime, &generate(), &card).await.unwrap();
        let loaded = Arc::<LoadedAdapters>::default();
        let adapters = Arc::new(WorkerAdapters::new(runtime, generate(), card, loaded.clone()));
        Worker { adapters, loaded, _registered: (served, announced) }
    }

    /// Names of adapters' records, with the suffixes of their keys.
    async fn records(&self) -> Vec<(String, String)> {
        let observer = self.member(None).await;
        let records = observer.discovery().list(&Query::AllModels).await.unwrap();
        let of = |record: Record| {
            let Record::Model(record) = record else { panic!("{record:?}") };
            Some((record.card["lora"]["name"].as_str()?.to_owned(), record.suffix.unwrap()))
        };
        records.into_iter().filter_map(of).collect()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_adapter_has_a_record_beside_its_base_until_it_is_unloaded() {
    let deployment = Deployment::new();
    let worker = deployment.worker(7, "tiny").await;
    assert!(worker.adapters.load("Org/SQL", Some("s3://b/sql")).await.unwrap());
    assert!(worker.loaded.contains("Org/SQL"));
    assert_eq!(deployment.records().await, [("Org/SQL".to_owned(), "org-sql".to_owned())]);
    assert!(!worker.adapters.load("Org/SQL", Some("s3://b/sql")).await.unwrap(), "it is there");
    let refused = |name: &'static str, source: &'static str| {
        let adapters = worker.adapters.clone();
        async move { adapters.load(name, Some(source)).await.unwrap_err() }
    };
    assert!(matches!(refused("Org/SQL", "s3://b/other").await, AdapterError::Loaded(_)));
    assert!(matches!(refused("org-sql", "s3://b/sql").await, AdapterError::SameKey(..)));
    assert!(matches!(refused("tiny", "s3://b").await, AdapterError::Name(AdapterNameError::OfBase(_))));
    assert!(matches!(refused("", "s3://b").await, AdapterError::Name(AdapterNameError::Empty)));
    worker.adapters.unload("Org/SQL").await.unwrap();
    assert!(!worker.loaded.contains("Org/SQL"));
    assert_eq!(deployment.records().await, []);
    assert!(matches!(worker.adapters.unload("Org/SQL").await, Err(AdapterError::NotLoaded(_))));
    for number in 0..MAX_ADAPTERS {
        worker.adapters.load(&number.to_string(), None).await.unwrap();
    }
    assert!(matches!(refused("one more", "s3://b").await, AdapterError::Full));
    drop(worker);
    assert_eq!(deployment.records().await, [], "they leave with their worker");
}

#[tokio::test]
async fn what_does_not_go_with_others_at_the_endpoint_is_not_registered() {
    let deployment = Deployment::new();
    let (seven, eight) = (deployment.worker(7, "tiny").await, deployment.worker(8, "sql").await);
    let error = seven.adapters.load("sql", None).await.unwrap_err();
    assert!(
        matches!(&error, AdapterError::Incompatible { other, worker_id: 8, .. } if other == "sql"),
        "{error}"
    );
    assert!(!seven.loaded.contains("sql"));
    assert!(seven.adapters.load("chat", None).await.is_err(), "the endpoint has two base models");
    drop(eight);
    seven.adapters.load("sql", None).await.unwrap();
    // Nor is a base model with an adapter's name.
    let runtime = deployment.member(Some(9)).await;
    let refused = check_others(&runtime, &generate(), &[card("sql")]).await;
    assert!(matches!(refused, Err(AdapterError::Incompatible { worker_id: 7, .. })));
}

#[tokio::test]
async fn routes_load_and_unload_on_all_workers_or_on_none() {
    let deployment = Deployment::new();
    let (seven, eight) = (deployment.worker(7, "tiny").await, deployment.worker(8, "tiny").await);
    let group = routes::Group::of([&seven.adapters, &eight.adapters].into_iter());
    let load = |name: &str, uri: &str| json!({"lora_name": name, "source": {"uri": uri}});
    let call = async |route: &str, body: Value| {
        let name = routes::name_in(&body);
        match route {
            "load_lora" => routes::answer(name, group.load(body).await),
            _ => routes::answer(name, group.unload(body).await),
        }
    };
    let answer = call("load_lora", load("sql", "hf://org/sql")).await;
    let id = routes::lora_id("sql");
    assert!(id > 0 && id <= i32::MAX as u32);
    let expected = json!({"status": "success", "message": "loaded", "lora_id": id, "lora_name": "sql"});
    assert_eq!(answer, expected);
    assert_eq!(call("load_lora", load("sql", "hf://org/sql")).await["message"], "loaded already");
    assert_eq!(group.list().await, json!({"status": "success", "count": 1, "loras": {"sql": id}}));
    // The second worker has one of this name from elsewhere: the first does not keep it either.
    eight.adapters.load("chat", Some("hf://other/chat")).await.unwrap();
    let answer = call("load_lora", load("chat", "hf://org/chat")).await;
    assert_eq!(answer["status"], "error");
    assert!(answer["message"].as_str().unwrap().contains("another source"), "{answer}");
    assert_eq!(
        (seven.adapters.names().await, eight.adapters.names().await.len()),
        (vec!["sql".to_owned()], 2)
    );
    for wrong in [load("a", ""), json!({"lora_name": "a"}), load("tiny", "hf://x")] {
        assert_eq!(call("load_lora", wrong.clone()).await["status"], "error", "{wrong}");
    }
    assert_eq!(call("unload_lora", json!({"lora_name": "sql"})).await["message"], "unloaded");
    assert_eq!(call("unload_lora", json!({"lora_name": "sql"})).await["status"], "error");
    drop((seven, eight));
    assert_eq!(call("load_lora", load("a", "hf://a")).await["message"], "the worker has ended");
}

#[tokio::test]
async fn a_frontend_has_an_adapter_as_a_model_while_a_worker_has_it() {
    let deployment = Deployment::new();
    let (seven, eight) = (deployment.worker(7, "tiny").await, deployment.worker(8, "tiny").await);
    let frontend = deployment.member(None).await;
    let cache = tempfile::tempdir().unwrap();
    let catalog = Catalog::start(
        &frontend,
        CatalogConfig {
            disagg: dynamo_llm::DisaggConfig::default(),
            router: RouterConfig::of(RouterMode::RoundRobin),
            namespace: None,
            file_cache: cache.path().to_owned(),
            tokenizing: 1,
        },
    );
    let catalog = catalog.unwrap();
    let models = || catalog.list().into_iter().map(|model| model.id).collect::<Vec<_>>();
    seven.adapters.load("sql", None).await.unwrap();
    until("base and adapter are models", || models() == ["sql", "tiny"]).await;
    let sql = catalog.get("sql").unwrap();
    assert_eq!((sql.info().id.as_str(), sql.info().kv_block_size), ("sql", 4));
    eight.adapters.load("chat", None).await.unwrap();
    eight.adapters.load("sql", None).await.unwrap();
    until("another adapter is one", || models() == ["chat", "sql", "tiny"]).await;
    let listed = catalog.list().into_iter().find(|model| model.id == "sql").unwrap();
    assert_eq!(listed.created, sql.info().created, "it is the same one");
    // One of its two workers unloads it, and then the other.
    seven.adapters.unload("sql").await.unwrap();
    eight.adapters.unload("chat").await.unwrap();
    until("chat is gone", || models() == ["sql", "tiny"]).await;
    assert!(!catalog.is_known("chat") && catalog.get("chat").is_none());
    eight.adapters.unload("sql").await.unwrap();
    until("sql is gone", || models() == ["tiny"]).await;
    assert!(!catalog.is_known("sql") && catalog.is_known("tiny"));
    // It comes back, and goes with its worker's records.
    eight.adapters.load("sql", None).await.unwrap();
    until("sql is back", || models() == ["sql", "tiny"]).await;
    drop(eight);
    until("sql went with its worker", || models() == ["tiny"]).await;
    assert!(!catalog.is_known("sql"));
}
