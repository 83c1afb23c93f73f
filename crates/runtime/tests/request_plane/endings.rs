use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_runtime::request_plane::{
    CancelKind, CancelReason, IncomingRequest, OutgoingRequest, PushState, Responder, StreamError,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::stage::{PATIENCE, Stage, Transport, collect, over_both_transports, request, until};

over_both_transports!(
    a_dropped_responder_is_an_incomplete_answer,
    a_handler_may_refuse,
    a_panicking_handler_harms_its_own_request_alone,
    an_unknown_path_is_unavailable_at_once,
    a_failure_comes_after_the_items,
    a_stop_leaves_the_stream_open,
    a_kill_ends_it,
    a_dropped_stream_is_cancelled,
    a_dropped_open_is_cancelled,
    a_callback_set_late_is_called_at_once,
    time_runs_out_for_both,
    a_dropped_guard_refuses_and_running_ones_go_on,
    a_shutdown_ends_what_runs,
);

/// Keeps responders, and hands out the reasons of their cancels.
fn keep(
    stage: &Stage,
) -> (dynamo_runtime::request_plane::ServeGuard, Arc<Mutex<Vec<Responder>>>, mpsc::Receiver<CancelReason>) {
    let (told, reasons) = mpsc::channel(16);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeper = kept.clone();
    let guard = stage.serve(move |_: IncomingRequest, responder: Responder| {
        let told = told.clone();
        responder.on_cancel(move |reason| told.try_send(reason).unwrap());
        keeper.lock().push(responder);
    });
    (guard, kept, reasons)
}

async fn reason(reasons: &mut mpsc::Receiver<CancelReason>) -> CancelReason {
    tokio::time::timeout(PATIENCE, reasons.recv()).await.expect("no cancel comes").unwrap()
}

async fn a_dropped_responder_is_an_incomplete_answer(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    kept.lock()[0].push(b"one");
    kept.lock().clear();
    assert_eq!(collect(&mut stream).await, (vec![b"one".to_vec()], Err(StreamError::Incomplete)));
    assert!(reasons.try_recv().is_err(), "whoever let go is not told");
    drop(stream);
    stage.assert_idle().await;
}

async fn a_handler_may_refuse(transport: Transport) {
    let stage = Stage::new(transport).await;
    let guard = stage.serve(|_: IncomingRequest, responder: Responder| {
        responder.fail(StreamError::Overloaded("busy".into()));
    });
    assert_eq!(stage.open("").await.err(), Some(StreamError::Overloaded("busy".into())));
    // Mounted over it, so that the path is never gone.
    let _guard = stage.serve(|_: IncomingRequest, _: Responder| {});
    drop(guard);
    assert_eq!(stage.open("").await.err(), Some(StreamError::Incomplete));
    stage.assert_idle().await;
}

async fn a_panicking_handler_harms_its_own_request_alone(transport: Transport) {
    let stage = Stage::new(transport).await;
    let _guard = stage.serve(|request: IncomingRequest, responder: Responder| {
        assert!(request.payload.is_empty(), "as this test wants it");
        responder.finish();
    });
    assert_eq!(stage.open("x").await.err(), Some(StreamError::Incomplete));
    assert_eq!(collect(&mut stage.open("").await.unwrap()).await, (vec![], Ok(())));
    stage.assert_idle().await;
}

async fn an_unknown_path_is_unavailable_at_once(transport: Transport) {
    let stage = Stage::new(transport).await;
    let start = Instant::now();
    let error = stage.open("").await.err().unwrap();
    assert_eq!(error, StreamError::Unavailable("nothing is served at ns/comp/ep".into()));
    assert!(error.is_retriable() && start.elapsed() < Duration::from_secs(4));
    stage.assert_idle().await;
}

async fn a_failure_comes_after_the_items(transport: Transport) {
    let stage = Stage::new(transport).await;
    let _guard = stage.serve(|_: IncomingRequest, mut responder: Responder| {
        responder.push(b"some");
        responder.fail(StreamError::Application { code: 7, message: "no more".into() });
    });
    let mut stream = stage.open("").await.unwrap();
    let failure = StreamError::Application { code: 7, message: "no more".into() };
    assert_eq!(collect(&mut stream).await, (vec![b"some".to_vec()], Err(failure)));
    drop(stream);
    stage.assert_idle().await;
}

async fn a_stop_leaves_the_stream_open(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    let start = Instant::now();
    stream.cancel(CancelKind::Stop, CancelReason::NotNeeded);
    assert_eq!(reason(&mut reasons).await, CancelReason::NotNeeded);
    assert!(start.elapsed() < Duration::from_secs(2));
    let mut responder = kept.lock().pop().unwrap();
    assert!(responder.is_cancelled());
    assert_eq!(responder.push(b"last"), PushState::Open);
    responder.finish();
    assert_eq!(collect(&mut stream).await, (vec![b"last".to_vec()], Ok(())));
    drop(stream);
    stage.assert_idle().await;
}

async fn a_kill_ends_it(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    stream.cancel(CancelKind::Kill, CancelReason::NotNeeded);
    assert_eq!(collect(&mut stream).await, (vec![], Err(StreamError::Cancelled(CancelReason::NotNeeded))));
    assert_eq!(reason(&mut reasons).await, CancelReason::NotNeeded);
    assert_eq!(kept.lock()[0].push(b"x"), PushState::Closed);
    stage.assert_idle().await;
}

async fn a_dropped_stream_is_cancelled(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let stream = stage.open("").await.unwrap();
    kept.lock()[0].push(b"never read");
    kept.lock()[0].push(&[0; 50_000]);
    kept.lock()[0].flush();
    drop(stream);
    assert_eq!(reason(&mut reasons).await, CancelReason::ClientGone);
    assert_eq!(kept.lock()[0].push(b"x"), PushState::Closed);
    // A second one after items have arrived.
    let stream = stage.open("").await.unwrap();
    kept.lock()[1].push(&[0; 50_000]);
    kept.lock()[1].push(b"never read");
    kept.lock()[1].flush();
    until("items arrive", || stage.buffered() > 50_000).await;
    drop(stream);
    assert_eq!(reason(&mut reasons).await, CancelReason::ClientGone);
    stage.assert_idle().await;
}

async fn a_dropped_open_is_cancelled(transport: Transport) {
    let stage = Stage::new(transport).await;
    // Warm, so that the request is sent at the first poll.
    let warm = stage.serve(|_: IncomingRequest, responder: Responder| responder.finish());
    stage.open("").await.unwrap();
    // Mounted before the old one goes, so that the client is never told to stay away.
    let (_guard, _kept, mut reasons) = keep(&stage);
    drop(warm);
    let target = stage.target();
    let mut open = Box::pin(stage.client.open(&target, request("")));
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(open.as_mut().poll(cx))).await;
    drop((open, polled));
    assert_eq!(reason(&mut reasons).await, CancelReason::ClientGone);
    stage.assert_idle().await;
}

