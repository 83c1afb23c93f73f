use std::time::Duration;

use dynamo_wire::{CancelKind, CancelReason, Config, Failure, FailureCode, OpenRefused, Pushed, Request};

use crate::world::{World, request, small_config};

#[test]
fn a_request_is_answered() {
    let mut world = World::connected(&small_config());
    let id = world.open(0, b"question");
    world.settle();
    let [client, server] = &mut world.ends;
    assert_eq!(server.user.stream(id).request, Some(request(b"question")));
    assert!(!client.user.stream(id).accepted);
    server.connection.accept(id);
    assert_eq!(server.connection.push_item(id, b"answer"), Pushed::Direct);
    assert!(server.connection.finish(id));
    assert_eq!(server.connection.push_item(id, b"late"), Pushed::Closed);
    world.drain();
    let [client, server] = &mut world.ends;
    assert!(client.user.stream(id).accepted && client.user.stream(id).ended);
    assert_eq!(client.user.stream(id).taken, [b"answer"]);
    assert_eq!((client.connection.streams(), server.connection.streams()), (0, 0));
}

#[test]
fn a_step_of_many_streams_is_one_frame() {
    let mut world = World::connected(&small_config());
    let ids: Vec<_> = (0..50).map(|_| world.open(0, b"q")).collect();
    world.settle();
    for &id in &ids {
        world.ends[1].connection.accept(id);
    }
    world.settle();
    for &id in &ids {
        world.ends[1].connection.push_item(id, b"tok");
    }
    let mut out = Vec::new();
    world.ends[1].connection.take_output(world.now, &mut out);
    assert_eq!(usize::from(u16::from_le_bytes([out[2], out[3]])) + 8, out.len());
    // Stream, length and kind, and three bytes: no more than five or six bytes each.
    assert!(out.len() <= 8 + 50 * 6, "{}", out.len());
}

#[test]
fn without_credit_items_wait_and_the_stalled_reader_is_ended() {
    let config = Config { stall_limit: Duration::from_secs(4), send_buffer: 100_000, ..small_config() };
    let mut world = World::connected(&config);
    let slow = world.open(0, b"q");
    let other = world.open(0, b"q");
    world.settle();
    while world.ends[1].connection.push_item(slow, &[7; 1000]) == Pushed::Direct {}
    world.settle();
    assert_eq!(world.ends[1].connection.waiting(), 1004);
    assert!(world.ends[0].user.stream(slow).inbox.held() <= 32 * 1024);
    // Another stream's items pass.
    assert_eq!(world.ends[1].connection.push_item(other, b"x"), Pushed::Direct);
    world.settle();
    assert_eq!(world.ends[0].user.stream(other).inbox.held(), 5);

    world.tick(Duration::from_secs(3)).unwrap();
    assert_eq!(world.ends[1].connection.streams(), 2);
    world.tick(Duration::from_secs(1)).unwrap();
    world.settle();
    assert_eq!(world.ends[1].user.stream(slow).cancelled, Some((CancelKind::Kill, CancelReason::SlowReader)));
    assert_eq!(world.ends[0].user.stream(slow).failure.as_ref().unwrap().code, FailureCode::SlowReader);
    assert_eq!(world.ends[1].connection.waiting(), 0);
    world.ends[1].connection.finish(other);
    world.drain();
    assert_at_rest(&mut world, &config);
}

#[test]
fn a_full_send_buffer_ends_the_stream_at_once() {
    let config = Config { send_buffer: 10_000, ..small_config() };
    let mut world = World::connected(&config);
    let id = world.open(0, b"q");
    world.settle();
    let mut pushes = 0;
    while world.ends[1].connection.push_item(id, &[7; 1000]) != Pushed::SlowReader {
        pushes += 1;
        world.settle();
        assert!(world.ends[1].connection.waiting() <= 10_000);
    }
    assert!((40..45).contains(&pushes), "{pushes}");
    world.drain();
    assert_eq!(world.ends[0].user.stream(id).failure.as_ref().unwrap().code, FailureCode::SlowReader);
    assert_at_rest(&mut world, &config);
}

#[test]
fn long_messages_take_turns_with_small_items() {
    let config = Config { connection_credit: 1 << 20, stream_credit: 1 << 19, ..small_config() };
    let mut world = World::connected(&config);
    let long = world.open(0, &[1; 250_000]);
    let other = world.open(1, b"q");
    // What is before a small item in this process is one output, and what follows it is the rest.
    let mut out = Vec::new();
    world.ends[0].connection.take_output(world.now, &mut out);
    assert!(out.len() < 100_000);
    let first = out.clone();
    world.ends[0].connection.take_output(world.now, &mut out);
    world.ends[0].wire = [first, out].concat();
    world.settle();
    assert_eq!(world.ends[1].user.stream(long).request.as_ref().unwrap().payload.len(), 250_000);
    world.ends[1].connection.push_item(long, &vec![2; 250_000]);
    world.ends[0].connection.push_item(other, b"small");
    world.settle();
    assert!(
        !world.ends[0].user.stream(long).inbox.is_empty()
            && !world.ends[1].user.stream(other).inbox.is_empty()
    );
    world.ends[1].connection.finish(long);
    world.ends[0].connection.finish(other);
    world.drain();
    assert_eq!(world.ends[0].user.stream(long).taken, [vec![2; 250_000]]);
    assert_at_rest(&mut world, &config);
}

