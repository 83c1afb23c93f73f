use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use dynamo_runtime::metrics::Metrics;
use zmq::{Context, Socket};

use super::*;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Batch(u64, Vec<u8>),
    Restarted,
    Lost(u64, Option<ReplayFailure>),
    Silent,
}

struct Recorder(Sender<Heard>);

impl EngineBatches for Recorder {
    fn batch(&mut self, sequence: u64, payload: &[u8]) {
        self.0.send(Heard::Batch(sequence, payload.to_vec())).unwrap();
    }

    fn restarted(&mut self) {
        self.0.send(Heard::Restarted).unwrap();
    }

    fn lost(&mut self, batches: u64, why: Option<ReplayFailure>) {
        self.0.send(Heard::Lost(batches, why)).unwrap();
    }

    fn silent(&mut self) {
        self.0.send(Heard::Silent).unwrap();
    }
}

/// An engine whose sockets the test holds: it says what is published, and how questions are answered.
struct Engine {
    events: Socket,
    replay: Socket,
}

fn address(socket: &Socket) -> String {
    socket.bind("tcp://127.0.0.1:*").unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket.get_last_endpoint().unwrap().unwrap()
}

impl Engine {
    /// An engine and its listener, which is subscribed already and was told that there is nothing to replay.
    fn new(with_replay: bool) -> (Self, EngineListener, Receiver<Heard>, SourceMetrics) {
        let context = Context::new();
        // Unlike a PUB socket it sees who subscribes.
        let engine =
            Self { events: context.socket(zmq::XPUB).unwrap(), replay: context.socket(zmq::ROUTER).unwrap() };
        let (events, replay) = (address(&engine.events), address(&engine.replay));
        let metrics = EngineIntakeMetrics::new(&Metrics::new()).unwrap().of_worker(7);
        let (heard, hears) = channel();
        let endpoint =
            EngineEndpoint { events, topic: "kv".to_owned(), replay: with_replay.then_some(replay) };
        let listener = EngineListener::start(endpoint, Recorder(heard), metrics.clone()).unwrap();
        assert_eq!(engine.events.recv_bytes(0).unwrap(), b"\x01kv");
        if with_replay {
            engine.answer(0, &[]);
        }
        (engine, listener, hears, metrics)
    }

    fn send(&self, frames: &[&[u8]]) {
        self.events.send_multipart(frames, 0).unwrap();
    }

    fn publish(&self, sequence: u64) {
        self.send(&[b"kv-events", &sequence.to_be_bytes(), &payload(sequence)]);
    }

    /// Waits for a question, which must be for the batches from `from` on, and answers it.
    fn answer(&self, from: u64, sequences: &[u64]) {
        let question = self.replay.recv_multipart(0).unwrap();
        assert_eq!(question[1..], [vec![], from.to_be_bytes().to_vec()]);
        let send = |sequence: u64, payload: &[u8]| {
            let frames = [&question[0][..], &[], &sequence.to_be_bytes(), payload];
            self.replay.send_multipart(frames, 0).unwrap();
        };
        for &sequence in sequences {
            send(sequence, &payload(sequence));
        }
        send(u64::MAX, &[]);
    }
}

fn payload(sequence: u64) -> Vec<u8> {
    format!("batch {sequence}").into_bytes()
}

fn batches(sequences: impl IntoIterator<Item = u64>) -> Vec<Heard> {
    sequences.into_iter().map(|sequence| Heard::Batch(sequence, payload(sequence))).collect()
}

fn hear(hears: &Receiver<Heard>, count: usize) -> Vec<Heard> {
    (0..count).map(|_| hears.recv_timeout(PATIENCE).unwrap()).collect()
}

#[test]
fn batches_come_in_order_and_what_is_none_is_counted() {
    let (engine, _listener, hears, metrics) = Engine::new(false);
    engine.publish(0);
    engine.send(&[b"kv", b"two frames"]);
    engine.send(&[b"kv", &[0; 8], b"four", b"frames"]);
    engine.send(&[b"kv", &[0; 7], b"a short number"]);
    engine.send(&[b"another topic", &9u64.to_be_bytes(), b"not for us"]);
    engine.publish(1);
    assert_eq!(hear(&hears, 2), batches([0, 1]));
    assert_eq!((metrics.bad_frames.get(), metrics.bad_number.get(), metrics.batches.get()), (2, 1, 2));
}

