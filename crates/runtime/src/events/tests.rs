//! One suite of behaviours over both transports, then what only ZeroMQ has.

use super::frames::{self, Encoded};
use super::*;
use crate::discovery::{Discovery, EventChannelRecord, EventScope, MemStore, Record};
use crate::identity::{Epoch, Incarnation, WorkerId};
use crate::metrics::Metrics;
use crate::scope::TaskScope;
use std::time::{Duration, Instant};

/// For what must happen: only a failing test waits this long.
const DEADLINE: Duration = Duration::from_secs(30);

fn incarnation(worker: u64, epoch: u64) -> Incarnation {
    Incarnation { worker_id: WorkerId::from_bits(worker), epoch: Epoch::from_unix_ms(epoch) }
}

fn backend() -> EventScope {
    EventScope::component("ns", "backend")
}

/// The planes of one test.
struct Site {
    kind: EventPlaneKind,
    scope: TaskScope,
    hub: EventHub,
    store: MemStore,
    metrics: Metrics,
}

impl Site {
    fn new(kind: EventPlaneKind) -> Self {
        let scope = TaskScope::root(tokio::runtime::Handle::current());
        Self { kind, scope, hub: EventHub::new(), store: MemStore::default(), metrics: Metrics::new() }
    }

    fn discovery(&self) -> Discovery {
        Discovery::mem(self.store.clone(), self.scope.clone())
    }

    fn plane(&self, worker: u64, epoch: u64) -> EventPlane {
        self.plane_with_queue(worker, epoch, 10_000)
    }

    fn plane_with_queue(&self, worker: u64, epoch: u64, subscriber_queue: usize) -> EventPlane {
        let config = EventPlaneConfig { subscriber_queue, ..EventPlaneConfig::loopback(self.kind) };
        let metrics = EventMetrics::new(&self.metrics).unwrap();
        let (scope, discovery) = (self.scope.clone(), self.discovery());
        EventPlane::start(&config, self.hub.clone(), scope, discovery, incarnation(worker, epoch), metrics)
    }

    fn metric(&self, series: &str) -> f64 {
        let mut text = String::new();
        self.metrics.encode_text(&mut text);
        let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("{series} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    async fn until(&self, series: &str, reached: impl Fn(f64) -> bool) {
        let start = Instant::now();
        while !reached(self.metric(series)) {
            assert!(start.elapsed() < DEADLINE, "{series} is {}", self.metric(series));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn next(subscriber: &mut EventSubscriber) -> EventItem {
    tokio::time::timeout(DEADLINE, subscriber.next())
        .await
        .expect("an item in time")
        .expect("an open subscription")
}

/// The next event of `publisher`, past gaps and departures.
async fn next_event(subscriber: &mut EventSubscriber) -> (Envelope, u64) {
    loop {
        if let EventItem::Event { envelope, payload } = next(subscriber).await {
            return (envelope, decode_payload(&payload).unwrap());
        }
    }
}

/// What a test publishes to find out whether it is heard.
const PROBE: u64 = u64::MAX;

/// Publishes until the subscriber hears it, and reads all of that. ZeroMQ connects when it does.
async fn connected(publisher: &EventPublisher, subscriber: &mut EventSubscriber) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < DEADLINE, "never connected");
        publisher.publish(&PROBE).unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(20), next_event(subscriber)).await;
        let Ok((mut envelope, _)) = heard else { continue };
        while envelope.publisher != publisher.incarnation()
            || envelope.sequence + 1 != publisher.next_sequence()
        {
            envelope = next_event(subscriber).await.0;
        }
        return;
    }
}

macro_rules! over_both_transports {
    ($($behaviour:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(super::Site::new(super::EventPlaneKind::InProcess)).await; })*
        }
        mod zmq {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(super::Site::new(super::EventPlaneKind::Zmq)).await; })*
        }
    };
}

over_both_transports! {
    events_arrive_in_order_with_who_and_when,
    a_late_subscriber_learns_what_it_missed,
    a_restarted_publisher_replaces_its_former_self,
    a_publisher_that_leaves_is_gone,
    topics_that_share_a_prefix_do_not_mix,
    scopes_are_exact,
    a_slow_subscriber_loses_the_oldest_and_is_told,
    unsubscribing_leaves_nothing_behind,
    publishers_are_numbered_apart,
    asking_twice_gives_one_numbering,
    topics_have_bounds,
    an_event_over_the_limit_is_refused,
}