#[test]
fn messages_beyond_the_budget_wait_for_it() {
    // Two of them do not fit; the second comes when the first has been taken.
    let config = Config { connection_credit: 128 * 1024, ..small_config() };
    let mut world = World::connected(&config);
    let ids = [world.open(0, b"q"), world.open(0, b"q")];
    world.settle();
    for id in ids {
        world.ends[1].connection.push_item(id, &vec![3; 250_000]);
    }
    world.settle();
    let arrived: Vec<bool> = ids.iter().map(|&id| !world.ends[0].user.stream(id).inbox.is_empty()).collect();
    assert_eq!(arrived.iter().filter(|&&here| here).count(), 1);
    assert_eq!(world.ends[0].connection.reassembly_left(), 150_000);
    for id in ids {
        world.ends[1].connection.finish(id);
    }
    world.drain();
    for id in ids {
        assert_eq!(world.ends[0].user.stream(id).taken, [vec![3; 250_000]]);
    }
    assert_at_rest(&mut world, &config);
}

#[test]
fn an_untaken_message_holds_up_the_next_one_of_its_stream() {
    let config = small_config();
    let mut world = World::connected(&config);
    let id = world.open(0, b"q");
    world.settle();
    for fill in 0..6 {
        world.ends[1].connection.push_item(id, &vec![fill; 100_000]);
    }
    world.settle();
    assert!(world.ends[0].user.stream(id).inbox.held() <= 100_000 + 32 * 1024);
    world.ends[1].connection.finish(id);
    world.drain();
    let taken = &world.ends[0].user.stream(id).taken;
    assert_eq!(
        taken.iter().map(|item| (item[0], item.len())).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5].map(|fill| (fill, 100_000))
    );
    assert_at_rest(&mut world, &config);
}

#[test]
fn cancel_stops_or_kills() {
    let config = small_config();
    let mut world = World::connected(&config);
    let ids = [world.open(0, b"q"), world.open(0, b"q"), world.open(0, b"q")];
    // A stop that is asked for before the request has left follows it.
    world.ends[0].connection.cancel(ids[2], CancelKind::Stop, CancelReason::NotNeeded);
    world.settle();
    assert_eq!(
        world.ends[1].user.stream(ids[2]).cancelled,
        Some((CancelKind::Stop, CancelReason::NotNeeded))
    );
    world.ends[0].connection.cancel(ids[0], CancelKind::Stop, CancelReason::NotNeeded);
    world.ends[0].connection.cancel(ids[1], CancelKind::Kill, CancelReason::ClientGone);
    assert_eq!(world.ends[1].connection.push_item(ids[1], b"on its way"), Pushed::Direct);
    world.settle();
    let server = &mut world.ends[1];
    assert_eq!(server.user.stream(ids[0]).cancelled, Some((CancelKind::Stop, CancelReason::NotNeeded)));
    assert_eq!(server.user.stream(ids[1]).cancelled, Some((CancelKind::Kill, CancelReason::ClientGone)));
    assert_eq!(server.connection.push_item(ids[1], b"x"), Pushed::Closed);
    assert_eq!(server.connection.push_item(ids[0], b"last"), Pushed::Direct);
    server.connection.finish(ids[0]);
    server.connection.finish(ids[2]);
    // One that has never left is gone without a trace.
    let unsent = world.open(0, b"q");
    world.ends[0].connection.cancel(unsent, CancelKind::Kill, CancelReason::ClientGone);
    world.drain();
    assert!(world.ends[0].user.stream(ids[0]).ended);
    assert!(world.ends[1].user.stream(unsent).request.is_none());
    assert_at_rest(&mut world, &config);
}

#[test]
fn both_ends_know_when_time_is_up() {
    let config = small_config();
    let mut world = World::connected(&config);
    let timed = Request { time_left: Some(Duration::from_millis(1500)), ..request(b"q") };
    let id = world.ends[0].connection.open(world.now, timed, false, ()).unwrap();
    world.settle();
    let due = world.ends[1].connection.next_timeout();
    assert_eq!(due, world.now + Duration::from_millis(1500));
    world.tick(Duration::from_millis(1499)).unwrap();
    assert_eq!(world.ends[1].connection.streams(), 1);
    world.tick(Duration::from_millis(1)).unwrap();
    assert_eq!(world.ends[0].user.stream(id).failure.as_ref().unwrap().code, FailureCode::DeadlineExceeded);
    assert_eq!(
        world.ends[1].user.stream(id).cancelled,
        Some((CancelKind::Kill, CancelReason::DeadlineExceeded))
    );
    world.drain();
    assert_at_rest(&mut world, &config);
}