async fn a_callback_set_late_is_called_at_once(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (responders, mut arrived) = mpsc::channel(1);
    let _guard = stage.serve(move |_: IncomingRequest, responder: Responder| {
        assert!(responders.try_send(responder).is_ok());
    });
    drop(stage.open("").await.unwrap());
    let responder = arrived.recv().await.unwrap();
    until("the cancel comes", || responder.is_cancelled()).await;
    let (told, mut reasons) = mpsc::channel(1);
    responder.on_cancel(move |reason| told.try_send(reason).unwrap());
    assert_eq!(reason(&mut reasons).await, CancelReason::ClientGone);
}

async fn time_runs_out_for_both(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let start = Instant::now();
    let timed = OutgoingRequest { time_left: Some(Duration::from_millis(200)), ..request("") };
    let mut stream = stage.open_request(timed).await.unwrap();
    kept.lock()[0].push(b"in time");
    kept.lock()[0].flush();
    assert_eq!(collect(&mut stream).await, (vec![b"in time".to_vec()], Err(StreamError::DeadlineExceeded)));
    assert!(start.elapsed() >= Duration::from_millis(190));
    assert_eq!(reason(&mut reasons).await, CancelReason::DeadlineExceeded);
    assert_eq!(kept.lock()[0].push(b"late"), PushState::Closed);
    drop(stream);
    stage.assert_idle().await;
}

async fn a_dropped_guard_refuses_and_running_ones_go_on(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (guard, kept, _reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    drop(guard);
    assert!(matches!(stage.open("").await.err(), Some(StreamError::Unavailable(_))));
    kept.lock()[0].push(b"still here");
    kept.lock().pop().unwrap().finish();
    assert_eq!(collect(&mut stream).await, (vec![b"still here".to_vec()], Ok(())));
    // Served again, it is found again.
    let _guard = stage.serve(|_: IncomingRequest, responder: Responder| responder.finish());
    let start = Instant::now();
    while let Err(error) = stage.open("").await {
        assert!(matches!(error, StreamError::Unavailable(_)) && start.elapsed() < PATIENCE);
    }
    stage.server.stop_admitting();
    assert!(matches!(stage.open("").await.err(), Some(StreamError::Unavailable(_))));
    drop(stream);
    stage.assert_idle().await;
}

async fn a_shutdown_ends_what_runs(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let (mut one, mut two) = (stage.open("").await.unwrap(), stage.open("").await.unwrap());
    kept.lock().pop().unwrap().finish();
    stage.server_scope.cancel();
    // What was finished arrives.
    assert_eq!(collect(&mut two).await, (vec![], Ok(())));
    assert_eq!(collect(&mut one).await, (vec![], Err(StreamError::Disconnected)));
    assert_eq!(reason(&mut reasons).await, CancelReason::Shutdown);
    assert_eq!(kept.lock()[0].push(b"x"), PushState::Closed);
    drop((one, two));
    stage.assert_idle().await;
    stage.shut_down().await;
}