async fn events_arrive_in_order_with_who_and_when(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv-events").await.unwrap();
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv-events").await.unwrap();
    connected(&publisher, &mut subscriber).await;
    let (first, before) = (publisher.next_sequence(), Epoch::now().get());
    for number in 0..1000u64 {
        publisher.publish(&number).unwrap();
    }
    for number in 0..1000 {
        let (envelope, value) = next_event(&mut subscriber).await;
        assert_eq!(
            (envelope.publisher, envelope.sequence, value),
            (incarnation(1, 10), first + number, number)
        );
        assert_eq!(&*envelope.topic, "kv-events");
        assert!((before..=Epoch::now().get()).contains(&envelope.published_at_ms));
    }
    assert_eq!(
        site.metric("dynamo_event_plane_discarded_total{reason=\"duplicate\",topic=\"kv-events\"}"),
        0.0
    );
}

async fn a_late_subscriber_learns_what_it_missed(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv-events").await.unwrap();
    for number in 0..5u64 {
        publisher.publish(&number).unwrap();
    }
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv-events").await.unwrap();
    let item = loop {
        publisher.publish(&PROBE).unwrap();
        if let Ok(item) = tokio::time::timeout(Duration::from_millis(20), next(&mut subscriber)).await {
            break item;
        }
    };
    let EventItem::Gap { publisher, from: 0, to } = item else { panic!("{item:?}") };
    assert_eq!(publisher, incarnation(1, 10));
    assert!(to >= 4);
    let (envelope, _) = next_event(&mut subscriber).await;
    assert_eq!(envelope.sequence, to + 1);
    assert_eq!(site.metric("dynamo_event_plane_missed_total{topic=\"kv-events\"}"), (to + 1) as f64);
}

async fn a_restarted_publisher_replaces_its_former_self(site: Site) {
    let old = site.plane(1, 10).publisher(backend(), "kv-events").await.unwrap();
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv-events").await.unwrap();
    connected(&old, &mut subscriber).await;
    // The former self is still there, and still publishes.
    let new = site.plane(1, 20).publisher(backend(), "kv-events").await.unwrap();
    assert_eq!(next(&mut subscriber).await, EventItem::PublisherGone(incarnation(1, 10)));
    old.publish(&666u64).unwrap();
    drop(old);
    connected(&new, &mut subscriber).await;
    for number in 0..10u64 {
        new.publish(&number).unwrap();
        let (envelope, value) = next_event(&mut subscriber).await;
        assert_eq!((envelope.publisher, value), (incarnation(1, 20), number));
    }
}

async fn a_publisher_that_leaves_is_gone(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv-events").await.unwrap();
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv-events").await.unwrap();
    connected(&publisher, &mut subscriber).await;
    drop(publisher);
    assert_eq!(next(&mut subscriber).await, EventItem::PublisherGone(incarnation(1, 10)));
}

async fn topics_that_share_a_prefix_do_not_mix(site: Site) {
    let plane = site.plane(1, 10);
    let short = plane.publisher(backend(), "kv").await.unwrap();
    let long = plane.publisher(backend(), "kv2").await.unwrap();
    let mut of_short = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    let mut of_long = site.plane(2, 10).subscribe(backend(), "kv2").await.unwrap();
    connected(&long, &mut of_long).await;
    connected(&short, &mut of_short).await;
    long.publish(&2u64).unwrap();
    short.publish(&1u64).unwrap();
    assert_eq!(next_event(&mut of_short).await.1, 1);
    assert_eq!(next_event(&mut of_long).await.1, 2);
}

