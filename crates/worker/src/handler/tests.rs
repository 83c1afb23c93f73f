use std::time::Duration;

use dynamo_engine_api::{PreprocessedRequest, encode_request};
use dynamo_runtime::{
    EndpointId, Metrics, OpenError, RequestPlane, RequestPlaneConfig, RequestPlaneMetrics, Runtime,
    request_plane::{OutgoingRequest, ResponseStream, ServeGuard, Target},
};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use super::*;
use crate::metrics::ComponentMetrics;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the engine of a test does with a submission.
type Submit = Box<dyn Fn(&FakeEngine, Submission) + Send + Sync>;

struct FakeEngine {
    submit: Submit,
    aborted: Mutex<Vec<RequestKey>>,
    changed: Condvar,
}

impl Engine for FakeEngine {
    fn submit(&self, submission: Submission) {
        (self.submit)(self, submission);
    }

    fn abort(&self, key: RequestKey, _reason: AbortReason) {
        self.aborted.lock().push(key);
        self.changed.notify_all();
    }

    fn clear_cache(&self) {}
}

struct Setting {
    engine: Arc<FakeEngine>,
    metrics: Metrics,
    plane: RequestPlane,
    _mount: ServeGuard,
    _runtime: Runtime,
}

impl Setting {
    async fn new(submit: impl Fn(&FakeEngine, Submission) + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new(Handle::current());
        let metrics = Metrics::new();
        let plane = RequestPlane::start(
            runtime.planes_scope().child("plane"),
            RequestPlaneConfig::standard("127.0.0.1:0"),
            RequestPlaneMetrics::new(&metrics).unwrap(),
        );
        let plane = plane.await.unwrap();
        let engine = Arc::new(FakeEngine {
            submit: Box::new(submit),
            aborted: Mutex::default(),
            changed: Condvar::new(),
        });
        let series = ComponentMetrics::new(&metrics)
            .unwrap()
            .endpoint(&EndpointId::new("ns", "backend", "generate"), 7);
        let mount = plane.serve("generate", Arc::new(GenerateHandler::new(engine.clone(), series)));
        Self { engine, metrics, plane, _mount: mount, _runtime: runtime }
    }

    async fn open(&self, time_left: Duration) -> Result<ResponseStream, OpenError> {
        let mut payload = Vec::new();
        let request = PreprocessedRequest { token_ids: vec![1, 2], ..PreprocessedRequest::default() };
        encode_request(&request, &mut payload);
        let target = Target { address: self.plane.address().to_string(), path: "generate".into() };
        let request = OutgoingRequest {
            id: "test".into(),
            payload: payload.into(),
            time_left: Some(time_left),
            metadata: vec![],
        };
        self.plane.open(&target, request).await
    }

    fn errors(&self, kind: &str) -> bool {
        let mut text = String::new();
        self.metrics.encode_text(&mut text);
        text.lines().any(|line| {
            line.starts_with("dynamo_component_errors_total")
                && line.contains(&format!("error_type=\"{kind}\""))
                && line.ends_with(" 1")
        })
    }
}

#[tokio::test]
async fn a_refusal_comes_before_the_request_is_accepted() {
    for (refused, expected) in [
        (Refused::Overloaded("full".into()), StreamError::Overloaded("full".into())),
        (Refused::Unavailable("gone".into()), StreamError::Unavailable("gone".into())),
        (Refused::Invalid("too long".into()), failure(INVALID_REQUEST, "too long")),
    ] {
        let setting = Setting::new(move |_, mut submission| submission.sink.refuse(refused.clone())).await;
        let Err(error) = setting.open(PATIENCE).await else { panic!("it was accepted") };
        assert!(format!("{error:?}").contains(&format!("{expected:?}")), "{error:?} is not {expected:?}");
        assert!(setting.errors(GENERATE));
    }
}

#[tokio::test]
async fn an_engines_failure_is_counted_and_ends_the_stream_cleanly() {
    let setting = Setting::new(|_, mut submission| {
        let finish_reason = Some(FinishReason::Error("no memory".into()));
        submission.sink.push(&EngineOutput { finish_reason, ..EngineOutput::default() });
        submission.sink.flush();
    })
    .await;
    let mut stream = setting.open(PATIENCE).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    assert!(stream.next().await.is_none());
    assert!(setting.errors(GENERATE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_comes_before_the_engine_knows_the_request_is_not_lost() {
    // The first abort comes while the engine is still taking the request: it knows no such one.
    let setting = Setting::new(|engine, submission| {
        let mut aborted = engine.aborted.lock();
        while aborted.is_empty() {
            assert!(!engine.changed.wait_for(&mut aborted, PATIENCE).timed_out(), "it was never cancelled");
        }
        assert_eq!(aborted[0], submission.key);
        aborted.clear();
    })
    .await;
    let _ = setting.open(Duration::from_millis(20)).await;
    assert_eq!(setting.engine.aborted.lock().len(), 1, "told again once it could know");
}

#[tokio::test]
async fn an_open_stream_does_not_keep_the_engine() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sinks = kept.clone();
    let setting = Setting::new(move |_, submission| sinks.lock().push(submission.sink)).await;
    let _stream = setting.open(PATIENCE).await.unwrap();
    let engine = Arc::downgrade(&setting.engine);
    let Setting { engine: own, _mount, .. } = setting;
    drop((own, _mount));
    assert_eq!(kept.lock().len(), 1);
    assert!(engine.upgrade().is_none(), "who ends the engine ends its streams");
}