#[test]
fn a_gap_is_filled_by_a_replay_and_nothing_comes_twice() {
    let (engine, _listener, hears, metrics) = Engine::new(true);
    engine.publish(0);
    engine.publish(4);
    engine.publish(5);
    // Also what was published meanwhile.
    engine.answer(1, &[1, 2, 3, 4, 5]);
    engine.publish(6);
    assert_eq!(hear(&hears, 7), batches(0..=6));
    assert_eq!((metrics.replayed.get(), metrics.lost.get()), (5, 0));
}

#[test]
fn what_no_replay_brings_is_lost_and_the_rest_goes_on() {
    let (engine, _listener, hears, metrics) = Engine::new(true);
    engine.publish(4);
    engine.answer(0, &[2, 3, 4]);
    let mut expected = batches([2, 3, 4]);
    expected.push(Heard::Lost(2, Some(ReplayFailure::StartedAfterRequested)));
    assert_eq!(hear(&hears, 4), expected);
    engine.publish(7);
    engine.answer(5, &[]);
    let mut expected = vec![Heard::Lost(2, Some(ReplayFailure::Empty))];
    expected.extend(batches([7]));
    assert_eq!(hear(&hears, 2), expected);
    assert_eq!((metrics.lost.get(), metrics.batches.get()), (4, 4));
}

#[test]
fn without_a_replay_endpoint_a_gap_is_a_loss() {
    let (engine, _listener, hears, metrics) = Engine::new(false);
    engine.publish(3);
    let mut expected = vec![Heard::Lost(3, None)];
    expected.extend(batches([3]));
    assert_eq!(hear(&hears, 2), expected);
    assert_eq!(metrics.lost.get(), 3);
}

#[test]
fn an_engine_that_counts_anew_has_restarted() {
    let (engine, _listener, hears, metrics) = Engine::new(true);
    engine.publish(0);
    engine.publish(1);
    engine.publish(0);
    engine.publish(1);
    let mut expected = batches([0, 1]);
    expected.push(Heard::Restarted);
    expected.extend(batches([0, 1]));
    assert_eq!(hear(&hears, 5), expected);
    // Its first batches were missed.
    engine.publish(1);
    engine.answer(0, &[0, 1]);
    let mut expected = vec![Heard::Restarted];
    expected.extend(batches([0, 1]));
    assert_eq!(hear(&hears, 3), expected);
    assert_eq!((metrics.restarts.get(), metrics.lost.get()), (2, 0));
}

#[test]
fn what_an_engine_cached_before_is_asked_for_at_the_start() {
    let context = Context::new();
    let engine =
        Engine { events: context.socket(zmq::XPUB).unwrap(), replay: context.socket(zmq::ROUTER).unwrap() };
    let (events, replay) = (address(&engine.events), Some(address(&engine.replay)));
    let metrics = EngineIntakeMetrics::new(&Metrics::new()).unwrap().of_worker(7);
    let (heard, hears) = channel();
    let endpoint = EngineEndpoint { events, topic: String::new(), replay };
    let _listener = EngineListener::start(endpoint, Recorder(heard), metrics).unwrap();
    engine.answer(0, &[0, 1, 2]);
    assert_eq!(hear(&hears, 3), batches(0..3));
    engine.events.recv_bytes(0).unwrap();
    engine.publish(3);
    assert_eq!(hear(&hears, 1), batches([3]));
}

#[test]
fn dropping_it_ends_its_thread() {
    let (_engine, listener, hears, _) = Engine::new(true);
    drop(listener);
    assert_eq!(hears.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn an_address_that_is_none_is_refused() {
    let metrics = EngineIntakeMetrics::new(&Metrics::new()).unwrap().of_worker(7);
    let endpoint = EngineEndpoint { events: "localhost".to_owned(), topic: String::new(), replay: None };
    let (heard, _hears) = channel();
    let refused = EngineListener::start(endpoint, Recorder(heard), metrics).err().unwrap();
    assert!(refused.to_string().contains("tcp://HOST:PORT"), "{refused}");
}
