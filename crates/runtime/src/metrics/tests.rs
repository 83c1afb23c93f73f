use super::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn text(metrics: &Metrics) -> String {
    let mut text = String::new();
    metrics.encode_text(&mut text);
    text
}

fn value(metrics: &Metrics, series: &str) -> f64 {
    let text = text(metrics);
    let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
    line.unwrap_or_else(|| panic!("{series} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn asking_twice_gives_the_same_family() {
    let metrics = Metrics::new();
    metrics.counter("requests_total", "Requests").unwrap().inc();
    metrics.clone().counter("requests_total", "Requests").unwrap().inc();
    assert_eq!(value(&metrics, "requests_total"), 2.0);
}

#[test]
fn another_type_or_a_bad_name_is_refused() {
    let metrics = Metrics::new();
    metrics.counter("requests_total", "Requests").unwrap();
    let error = metrics.gauge("requests_total", "Requests").unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
    assert!(matches!(metrics.gauge("not a name", "x"), Err(MetricsError::Invalid { .. })));
}

#[test]
fn two_registries_share_nothing() {
    let (left, right) = (Metrics::new(), Metrics::new());
    left.counter("a_total", "a").unwrap().inc();
    right.counter("a_total", "a").unwrap();
    assert_eq!(value(&right, "a_total"), 0.0);
}

#[test]
fn a_worker_that_leaves_takes_its_series_with_it() {
    let metrics = Metrics::new();
    let load = metrics.gauge_vec("load", "Load", &["model", LABEL_WORKER]).unwrap();
    let wait = metrics.histogram_vec("wait", "Wait", &[1.0, 2.0], &[LABEL_WORKER]).unwrap();
    for worker in ["a1", "b2"] {
        load.with_label_values(&["m", worker]).set(3);
        load.with_label_values(&["n", worker]).set(4);
        wait.with_label_values(&[worker]).observe(1.5);
    }
    assert_eq!(metrics.remove_series(LABEL_WORKER, "a1"), 3);
    let text = text(&metrics);
    assert!(!text.contains("a1") && text.contains("load{model=\"n\",worker_id=\"b2\"} 4"), "{text}");
}

#[test]
fn bounds_show_before_they_are_hit() {
    let metrics = Metrics::new();
    let hits = BoundHits::new(&metrics).unwrap().of("event_queue");
    assert_eq!(value(&metrics, "dynamo_bound_hits_total{bound=\"event_queue\"}"), 0.0);
    hits.inc();
    assert_eq!(value(&metrics, "dynamo_bound_hits_total{bound=\"event_queue\"}"), 1.0);
}

#[test]
fn process_metrics_are_read_at_each_scrape() {
    static ALLOCATIONS: AtomicU64 = AtomicU64::new(5);
    let metrics = Metrics::new();
    let sources = ProcessSources {
        started: Instant::now(),
        tasks: Box::new(|| 7),
        allocations: Some(|| ALLOCATIONS.load(Ordering::Relaxed)),
    };
    register_process_metrics(&metrics, sources).unwrap();
    assert_eq!(value(&metrics, "dynamo_process_tasks"), 7.0);
    assert_eq!(value(&metrics, "dynamo_process_allocations_total"), 5.0);
    ALLOCATIONS.store(9, Ordering::Relaxed);
    assert_eq!(value(&metrics, "dynamo_process_allocations_total"), 9.0);
    let first = value(&metrics, "dynamo_component_uptime_seconds");
    assert!(value(&metrics, "dynamo_component_uptime_seconds") > first);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_descriptors_and_cpu_time_are_this_process_s() {
    let metrics = Metrics::new();
    let sources = ProcessSources { started: Instant::now(), tasks: Box::new(|| 0), allocations: None };
    register_process_metrics(&metrics, sources).unwrap();
    assert!(value(&metrics, "process_resident_memory_bytes") > 1e6);
    assert!(value(&metrics, "process_open_fds") >= 3.0);
    assert!(value(&metrics, "process_cpu_seconds_total") > 0.0);
}
