use std::{sync::Arc, time::Duration};

use dynamo_runtime::request_plane::{CancelReason, IncomingRequest, PushState, Responder, StreamError};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::stage::{PATIENCE, Stage, Transport, collect, config, over_both_transports, until};

over_both_transports!(
    a_stalled_reader_is_cancelled_and_harms_nobody,
    a_full_buffer_closes_the_stream,
    a_reader_that_catches_up_lives_on,
    too_many_streams_are_refused,
    a_message_over_the_maximum_is_refused,
);

type Kept = Arc<Mutex<Vec<Responder>>>;

fn keep(stage: &Stage) -> (dynamo_runtime::request_plane::ServeGuard, Kept, mpsc::Receiver<CancelReason>) {
    let (told, reasons) = mpsc::channel(16);
    let kept = Kept::default();
    let keeper = kept.clone();
    let guard = stage.serve(move |_: IncomingRequest, responder: Responder| {
        let told = told.clone();
        responder.on_cancel(move |reason| told.try_send(reason).unwrap());
        keeper.lock().push(responder);
    });
    (guard, kept, reasons)
}

async fn a_stalled_reader_is_cancelled_and_harms_nobody(transport: Transport) {
    let mut config = config();
    config.wire.stall_limit = Duration::from_millis(300);
    let stage = Stage::with(transport, config.clone()).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let mut stalled = stage.open("").await.unwrap();
    let mut other = stage.open("").await.unwrap();
    // Past the stream's credit, and within its own buffer.
    for _ in 0..600 {
        assert_eq!(kept.lock()[0].push(&[1; 1000]), PushState::Open);
    }
    kept.lock()[0].flush();
    let start = std::time::Instant::now();
    while reasons.is_empty() {
        assert!(stage.buffered() < 1 << 20, "{}", stage.buffered());
        kept.lock()[1].push(b"x");
        kept.lock()[1].flush();
        let item = tokio::time::timeout(PATIENCE, other.next()).await.unwrap();
        assert_eq!(item.unwrap().unwrap()[..], *b"x");
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(reasons.recv().await, Some(CancelReason::SlowReader));
    assert!(start.elapsed() >= Duration::from_millis(250));
    assert_eq!(kept.lock()[0].push(b"x"), PushState::Closed);
    assert_eq!(collect(&mut stalled).await.1, Err(StreamError::SlowReader));
    assert_eq!(stage.slow_readers(), 1);
    drop((stalled, other));
    stage.assert_idle().await;
}

async fn a_full_buffer_closes_the_stream(transport: Transport) {
    let stage = Stage::new(transport).await;
    let (_guard, kept, mut reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    let mut pushed = 0;
    while kept.lock()[0].push(&[1; 1000]) == PushState::Open {
        kept.lock()[0].flush();
        pushed += 1;
        // Pushing is faster than the connection: the credit must be used before the buffer fills.
        if pushed % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(pushed < 2000);
    }
    assert!(stage.buffered() < 1 << 20);
    assert_eq!(tokio::time::timeout(PATIENCE, reasons.recv()).await.unwrap(), Some(CancelReason::SlowReader));
    assert!(kept.lock()[0].is_cancelled());
    assert_eq!(collect(&mut stream).await.1, Err(StreamError::SlowReader));
    drop(stream);
    stage.assert_idle().await;
}

async fn a_reader_that_catches_up_lives_on(transport: Transport) {
    let mut config = config();
    config.wire.stall_limit = Duration::from_secs(3600);
    let stage = Stage::with(transport, config).await;
    let (_guard, kept, _reasons) = keep(&stage);
    let mut stream = stage.open("").await.unwrap();
    for _ in 0..3 {
        for n in 0..450u32 {
            assert_eq!(kept.lock()[0].push(&[&n.to_le_bytes()[..], &[0; 1000]].concat()), PushState::Open);
        }
        kept.lock()[0].flush();
        until("the credit is used", || stage.buffered() > 250_000).await;
        for n in 0..450u32 {
            let item = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(item[..4], n.to_le_bytes());
        }
    }
    kept.lock().pop().unwrap().finish();
    assert!(stream.next().await.is_none());
    stage.assert_idle().await;
}

async fn too_many_streams_are_refused(transport: Transport) {
    let mut config = config();
    config.wire.max_streams = 3;
    let stage = Stage::with(transport, config).await;
    let (_guard, kept, _reasons) = keep(&stage);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(stage.open("").await.unwrap());
    }
    assert!(matches!(stage.open("").await.err(), Some(StreamError::Overloaded(_))));
    kept.lock().pop().unwrap().finish();
    assert_eq!(collect(&mut streams[2]).await, (vec![], Ok(())));
    drop(stage.open("").await.unwrap());
    drop(streams);
    stage.assert_idle().await;
}

async fn a_message_over_the_maximum_is_refused(transport: Transport) {
    let mut config = config();
    config.wire.max_message = 1 << 20;
    let stage = Stage::with(transport, config).await;
    let (_guard, kept, _reasons) = keep(&stage);
    assert!(matches!(stage.open(vec![0; (1 << 20) + 1]).await.err(), Some(StreamError::TooLarge(_))));
    let mut stream = stage.open(vec![0; 1 << 20]).await.unwrap();
    assert_eq!(kept.lock()[0].push(&[0; (1 << 20) + 1]), PushState::Closed);
    kept.lock()[0].flush();
    assert!(matches!(collect(&mut stream).await.1, Err(StreamError::TooLarge(_))));
    drop(stream);
    stage.assert_idle().await;
}