async fn scopes_are_exact(site: Site) {
    let plane = site.plane(1, 10);
    let wide = plane.publisher(EventScope::namespace("ns"), "kv").await.unwrap();
    let narrow = plane.publisher(backend(), "kv").await.unwrap();
    let mut of_wide = site.plane(2, 10).subscribe(EventScope::namespace("ns"), "kv").await.unwrap();
    let mut of_narrow = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    connected(&wide, &mut of_wide).await;
    connected(&narrow, &mut of_narrow).await;
    wide.publish(&1u64).unwrap();
    narrow.publish(&2u64).unwrap();
    assert_eq!(next_event(&mut of_wide).await.1, 1);
    assert_eq!(next_event(&mut of_narrow).await.1, 2);
}

async fn a_slow_subscriber_loses_the_oldest_and_is_told(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv").await.unwrap();
    let mut subscriber = site.plane_with_queue(2, 10, 8).subscribe(backend(), "kv").await.unwrap();
    connected(&publisher, &mut subscriber).await;
    let first = publisher.next_sequence();
    let hits = "dynamo_bound_hits_total{bound=\"event_subscriber_queue\"}";
    let before = site.metric(hits);
    for number in 0..100u64 {
        publisher.publish(&number).unwrap();
    }
    site.until(hits, |hits| hits - before >= 92.0).await;
    assert_eq!(site.metric(hits) - before, 92.0);
    let gap = EventItem::Gap { publisher: incarnation(1, 10), from: first, to: first + 91 };
    assert_eq!(next(&mut subscriber).await, gap);
    for number in 92..100 {
        let EventItem::Event { payload, .. } = next(&mut subscriber).await else { panic!("an event") };
        assert_eq!(decode_payload::<u64>(&payload).unwrap(), number);
    }
}

async fn unsubscribing_leaves_nothing_behind(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv").await.unwrap();
    let subscribing = site.plane(2, 10);
    let mut subscriber = subscribing.subscribe(backend(), "kv").await.unwrap();
    connected(&publisher, &mut subscriber).await;
    drop(subscriber);
    assert_eq!(site.metric("dynamo_event_plane_subscriptions"), 0.0);
    publisher.publish(&1u64).unwrap();
    let mut again = subscribing.subscribe(backend(), "kv").await.unwrap();
    connected(&publisher, &mut again).await;
    drop((publisher, again, subscribing));
    assert_eq!(site.metric("dynamo_event_plane_publishers"), 0.0);
    assert_eq!(site.hub.channels(), 0);
    // Followers and socket threads end with the last handle, without being cancelled.
    tokio::time::timeout(DEADLINE, site.scope.closed()).await.unwrap();
}

async fn publishers_are_numbered_apart(site: Site) {
    let mut subscriber = site.plane(9, 10).subscribe(backend(), "kv").await.unwrap();
    let mut publishers = Vec::new();
    for worker in 1..=3 {
        let publisher = site.plane(worker, 10).publisher(backend(), "kv").await.unwrap();
        connected(&publisher, &mut subscriber).await;
        publishers.push(publisher);
    }
    for publisher in publishers.iter().cycle().take(30) {
        let sequence = publisher.next_sequence();
        publisher.publish(&0u64).unwrap();
        let (envelope, _) = next_event(&mut subscriber).await;
        assert_eq!((envelope.publisher, envelope.sequence), (publisher.incarnation(), sequence));
    }
}

async fn asking_twice_gives_one_numbering(site: Site) {
    let plane = site.plane(1, 10);
    let one = plane.publisher(backend(), "kv").await.unwrap();
    let two = plane.publisher(backend(), "kv").await.unwrap();
    one.publish(&1u64).unwrap();
    two.publish(&2u64).unwrap();
    assert_eq!((one.next_sequence(), two.next_sequence()), (2, 2));
    drop((one, two));
    assert_eq!(plane.publisher(backend(), "kv").await.unwrap().next_sequence(), 0);
}

async fn topics_have_bounds(site: Site) {
    for topic in ["", &"x".repeat(256)] {
        assert!(matches!(
            site.plane(1, 1).publisher(backend(), topic).await,
            Err(EventPlaneError::Topic { .. })
        ));
        assert!(matches!(
            site.plane(1, 1).subscribe(backend(), topic).await,
            Err(EventPlaneError::Topic { .. })
        ));
    }
}

