use std::time::Instant;

use dynamo_wire::{Config, Connection, ConnectionError, Role};
use proptest::prelude::*;

use crate::world::{User, World, small_config};

fn fresh() -> Connection<()> {
    Connection::new(Role::Acceptor, small_config(), Instant::now())
}

fn hello(config: &Config) -> Vec<u8> {
    let mut out = Vec::new();
    Connection::<()>::new(Role::Dialer, config.clone(), Instant::now()).take_output(Instant::now(), &mut out);
    out
}

#[test]
fn other_protocols_are_named_as_such() {
    let error =
        fresh().handle_input(Instant::now(), b"GET / HTTP/1.1\r\n", &mut User::default()).unwrap_err();
    assert_eq!(error, ConnectionError::BadMagic);
}

#[test]
fn unknown_frames_and_entries_are_skipped() {
    let mut end = fresh();
    let mut user = User::default();
    let mut bytes = hello(&small_config());
    bytes.extend_from_slice(&[200, 3, 5, 0, 9, 9, 9, 9, 1, 2, 3, 4, 5]);
    // An ITEMS frame with an entry of kind 7 and three bytes.
    bytes.extend_from_slice(&[4, 0, 5, 0, 0, 0, 0, 0, 1, 3 << 3 | 7, 1, 2, 3]);
    end.handle_input(Instant::now(), &bytes, &mut user).unwrap();
    assert!(end.is_established() && user.log.is_empty());
}

#[test]
fn breaches_are_errors() {
    let cases: &[(&[u8], ConnectionError)] = &[
        // An item for a stream that was never opened.
        (&[4, 0, 3, 0, 0, 0, 0, 0, 1, 1 << 3, 0], ConnectionError::BadStream(1)),
        // A window for one of ours that was never opened.
        (&[5, 0, 4, 0, 2, 0, 0, 0, 1, 0, 0, 0], ConnectionError::BadStream(2)),
        // A request with an id of ours.
        (&[2, 0, 0, 0, 2, 0, 0, 0], ConnectionError::BadStream(2)),
        (&[2, 0, 0, 0, 1, 0, 0, 0], ConnectionError::Malformed("request")),
        (&[4, 0, 2, 0, 0, 0, 0, 0, 1, 0xff], ConnectionError::Malformed("number")),
        (&[4, 0, 2, 0, 0, 0, 0, 0, 1, 1 << 3], ConnectionError::Malformed("entry")),
        (&[7, 0, 0, 0xf0, 0, 0, 0, 0], ConnectionError::FrameTooLarge(0xf000)),
        (&[7, 0, 1, 0, 0, 0, 0, 0, 1], ConnectionError::Malformed("ping")),
    ];
    for (bytes, error) in cases {
        let mut end = fresh();
        end.handle_input(Instant::now(), &hello(&small_config()), &mut User::default()).unwrap();
        let result = end.handle_input(Instant::now(), bytes, &mut User::default());
        assert_eq!(result.as_ref(), Err(error), "{bytes:?}");
    }
}

#[test]
fn more_than_the_credit_is_an_error() {
    // The sender believes in a larger credit than the receiver granted.
    let generous = Config { stream_credit: 1 << 20, connection_credit: 1 << 20, ..small_config() };
    let mut world = World::connected(&generous);
    let id = world.ends[0].connection.open(world.now, crate::world::request(b""), true, ()).unwrap();
    for _ in 0..100 {
        world.ends[0].connection.push_item(id, &[0; 1000]);
    }
    let (mut bytes, mut out) = (hello(&generous), Vec::new());
    while world.ends[0].connection.has_output() {
        world.ends[0].connection.take_output(world.now, &mut out);
        bytes.extend_from_slice(&out);
    }
    let error = fresh().handle_input(world.now, &bytes, &mut User::default()).unwrap_err();
    assert_eq!(error, ConnectionError::CreditExceeded);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_frames_never_panic(frames in prop::collection::vec(
        (0..12u8, any::<u8>(), 0..6u32, prop::collection::vec(any::<u8>(), 0..60)), 0..30,
    )) {
        let mut end = fresh();
        let mut user = User::default();
        let mut bytes = hello(&small_config());
        for (kind, flags, stream, payload) in frames {
            bytes.extend_from_slice(&[kind, flags, payload.len() as u8, 0]);
            bytes.extend_from_slice(&stream.to_le_bytes());
            bytes.extend_from_slice(&payload);
        }
        let _ = end.handle_input(Instant::now(), &bytes, &mut user);
        end.take_output(Instant::now(), &mut Vec::new());
    }

    #[test]
    fn mutated_conversations_never_panic(
        lens in prop::collection::vec((0..3usize, 0..12_000usize), 1..12),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..8),
    ) {
        let mut world = World::connected(&small_config());
        let ids = [0, 1, 2].map(|_| world.ends[0].connection.open(world.now, crate::world::request(b"q"), true, ()).unwrap());
        for (pick, len) in lens {
            world.ends[0].connection.push_item(ids[pick], &vec![1; len]);
        }
        let (mut bytes, mut out) = (hello(&small_config()), Vec::new());
        while world.ends[0].connection.has_output() {
            world.ends[0].connection.take_output(world.now, &mut out);
            bytes.extend_from_slice(&out);
        }
        for (at, value, how) in mutations {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => { bytes.remove(at); }
                _ => bytes.insert(at, value),
            }
        }
        let mut end = fresh();
        let mut user = User::default();
        for chunk in bytes.chunks(1000) {
            if end.handle_input(world.now, chunk, &mut user).is_err() {
                break;
            }
            end.take_output(world.now, &mut out);
        }
        end.close(|(), _| {});
        prop_assert_eq!((end.waiting(), end.timers()), (0, 0));
    }
}
