use crate::metrics::{BoundHits, Histogram, IntCounter, IntGauge, Metrics, MetricsError};

/// Upper bounds in seconds, from a loopback round trip to a long prompt.
const SECONDS: [f64; 14] =
    [0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The families of a request plane, built once.
#[derive(Clone)]
pub struct RequestPlaneMetrics {
    pub(super) streams: IntGauge,
    pub(super) buffered: IntGauge,
    pub(super) send_seconds: Histogram,
    pub(super) first_item_seconds: Histogram,
    pub(super) slow_readers: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) bytes_sent: IntCounter,
    pub(super) bytes_received: IntCounter,
    pub(super) writes: IntCounter,
    pub(super) reads: IntCounter,
    pub(super) errors: IntCounter,
    pub(super) accept_backoffs: IntCounter,
    pub(super) stream_bound: IntCounter,
    pub(super) connection_bound: IntCounter,
}

impl RequestPlaneMetrics {
    /// Takes or makes the families in a registry.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let bounds = BoundHits::new(metrics)?;
        let seconds = |name, help| metrics.histogram(name, help, &SECONDS);
        Ok(Self {
            streams: metrics
                .gauge("dynamo_request_plane_inflight_requests", "Open streams, asking and serving")?,
            buffered: metrics.gauge(
                "dynamo_request_plane_buffered_bytes",
                "Bytes of requests and items that wait for credit or for their reader",
            )?,
            send_seconds: seconds(
                "dynamo_request_plane_send_seconds",
                "From opening a stream to its acceptance",
            )?,
            first_item_seconds: seconds(
                "dynamo_request_plane_roundtrip_ttft_seconds",
                "From opening a stream to its first item",
            )?,
            slow_readers: metrics.counter(
                "dynamo_request_plane_slow_reader_cancels_total",
                "Streams ended because nobody read",
            )?,
            connections: metrics.gauge("dynamo_transport_tcp_connections", "Open connections")?,
            bytes_sent: metrics
                .counter("dynamo_transport_tcp_bytes_sent_total", "Bytes written to sockets")?,
            bytes_received: metrics
                .counter("dynamo_transport_tcp_bytes_received_total", "Bytes read from sockets")?,
            writes: metrics.counter("dynamo_transport_tcp_writes_total", "Writes to sockets")?,
            reads: metrics.counter("dynamo_transport_tcp_reads_total", "Reads from sockets")?,
            errors: metrics.counter(
                "dynamo_transport_tcp_errors_total",
                "Connections that failed or could not be opened",
            )?,
            accept_backoffs: metrics
                .counter("dynamo_transport_tcp_accept_backoff_total", "Pauses after a failed accept")?,
            stream_bound: bounds.of("request_plane_streams"),
            connection_bound: bounds.of("request_plane_connections"),
        })
    }
}