async fn an_event_over_the_limit_is_refused(site: Site) {
    let publisher = site.plane(1, 10).publisher(backend(), "kv").await.unwrap();
    let payload = vec![0; frames::MAX_PAYLOAD + 1];
    assert!(matches!(publisher.publish_bytes(payload.into()), Err(PublishError::TooLarge { .. })));
    assert_eq!(publisher.next_sequence(), 0);
}

/// A publisher of another make, with its socket in the test's hands.
struct Foreign {
    socket: ::zmq::Socket,
    _registration: crate::discovery::Registration,
}

impl Foreign {
    async fn new(site: &Site, publisher: Incarnation, topic: &str) -> Self {
        let socket = ::zmq::Context::new().socket(::zmq::PUB).unwrap();
        socket.set_linger(0).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        let address = socket.get_last_endpoint().unwrap().unwrap();
        let (scope, topic) = (backend(), topic.to_owned());
        let record = EventChannelRecord { scope, topic, incarnation: publisher, address };
        let registration = site.discovery().register(Record::EventChannel(record)).await.unwrap();
        Self { socket, _registration: registration }
    }

    fn send(&self, frames: &[Vec<u8>]) {
        self.socket.send_multipart(frames, 0).unwrap();
    }
}

fn event(publisher: Incarnation, topic: &str, sequence: u64) -> [Vec<u8>; 4] {
    let envelope = Envelope { publisher, sequence, published_at_ms: 1, topic: topic.into() };
    let payload = rmp_serde::to_vec(&sequence).unwrap();
    let Encoded { publisher, sequence, body } = frames::encode(&envelope, &payload).unwrap();
    [topic.as_bytes().to_vec(), publisher.to_vec(), sequence.to_vec(), body]
}

#[tokio::test]
async fn malformed_messages_and_foreign_topics_are_discarded_and_counted() {
    let site = Site::new(EventPlaneKind::Zmq);
    let worker = incarnation(1, 10);
    let foreign = Foreign::new(&site, worker, "kv").await;
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    let mut sequence = 0;
    let start = Instant::now();
    while tokio::time::timeout(Duration::from_millis(20), next_event(&mut subscriber)).await.is_err() {
        assert!(start.elapsed() < DEADLINE);
        foreign.send(&event(worker, "kv", sequence));
        sequence += 1;
    }
    let good = event(worker, "kv", 1000);
    let mut bad_version = good.clone();
    bad_version[3][0] = 9;
    let mut five = good.to_vec();
    five.push(Vec::new());
    for bad in [&good[..1], &good[..3], &five, &bad_version, &event(worker, "kv2", 1000)] {
        foreign.send(bad);
    }
    foreign.send(&event(incarnation(77, 1), "kv", 0));
    foreign.send(&good);
    let (mut envelope, _) = next_event(&mut subscriber).await;
    while envelope.sequence < sequence {
        envelope = next_event(&mut subscriber).await.0;
    }
    assert_eq!((envelope.publisher, envelope.sequence), (worker, 1000));
    let discarded = |reason| {
        site.metric(&format!("dynamo_event_plane_discarded_total{{reason=\"{reason}\",topic=\"kv\"}}"))
    };
    assert_eq!((discarded("malformed"), discarded("foreign_topic")), (4.0, 1.0));
    assert_eq!(discarded("unknown_publisher"), 1.0);
}

#[tokio::test]
async fn a_publisher_that_sends_no_epoch_is_heard() {
    let site = Site::new(EventPlaneKind::Zmq);
    let foreign = Foreign::new(&site, incarnation(1, 10), "kv").await;
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    let start = Instant::now();
    for sequence in 0.. {
        assert!(start.elapsed() < DEADLINE);
        foreign.send(&event(incarnation(1, 0), "kv", sequence));
        let heard = tokio::time::timeout(Duration::from_millis(20), next_event(&mut subscriber)).await;
        if let Ok((envelope, _)) = heard {
            assert_eq!(envelope.publisher, incarnation(1, 10));
            return;
        }
    }
}

