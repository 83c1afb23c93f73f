use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// A family that cannot be built: the program's mistake, found when it starts.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The name is taken by a family of another type.
    #[error("metric {0} is registered already with another type; give one of them another name")]
    OtherType(String),
    /// A name, label or bucket list that Prometheus does not allow.
    #[error("metric {name} cannot be registered: {reason}")]
    Invalid {
        /// The family.
        name: String,
        /// What the library said.
        reason: prometheus::Error,
    },
}

/// A registry of metric families. Clones share it; every `DistributedRuntime` has its own.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

type Refresh = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    registry: Registry,
    /// Bounded by the names written in the program.
    families: Mutex<HashMap<String, Box<dyn Any + Send + Sync>>>,
    refreshers: Mutex<Vec<Refresh>>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricsError> {
        self.family(name, || IntCounter::new(name, help))
    }

    /// A counter per combination of labels.
    pub fn counter_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, MetricsError> {
        self.family(name, || IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A whole-numbered gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.family(name, || IntGauge::new(name, help))
    }

    /// A whole-numbered gauge per combination of labels.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricsError> {
        self.family(name, || IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A gauge of fractions.
    pub fn float_gauge(&self, name: &str, help: &str) -> Result<Gauge, MetricsError> {
        self.family(name, || Gauge::new(name, help))
    }

    /// A gauge of fractions per combination of labels.
    pub fn float_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, MetricsError> {
        self.family(name, || GaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram; `buckets` are the upper bounds, ascending.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, MetricsError> {
        self.family(name, || Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    /// A histogram per combination of labels.
    pub fn histogram_vec(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, MetricsError> {
        let options = || HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.family(name, || HistogramVec::new(options(), labels))
    }

    /// `refresh` runs before each scrape: the place to set gauges that are cheaper to read than to maintain.
    pub fn on_scrape(&self, refresh: impl Fn() + Send + Sync + 'static) {
        self.inner.refreshers.lock().push(Box::new(refresh));
    }

    /// Appends all families in Prometheus' text format.
    pub fn encode_text(&self, buffer: &mut String) {
        encode(&self.gather(), buffer);
    }

    /// Removes every series of labelled families in which label `name` has the value `value`; returns how many. Called
    /// when a worker leaves, so that it takes its series with it.
    pub fn remove_series(&self, name: &str, value: &str) -> usize {
        let families = self.inner.families.lock();
        let mut removed = 0;
        for family in families.values() {
            removed += remove_from::<IntCounterVec>(family.as_ref(), name, value)
                + remove_from::<IntGaugeVec>(family.as_ref(), name, value)
                + remove_from::<GaugeVec>(family.as_ref(), name, value)
                + remove_from::<HistogramVec>(family.as_ref(), name, value);
        }
        removed
    }

    fn gather(&self) -> Vec<MetricFamily> {
        for refresh in self.inner.refreshers.lock().iter() {
            refresh();
        }
        self.inner.registry.gather()
    }

    fn family<C>(&self, name: &str, build: impl FnOnce() -> prometheus::Result<C>) -> Result<C, MetricsError>
    where
        C: Collector + Clone + Any + Send + Sync,
    {
        let mut families = self.inner.families.lock();
        if let Some(known) = families.get(name) {
            return known
                .downcast_ref::<C>()
                .cloned()
                .ok_or_else(|| MetricsError::OtherType(name.to_owned()));
        }
        let invalid = |reason| MetricsError::Invalid { name: name.to_owned(), reason };
        let family = build().map_err(invalid)?;
        self.inner.registry.register(Box::new(family.clone())).map_err(invalid)?;
        families.insert(name.to_owned(), Box::new(family.clone()));
        Ok(family)
    }
}

fn encode(families: &[MetricFamily], buffer: &mut String) {
    // Writing to a string fails only for a family without series or a histogram without buckets; `gather` yields neither.
    if let Err(error) = TextEncoder::new().encode_utf8(families, buffer) {
        tracing::error!(%error, "metrics cannot be encoded");
    }
}

/// A family with labels, whose series can be removed.
trait Labelled: Collector + 'static {
    fn remove(&self, labels: &HashMap<&str, &str>) -> bool;
}

macro_rules! labelled {
    ($($family:ty),*) => {$(
        impl Labelled for $family {
            fn remove(&self, labels: &HashMap<&str, &str>) -> bool {
                <$family>::remove(self, labels).is_ok()
            }
        }
    )*};
}
labelled!(IntCounterVec, IntGaugeVec, GaugeVec, HistogramVec);

fn remove_from<F: Labelled>(family: &(dyn Any + Send + Sync), name: &str, value: &str) -> usize {
    let Some(family) = family.downcast_ref::<F>() else { return 0 };
    let mut removed = 0;
    for gathered in family.collect() {
        for series in gathered.get_metric() {
            let labels: HashMap<&str, &str> =
                series.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
            if labels.get(name) == Some(&value) && family.remove(&labels) {
                removed += 1;
            }
        }
    }
    removed
}
