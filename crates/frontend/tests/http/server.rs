//! A service on a free port, within the test's own runtime.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dynamo_frontend::{
    HttpConfig, HttpService, bind,
    fake::{FakeCatalog, FakeModel, Record},
};
use dynamo_runtime::{Metrics, Phase};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) records: Vec<Arc<Record>>,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(models: Vec<FakeModel>) -> Self {
        Self::with(models, |_| {}).await
    }

    pub(crate) async fn with(models: Vec<FakeModel>, change: impl FnOnce(&mut HttpConfig)) -> Self {
        let mut config = HttpConfig::from_env(&|_| None).unwrap();
        change(&mut config);
        let records = models.iter().map(|model| model.record.clone()).collect();
        let metrics = Metrics::new();
        let (phase, phases) = watch::channel(Phase::Running);
        let catalog = Arc::new(FakeCatalog::new(models));
        let service = HttpService::new(config, catalog, metrics.clone(), phases).unwrap();
        let listener = bind("127.0.0.1", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(service.serve(listener));
        Self { address, records, metrics, phase, tasks }
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

    /// The sum of a family's values over all series that have these labels; for a histogram, its observations.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut text = String::new();
        self.metrics.encode_text(&mut text);
        let of_family = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let rest = rest.strip_prefix("_count").unwrap_or(rest);
            (rest.is_empty() || rest.starts_with('{')).then_some((rest, value))
        });
        let matching = of_family.filter(|(series, _)| {
            labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")))
        });
        matching.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
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