#[tokio::test]
async fn addresses_that_are_not_tcp_or_not_addresses_harm_nobody() {
    let site = Site::new(EventPlaneKind::Zmq);
    let mut registrations = Vec::new();
    for (worker, address) in [(5, "ipc:///tmp/x"), (6, "inproc://x"), (7, "nonsense"), (8, "tcp://nowhere")] {
        let address = address.to_owned();
        let channel = EventChannelRecord {
            scope: backend(),
            topic: "kv".to_owned(),
            incarnation: incarnation(worker, 1),
            address,
        };
        registrations.push(site.discovery().register(Record::EventChannel(channel)).await.unwrap());
    }
    let publisher = site.plane(1, 10).publisher(backend(), "kv").await.unwrap();
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    connected(&publisher, &mut subscriber).await;
}

#[tokio::test]
async fn a_cancelled_scope_sends_what_waits_and_ends_subscriptions() {
    let site = Site::new(EventPlaneKind::Zmq);
    let sending = site.scope.child("sending");
    let publisher = {
        let metrics = EventMetrics::new(&site.metrics).unwrap();
        let config = EventPlaneConfig::loopback(EventPlaneKind::Zmq);
        let plane = EventPlane::zmq(sending.clone(), site.discovery(), incarnation(1, 10), &config, metrics);
        plane.publisher(backend(), "kv").await.unwrap()
    };
    let mut subscriber = site.plane(2, 10).subscribe(backend(), "kv").await.unwrap();
    connected(&publisher, &mut subscriber).await;
    for number in 0..5000u64 {
        publisher.publish(&number).unwrap();
    }
    sending.cancel();
    for number in 0..5000 {
        assert_eq!(next_event(&mut subscriber).await.1, number);
    }
    tokio::time::timeout(DEADLINE, sending.closed()).await.unwrap();
    assert!(matches!(publisher.publish(&1u64), Err(PublishError::Closed)));
    site.scope.cancel();
    assert_eq!(tokio::time::timeout(DEADLINE, subscriber.next()).await.unwrap(), None);
    tokio::time::timeout(DEADLINE, site.scope.closed()).await.unwrap();
}

#[tokio::test]
async fn a_wildcard_host_is_refused_with_the_variable_to_set() {
    let site = Site::new(EventPlaneKind::Zmq);
    let config = EventPlaneConfig {
        host: "0.0.0.0".parse().unwrap(),
        ..EventPlaneConfig::loopback(EventPlaneKind::Zmq)
    };
    let metrics = EventMetrics::new(&site.metrics).unwrap();
    let plane = EventPlane::zmq(site.scope.clone(), site.discovery(), incarnation(1, 1), &config, metrics);
    let error = plane.publisher(backend(), "kv").await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("DYN_EVENT_PLANE_HOST"), "{error}");
}

#[test]
fn the_configuration_reads_the_incumbent_s_variables() {
    use crate::config::{Env, Layers};
    let of = |env: &Env| {
        EventPlaneConfig::resolve(
            &mut Layers::new(env, None),
            EventPlaneKind::Zmq,
            "10.0.0.1".parse().unwrap(),
        )
    };
    let config = of(&Env::default()).unwrap();
    assert_eq!((config.kind, config.host.to_string()), (EventPlaneKind::Zmq, "10.0.0.1".to_owned()));
    let env = Env::from([
        ("DYN_EVENT_PLANE", "INPROC"),
        ("DYN_EVENT_PLANE_HOST", "::1"),
        ("DYN_ZMQ_EVENT_SUBSCRIBER_CHANNEL_CAPACITY", "7"),
        ("DYN_ZMQ_IO_THREADS", "2"),
    ]);
    let config = of(&env).unwrap();
    assert_eq!((config.kind, config.subscriber_queue, config.io_threads), (EventPlaneKind::InProcess, 7, 2));
    assert_eq!(config.host.to_string(), "::1");
    for bad in [
        ("DYN_EVENT_PLANE", "nats"),
        ("DYN_EVENT_PLANE_HOST", "0.0.0.0"),
        ("DYN_ZMQ_EVENT_SUBSCRIBER_CHANNEL_CAPACITY", "0"),
        ("DYN_ZMQ_IO_THREADS", "65"),
    ] {
        let error = of(&Env::from([bad])).unwrap_err().to_string();
        assert!(error.starts_with(bad.0), "{error}");
    }
}
