//! A service on a free port, within the test's own runtime.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use dynamo_frontend::{
    HttpConfig, HttpService, Phase, bind,
    fake::{FakeCatalog, FakeModel, Record},
};
use prometheus::Registry;
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) registry: Registry,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
}

impl Server {
    pub(crate) fn start(models: Vec<FakeModel>) -> Self {
        Self::with(models, |_| {})
    }

    pub(crate) fn with(models: Vec<FakeModel>, change: impl FnOnce(&mut HttpConfig)) -> Self {
        let mut config = HttpConfig::from_env(&|_| None).unwrap();
        change(&mut config);
        let records = models.iter().map(|model| model.record.clone()).collect();
        let registry = Registry::new();
        let (phase, phases) = watch::channel(Phase::Serving);
        let catalog = Arc::new(FakeCatalog::new(models));
        let service = HttpService::new(config, catalog, registry.clone(), phases).unwrap();
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(service.serve(listener));
        Self { address, records, registry, phase, tasks }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until `serve` has returned.
    pub(crate) async fn ended(&mut self) {
        timeout(PATIENCE, self.tasks.join_next()).await.expect("the service did not end").unwrap().unwrap();
    }

    /// Whether `serve` has returned.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.tasks.try_join_next().is_some()
    }

    /// The sum of a family's values over all labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let matching = metrics.iter().filter(|metric| {
            labels.iter().all(|&(label, value)| {
                metric.get_label().iter().any(|pair| pair.name() == label && pair.value() == value)
            })
        });
        matching
            .map(|metric| {
                metric.get_counter().get_value()
                    + metric.get_gauge().get_value()
                    + metric.get_histogram().get_sample_count() as f64
            })
            .sum()
    }
}

/// Waits until `true_now` says so.
pub(crate) async fn eventually(what: &str, mut true_now: impl FnMut() -> bool) {
    let wait = async {
        while !true_now() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if timeout(PATIENCE, wait).await.is_err() {
        panic!("never came true: {what}");
    }
}
