use std::time::Duration;

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use dynamo_runtime::{
    DistributedRuntime, EventItem, EventScope, EventSubscriber, Runtime, RuntimeConfig, ShutdownReason,
    events::decode_payload,
};
use dynamo_tokens::LocalBlockHash;
use tokio::time::timeout;

use super::*;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

fn stored(hash: u64) -> KvCacheEventData {
    let block = StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash: LocalBlockHash(hash) };
    KvCacheEventData::Stored { parent_hash: None, blocks: vec![block] }
}

struct Setting {
    publisher: Arc<KvPublisher>,
    subscriber: EventSubscriber,
    scope: TaskScope,
    runtime: DistributedRuntime,
}

impl Setting {
    async fn new(ranks: u32) -> Self {
        let runtime = Runtime::new(tokio::runtime::Handle::current());
        let runtime = DistributedRuntime::new(runtime, RuntimeConfig::process_local()).await.unwrap();
        let about = EventScope::component("ns", "backend");
        let subscriber = runtime.event_plane().subscribe(about.clone(), "kv-events").await.unwrap();
        let publisher = runtime.event_plane().publisher(about, "kv-events").await.unwrap();
        let load = LoadGauges::new(runtime.metrics()).unwrap();
        let scope = runtime.scope().child("engine");
        let publisher = KvPublisher::start(7, 0..ranks, publisher, &load, &scope);
        Self { publisher, subscriber, scope, runtime }
    }

    async fn message(&mut self) -> Vec<RouterEvent> {
        loop {
            match timeout(PATIENCE, self.subscriber.next()).await.unwrap().unwrap() {
                EventItem::Event { payload, .. } => return decode_payload(&payload).unwrap(),
                EventItem::Gap { .. } => panic!("events were dropped"),
                _ => {}
            }
        }
    }
}

// On one thread the task runs only when the test waits, so what is reported together is together.
#[tokio::test]
async fn what_came_since_the_last_look_leaves_in_one_message_a_rank() {
    let mut setting = Setting::new(2).await;
    for hash in 0..10 {
        setting.publisher.kv_events(0, vec![stored(hash)]);
    }
    setting.publisher.kv_events(1, vec![stored(99)]);
    let first = setting.message().await;
    let numbers: Vec<u64> = first.iter().map(|event| event.event.event_id).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
    assert!(first.iter().zip(0..).all(|(event, hash)| event.event.data == stored(hash)));
    assert!(first.iter().all(|event| event.worker_id == 7 && event.event.dp_rank == 0));
    let second = setting.message().await;
    assert_eq!((second.len(), second[0].event.event_id, second[0].event.dp_rank), (1, 1, 1));
}

#[tokio::test]
async fn many_events_are_cut_into_messages_and_none_is_lost_when_the_task_is_late() {
    let mut setting = Setting::new(1).await;
    let many = MAX_WAITING_EVENTS as u64 + 300;
    for hash in 0..many {
        setting.publisher.kv_events(0, vec![stored(hash)]);
    }
    assert!(setting.publisher.ranks[&0].waiting.lock().len() < 300, "the engine published them itself");
    let mut next = 1;
    while next <= many {
        let message = setting.message().await;
        assert!(message.len() <= dynamo_kv_router::MAX_MESSAGE_EVENTS);
        for event in message {
            assert_eq!(event.event.event_id, next);
            next += 1;
        }
    }
}

#[tokio::test]
async fn an_answer_knows_what_was_reported_before_the_question() {
    let setting = Setting::new(1).await;
    setting.publisher.kv_events(0, vec![stored(1), stored(2)]);
    let query = KvQuery { dp_rank: 0, start_event_id: Some(1), end_event_id: None };
    let bytes = setting.publisher.answer(&query).unwrap();
    let KvQueryAnswer::Events { events, last_event_id } = rmp_serde::from_slice(&bytes).unwrap() else {
        panic!("no events")
    };
    assert_eq!((events.len(), last_event_id), (2, 2));
    assert!(setting.publisher.answer(&KvQuery { dp_rank: 5, ..query }).is_err());
}

#[tokio::test]
async fn its_task_ends_with_it() {
    let Setting { publisher, scope, runtime, .. } = Setting::new(1).await;
    assert_eq!(scope.tasks(), 1);
    drop(publisher);
    timeout(PATIENCE, scope.closed()).await.unwrap();
    runtime.runtime().shutdown(ShutdownReason::Requested);
}
