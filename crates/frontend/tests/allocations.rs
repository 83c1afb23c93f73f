//! Allocations of the whole process while answers are streamed: they do not grow with tokens.

#![allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
#![allow(unsafe_code, reason = "a global allocator can't be written without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dynamo_frontend::{
    HttpConfig, HttpService, bind,
    fake::{FakeCatalog, FakeModel, Pace, Script},
};
use dynamo_runtime::{Metrics, Phase};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to `GlobalAlloc::realloc`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Streams an answer of that many tokens, and says how many allocations it took the process, this client's included.
async fn allocations_of(client: &mut TcpStream, buffer: &mut [u8], tokens: u32) -> u64 {
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"stream":true,"max_tokens":{tokens}}}"#
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut held = 0;
    // The last chunk ends with these bytes; what came before is not kept.
    let end = b"\r\n0\r\n\r\n";
    loop {
        held += client.read(&mut buffer[held..]).await.unwrap();
        assert!(held > 0, "the connection was lost");
        if buffer[..held].ends_with(end) {
            return ALLOCATIONS.load(Ordering::Relaxed) - before;
        }
        let keep = held.min(end.len());
        buffer.copy_within(held - keep..held, 0);
        held = keep;
    }
}

async fn check(script: Script) {
    let model = FakeModel::new("m", script.clone());
    let config = HttpConfig::from_env(&|_| None).unwrap();
    let (_phase, phases) = watch::channel(Phase::Running);
    let catalog = Arc::new(FakeCatalog::new(vec![model]));
    let service = HttpService::new(config, catalog, Metrics::new(), phases).unwrap();
    let listener = bind("127.0.0.1", 0).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(service.serve(listener));

    let mut client = TcpStream::connect(address).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    allocations_of(&mut client, &mut buffer, 2000).await;
    let short = allocations_of(&mut client, &mut buffer, 1000).await;
    let long = allocations_of(&mut client, &mut buffer, 2000).await;
    println!("{:?} by {}: {short} for 1,000 tokens, {long} for 2,000", script.pace, script.per_poll);
    assert!(long < short + 10, "{short} allocations for 1,000 tokens, {long} for 2,000 ({script:?})");
}

// One test, so that nothing else in the process allocates meanwhile; time is paused, so that tokens come one by one
// and without a wait.
#[tokio::test(start_paused = true)]
async fn allocations_do_not_grow_with_tokens() {
    let script = Script { tokens: 2000, ..Script::of(&["some", " text", " \"quoted\"", "\n"]) };
    let paced = Pace::Every(Duration::from_millis(1));
    check(Script { pace: paced, ..script.clone() }).await;
    check(Script { pace: paced, per_poll: 8, ..script.clone() }).await;
    check(Script { pace: Pace::Burst, ..script }).await;
}
