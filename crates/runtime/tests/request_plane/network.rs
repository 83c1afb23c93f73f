//! What only a network has: connections that are refused, shared, lost and abused.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_runtime::{
    TaskScope,
    request_plane::{CancelReason, IncomingRequest, PushState, Responder, StreamError, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::stage::{PATIENCE, Stage, Transport, collect, config, plane, request, until};

fn echo(request: IncomingRequest, mut responder: Responder) {
    responder.push(&request.payload);
    responder.finish();
}

/// Passes bytes on until it is told to stop, when it drops both sockets.
async fn relay(scope: &TaskScope, to: String) -> (String, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    scope.spawn("relay", async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(&to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                told = stopped.recv() => if told.is_none() { return },
            }
        }
    });
    (address, stop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_ends_its_streams_at_both_ends() {
    let stage = Stage::new(Transport::Tcp).await;
    let (told, mut reasons) = mpsc::channel(16);
    let (kept, mut responders) = mpsc::channel(16);
    let _guard = stage.serve(move |_: IncomingRequest, mut responder: Responder| {
        let told = told.clone();
        responder.on_cancel(move |reason| told.try_send(reason).unwrap());
        responder.push(b"one");
        responder.flush();
        assert!(kept.try_send(responder).is_ok());
    });
    let (address, stop) = relay(&stage.scope, stage.server.address().to_string()).await;
    let target = Target { address, ..stage.target() };
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(stage.client.open(&target, request("")).await.unwrap());
    }
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap().unwrap()[..], *b"one");
    }
    let start = Instant::now();
    stop.send(()).await.unwrap();
    for stream in &mut streams {
        assert_eq!(collect(stream).await, (vec![], Err(StreamError::Disconnected)));
        assert_eq!(
            tokio::time::timeout(PATIENCE, reasons.recv()).await.unwrap(),
            Some(CancelReason::Disconnected)
        );
    }
    // Only now: a responder that is let go is not told of a loss that it has not heard of yet.
    for _ in &streams {
        assert_eq!(responders.recv().await.unwrap().push(b"x"), PushState::Closed);
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(streams);
    stage.assert_idle().await;
    // The next request dials anew.
    let mut again = stage.client.open(&target, request("")).await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap()[..], *b"one");
    drop((again, stop));
    stage.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_opens_share_one_connection() {
    let stage = Arc::new(Stage::new(Transport::Tcp).await);
    let _guard = stage.serve(echo);
    let mut opens = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let stage = stage.clone();
        opens.spawn(async move { collect(&mut stage.open("hi").await.unwrap()).await });
    }
    while let Some(answer) = opens.join_next().await {
        assert_eq!(answer.unwrap(), (vec![b"hi".to_vec()], Ok(())));
    }
    assert_eq!((stage.client.connections(), stage.server.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_is_found_again() {
    let scope = TaskScope::root(tokio::runtime::Handle::current());
    let (client, _) = plane(&scope, &config()).await;
    // A free port that nobody listens on for the moment.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = Target { address: port.to_string(), path: "echo".into() };
    let start = Instant::now();
    let refused = client.open(&target, request("")).await.err().unwrap();
    assert!(matches!(&refused, StreamError::Unavailable(why) if why.contains("cannot connect")), "{refused}");
    // Within the pause the answer comes without a dial.
    assert_eq!(client.open(&target, request("")).await.err(), Some(refused));
    assert!(start.elapsed() < Duration::from_secs(5));

    let config = dynamo_runtime::request_plane::RequestPlaneConfig { bind: port.to_string(), ..config() };
    let (server, _) = plane(&scope, &config).await;
    let _guard = server.serve("echo", Arc::new(echo));
    let mut stream = loop {
        match client.open(&target, request("back")).await {
            Ok(stream) => break stream,
            Err(StreamError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < PATIENCE);
    };
    assert_eq!(collect(&mut stream).await, (vec![b"back".to_vec()], Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_a_hello_is_given_up() {
    let scope = TaskScope::root(tokio::runtime::Handle::current());
    let mut config = config();
    config.connect_timeout = Duration::from_millis(100);
    let (client, _) = plane(&scope, &config).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target { address: silent.local_addr().unwrap().to_string(), path: "echo".into() };
    let error = client.open(&target, request("")).await.err().unwrap();
    assert!(matches!(&error, StreamError::Unavailable(why) if why.contains("no answer")), "{error}");
    until("the connection is closed", || client.connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_lost() {
    let mut config = config();
    config.wire.ping_interval = Duration::from_millis(50);
    config.wire.pong_timeout = Duration::from_millis(100);
    let stage = Stage::with(Transport::Tcp, config).await;
    // It says hello and takes the request, and then nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target { address: listener.local_addr().unwrap().to_string(), path: "x".into() };
    let server = stage.server.address();
    stage.scope.spawn("silent peer", async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(server).await.unwrap();
        let mut hello = vec![0; 1000];
        let count = far.read(&mut hello).await.unwrap();
        near.write_all(&hello[..count]).await.unwrap();
        let mut all = Vec::new();
        let _ = near.read_to_end(&mut all).await;
    });
    let error = tokio::time::timeout(PATIENCE, stage.client.open(&target, request(""))).await.unwrap().err();
    assert_eq!(error, Some(StreamError::Disconnected));
    stage.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_on_the_port_are_turned_away() {
    let stage = Stage::new(Transport::Tcp).await;
    let _guard = stage.serve(echo);
    let mut stranger = TcpStream::connect(stage.server.address()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Closed, or reset where our hello was not read.
    let _ = tokio::time::timeout(PATIENCE, stranger.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.len() < 200);
    assert_eq!(collect(&mut stage.open("hi").await.unwrap()).await, (vec![b"hi".to_vec()], Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_goes_away_is_asked_no_more() {
    let stage = Stage::new(Transport::Tcp).await;
    // As many as there may be stragglers before the news is there.
    let (kept, mut responders) = mpsc::channel(1024);
    let _guard = stage.serve(move |_: IncomingRequest, responder: Responder| {
        assert!(kept.try_send(responder).is_ok());
    });
    let mut running = stage.open("").await.unwrap();
    let held = responders.recv().await;
    stage.server.go_away();
    let start = Instant::now();
    loop {
        match stage.open("").await {
            // It was on its way: stragglers are served.
            Ok(_) => drop(responders.recv().await),
            Err(error) => {
                assert_eq!(error, StreamError::Unavailable("the worker is going away".into()));
                break;
            }
        }
        assert!(start.elapsed() < PATIENCE);
        if let Ok(responder) = responders.try_recv() {
            drop(responder);
        }
    }
    running.cancel(dynamo_runtime::request_plane::CancelKind::Kill, CancelReason::NotNeeded);
    assert!(collect(&mut running).await.1.is_err());
    drop((running, held));
    stage.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let scope = TaskScope::root(tokio::runtime::Handle::current());
    let (first, metrics) = plane(&scope, &config()).await;
    let taken =
        dynamo_runtime::request_plane::RequestPlaneConfig { bind: first.address().to_string(), ..config() };
    let families = dynamo_runtime::request_plane::RequestPlaneMetrics::new(&metrics).unwrap();
    let error =
        dynamo_runtime::request_plane::RequestPlane::start(scope, taken, families).await.err().unwrap();
    assert!(error.to_string().contains(&first.address().to_string()), "{error}");
}