#[test]
fn a_silent_peer_is_found_by_a_ping() {
    let config = small_config();
    let mut world = World::connected(&config);
    world.tick(config.ping_interval).unwrap();
    world.settle();
    // Answered: the clock starts anew.
    world.tick(config.ping_interval - Duration::from_millis(1)).unwrap();
    assert!(!world.ends[0].connection.has_output());
    world.tick(Duration::from_millis(1)).unwrap();
    world.tick(config.pong_timeout - Duration::from_millis(1)).unwrap();
    assert_eq!(world.tick(Duration::from_millis(1)), Err(dynamo_wire::ConnectionError::PeerSilent));
}

#[test]
fn refusals_are_typed() {
    let config = Config { max_streams: 2, ..small_config() };
    let mut world = World::connected(&config);
    let now = world.now;
    let client = &mut world.ends[0].connection;
    let refused =
        |client: &mut dynamo_wire::Connection<()>, request| client.open(now, request, false, ()).unwrap_err();
    assert_eq!(refused(client, request(&vec![0; 300_001])), OpenRefused::PayloadTooLarge { max: 300_000 });
    let long = Request { metadata: vec![("k".into(), "v".repeat(17_000))], ..request(b"") };
    assert_eq!(refused(client, long), OpenRefused::HeadTooLarge);
    let ids = [
        client.open(now, request(b""), false, ()).unwrap(),
        client.open(now, request(b""), false, ()).unwrap(),
    ];
    assert_eq!(refused(client, request(b"")), OpenRefused::TooManyStreams);
    world.ends[1].user.refuse = Some(FailureCode::Unavailable);
    world.settle();
    for id in ids {
        let seen = world.ends[0].user.stream(id);
        assert_eq!(seen.failure, Some(Failure::new(FailureCode::Unavailable, "refused")));
        assert!(!seen.accepted);
    }
    assert_at_rest(&mut world, &config);
}

#[test]
fn both_halves_carry_items() {
    let config = small_config();
    let mut world = World::connected(&config);
    let id = world.ends[0].connection.open(world.now, request(b"first"), true, ()).unwrap();
    for n in 0..100u8 {
        world.ends[0].connection.push_item(id, &[n; 900]);
    }
    world.ends[0].connection.finish(id);
    world.settle();
    assert!(world.ends[1].user.stream(id).request.is_some());
    assert_eq!(world.ends[1].connection.push_item(id, b"back"), Pushed::Direct);
    world.drain();
    assert_eq!(world.ends[1].user.stream(id).taken.len(), 100);
    assert!(world.ends[1].user.stream(id).ended);
    world.ends[1]
        .connection
        .fail(id, Failure { code: FailureCode::Application, detail: 42, text: "no".into() });
    world.drain();
    let seen = world.ends[0].user.stream(id);
    assert_eq!(seen.taken, [b"back"]);
    assert_eq!(seen.failure.as_ref().unwrap().detail, 42);
    assert_at_rest(&mut world, &config);
}

#[test]
fn going_away_names_a_path_or_all() {
    let mut world = World::connected(&small_config());
    world.ends[1].connection.go_away(Some("ns/comp/ep"), false);
    world.ends[1].connection.go_away(Some("ns/comp/ep"), true);
    world.ends[1].connection.go_away(None, false);
    world.settle();
    let path = || Some("ns/comp/ep".to_owned());
    assert_eq!(world.ends[0].user.gone, [(path(), false), (path(), true), (None, false)]);
}

#[test]
fn a_lost_connection_names_its_streams() {
    let mut world = World::connected(&small_config());
    world.open(0, b"q");
    world.open(1, b"q");
    world.settle();
    let mut lost = Vec::new();
    world.ends[0].connection.close(|(), ours| lost.push(ours));
    lost.sort_unstable();
    assert_eq!(lost, [false, true]);
    assert_eq!(world.ends[0].connection.streams(), 0);
}

pub(crate) fn assert_at_rest(world: &mut World, config: &Config) {
    let credits = world.ends.each_ref().map(|end| end.connection.credits());
    for (this, other) in [(0, 1), (1, 0)] {
        let connection = &world.ends[this].connection;
        assert_eq!(connection.streams(), 0);
        assert_eq!(connection.waiting(), 0);
        assert_eq!(connection.timers(), 0);
        assert_eq!(connection.reassembly_left(), config.reassembly_budget);
        assert_eq!(credits[this].1, u64::from(config.connection_credit), "credit has been lost or made");
        assert!(
            credits[this].0 > u64::from(config.connection_credit / 4 * 3)
                && credits[this].0 <= credits[other].1
        );
    }
}

#[test]
fn a_message_given_up_on_its_way_returns_what_it_held() {
    let config = small_config();
    let mut world = World::connected(&config);
    let ids = [world.open(0, b"q"), world.open(0, b"q")];
    world.settle();
    for id in ids {
        world.ends[1].connection.push_item(id, &vec![3; 250_000]);
    }
    // One is here and not taken, the other waits for its budget with what credit it has.
    world.settle();
    for id in ids {
        world.ends[0].connection.cancel(id, CancelKind::Kill, CancelReason::ClientGone);
    }
    world.drain();
    assert_at_rest(&mut world, &config);
}
