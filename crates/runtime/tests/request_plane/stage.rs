//! Two request planes, or one that asks itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_runtime::{
    TaskScope,
    metrics::Metrics,
    request_plane::{
        Handler, OpenError, OutgoingRequest, RequestPlane, RequestPlaneConfig, RequestPlaneMetrics,
        ResponseStream, ServeGuard, StreamError, StreamProgress, Target,
    },
};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Local,
}

pub(crate) struct Stage {
    pub(crate) transport: Transport,
    pub(crate) scope: TaskScope,
    pub(crate) server_scope: TaskScope,
    pub(crate) client: RequestPlane,
    pub(crate) server: RequestPlane,
    client_metrics: Metrics,
    server_metrics: Metrics,
}

pub(crate) fn config() -> RequestPlaneConfig {
    RequestPlaneConfig::standard("127.0.0.1:0")
}

pub(crate) async fn plane(scope: &TaskScope, config: &RequestPlaneConfig) -> (RequestPlane, Metrics) {
    let metrics = Metrics::new();
    let families = RequestPlaneMetrics::new(&metrics).unwrap();
    (RequestPlane::start(scope.clone(), config.clone(), families).await.unwrap(), metrics)
}

impl Stage {
    pub(crate) async fn new(transport: Transport) -> Self {
        Self::with(transport, config()).await
    }

    pub(crate) async fn with(transport: Transport, config: RequestPlaneConfig) -> Self {
        let scope = TaskScope::root(tokio::runtime::Handle::current());
        let server_scope = scope.child("server");
        let (server, server_metrics) = plane(&server_scope, &config).await;
        let (client, client_metrics) = match transport {
            Transport::Tcp => plane(&scope.child("client"), &config).await,
            Transport::Local => (server.clone(), server_metrics.clone()),
        };
        Self { transport, scope, server_scope, client, server, client_metrics, server_metrics }
    }

    pub(crate) fn serve(&self, handler: impl Handler) -> ServeGuard {
        self.server.serve("ns/comp/ep", Arc::new(handler))
    }

    pub(crate) fn target(&self) -> Target {
        Target { address: self.server.address().to_string(), path: "ns/comp/ep".to_owned() }
    }

    pub(crate) async fn open(&self, payload: impl Into<Bytes>) -> Result<ResponseStream, OpenError> {
        self.open_request(request(payload)).await
    }

    pub(crate) async fn open_request(&self, request: OutgoingRequest) -> Result<ResponseStream, OpenError> {
        tokio::time::timeout(PATIENCE, self.client.open(&self.target(), request))
            .await
            .expect("opening takes too long")
    }

    pub(crate) fn buffered(&self) -> i64 {
        let of = |metrics: &Metrics| value(metrics, "dynamo_request_plane_buffered_bytes");
        match self.transport {
            Transport::Tcp => of(&self.client_metrics) + of(&self.server_metrics),
            Transport::Local => of(&self.server_metrics),
        }
    }

    pub(crate) fn slow_readers(&self) -> i64 {
        value(&self.server_metrics, "dynamo_request_plane_slow_reader_cancels_total")
    }

    /// Nothing is left of any stream.
    pub(crate) async fn assert_idle(&self) {
        until("streams end", || self.client.streams() + self.server.streams() == 0).await;
        until("buffers are empty", || self.buffered() == 0).await;
        let inflight = "dynamo_request_plane_inflight_requests";
        assert_eq!((value(&self.client_metrics, inflight), value(&self.server_metrics, inflight)), (0, 0));
    }

    pub(crate) async fn shut_down(self) {
        self.scope.cancel();
        tokio::time::timeout(PATIENCE, self.scope.closed()).await.expect("tasks stay behind");
    }
}

pub(crate) fn value(metrics: &Metrics, name: &str) -> i64 {
    let mut text = String::new();
    metrics.encode_text(&mut text);
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

pub(crate) fn request(payload: impl Into<Bytes>) -> OutgoingRequest {
    OutgoingRequest { id: "request-1".into(), payload: payload.into(), time_left: None, metadata: Vec::new() }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Reads to the end.
pub(crate) async fn collect(stream: &mut ResponseStream) -> (Vec<Vec<u8>>, Result<(), StreamError>) {
    let mut items = Vec::new();
    let end = loop {
        let progress =
            std::future::poll_fn(|cx| stream.poll_items(cx, &mut |item| items.push(item.to_vec())));
        let progress = tokio::time::timeout(PATIENCE, progress).await.expect("the answer does not end");

        match progress {
            StreamProgress::More => {}
            StreamProgress::End => break Ok(()),
            StreamProgress::Failed(error) => break Err(error),
        }
    };
    (items, end)
}

/// Each behaviour becomes two tests.
macro_rules! over_both_transports {
    ($($name:ident),* $(,)?) => {
        mod tcp {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::stage::Transport::Tcp).await;
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::stage::Transport::Local).await;
            })*
        }
    };
}
pub(crate) use over_both_transports;
