use std::{collections::BTreeMap, time::Duration};

use dynamo_wire::{CancelKind, CancelReason, Config, Failure, FailureCode, Pushed, StreamId};
use proptest::prelude::*;

use crate::{
    behaviours::assert_at_rest,
    world::{World, request, small_config},
};

#[derive(Clone, Debug)]
enum Op {
    Open { from: usize, payload: usize, more: bool },
    Push { pick: usize, by: usize, len: usize },
    Finish { pick: usize, by: usize },
    Fail { pick: usize },
    Cancel { pick: usize, kill: bool },
    Transfer { from: usize, most: usize, chunk: usize },
    Take { pick: usize, by: usize, count: usize },
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..40usize, 3 => 0..9000usize, 1 => 9000..120_000usize]
}

fn op() -> impl Strategy<Value = Op> {
    let (end, pick) = (0..2usize, any::<usize>());
    prop_oneof![
        2 => (end.clone(), length(), any::<bool>()).prop_map(|(from, payload, more)| Op::Open { from, payload, more }),
        12 => (pick, end.clone(), length()).prop_map(|(pick, by, len)| Op::Push { pick, by, len }),
        1 => (pick, end.clone()).prop_map(|(pick, by)| Op::Finish { pick, by }),
        1 => pick.prop_map(|pick| Op::Fail { pick }),
        1 => (pick, any::<bool>()).prop_map(|(pick, kill)| Op::Cancel { pick, kill }),
        12 => (end.clone(), 1..100_000usize, 1..9000usize)
            .prop_map(|(from, most, chunk)| Op::Transfer { from, most, chunk }),
        6 => (pick, end, 1..20usize).prop_map(|(pick, by, count)| Op::Take { pick, by, count }),
    ]
}

/// What has been put into one half of a stream, and whether it may be lost.
#[derive(Default)]
struct Half {
    items: Vec<Vec<u8>>,
    finished: bool,
}

#[derive(Default)]
struct Model {
    /// By stream, then by pushing end.
    halves: BTreeMap<u32, [Half; 2]>,
    opener: BTreeMap<u32, usize>,
    ids: Vec<StreamId>,
    /// Streams that were cut off, where items may be missing at the end.
    cut: BTreeMap<u32, ()>,
}

fn content(id: StreamId, count: usize, len: usize) -> Vec<u8> {
    let seed = id.get().wrapping_mul(31).wrapping_add(count as u32);
    (0..len).map(|at| (seed.wrapping_add(at as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn apply(world: &mut World, model: &mut Model, op: &Op, config: &Config) {
    let pick =
        |model: &Model, pick: usize| (!model.ids.is_empty()).then(|| model.ids[pick % model.ids.len()]);
    match *op {
        Op::Open { from, payload, more } => {
            let now = world.now;
            let payload = content(crate::world::id_of(1), 0, payload);
            if let Ok(id) = world.ends[from].connection.open(now, request(&payload), more, ()) {
                model.ids.push(id);
                model.opener.insert(id.get(), from);
                model.halves.insert(id.get(), Default::default());
            }
        }
        Op::Push { pick: n, by, len } => {
            let Some(id) = pick(model, n) else { return };
            if model.opener[&id.get()] != by && world.ends[by].user.stream(id).request.is_none() {
                return;
            }
            let half = &mut model.halves.get_mut(&id.get()).unwrap()[by];
            let item = content(id, half.items.len(), len);
            match world.ends[by].connection.push_item(id, &item) {
                Pushed::Direct | Pushed::Queued => half.items.push(item),
                Pushed::Closed => {}
                other => panic!("{other:?}"),
            }
        }
        Op::Finish { pick: n, by } => {
            let Some(id) = pick(model, n) else { return };
            if model.opener[&id.get()] != by && world.ends[by].user.stream(id).request.is_none() {
                return;
            }
            if world.ends[by].connection.finish(id) {
                model.halves.get_mut(&id.get()).unwrap()[by].finished = true;
                if model.opener[&id.get()] != by {
                    // What the opener still sends is of no more use.
                    model.cut.insert(id.get(), ());
                }
            }
        }
        Op::Fail { pick: n } => {
            let Some(id) = pick(model, n) else { return };
            let by = 1 - model.opener[&id.get()];
            if world.ends[by].user.stream(id).request.is_some() {
                world.ends[by].connection.fail(id, Failure::new(FailureCode::Application, "no"));
                model.cut.insert(id.get(), ());
            }
        }
        Op::Cancel { pick: n, kill } => {
            let Some(id) = pick(model, n) else { return };
            let by = model.opener[&id.get()];
            let kind = if kill { CancelKind::Kill } else { CancelKind::Stop };
            world.ends[by].connection.cancel(id, kind, CancelReason::NotNeeded);
            model.cut.insert(id.get(), ());
        }
        Op::Transfer { from, most, chunk } => {
            world.transfer(from, most, chunk).unwrap();
        }
        Op::Take { pick: n, by, count } => {
            let Some(id) = pick(model, n) else { return };
            for _ in 0..count {
                world.ends[by].take(id);
            }
        }
    }
    for end in &world.ends {
        let (mut small, mut long) = (0, 0);
        for seen in end.user.seen.values() {
            assert!(seen.inbox.small_bytes() <= config.stream_credit as usize);
            small += seen.inbox.small_bytes();
            long += seen.inbox.messages().map(|message| message.bytes.len()).sum::<usize>();
        }
        assert!(small <= config.connection_credit as usize);
        assert!(long as u64 <= config.reassembly_budget + u64::from(config.connection_credit));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_in_order_and_credits_come_back(
        ops in prop::collection::vec(op(), 1..250),
        stream_credit in 32..80u32,
        connection_credit in 0..64u32,
    ) {
        let config = Config {
            stream_credit: stream_credit * 1024,
            connection_credit: (stream_credit + connection_credit) * 1024,
            send_buffer: u32::MAX,
            ..small_config()
        };
        let mut world = World::connected(&config);
        let mut model = Model::default();
        for op in &ops {
            apply(&mut world, &mut model, op, &config);
        }
        world.drain();
        for &id in &model.ids {
            // Whoever still pushes ends; the acceptor last, which ends the stream.
            let opener = model.opener[&id.get()];
            world.ends[opener].connection.finish(id);
            world.drain();
            world.ends[1 - opener].connection.finish(id);
        }
        world.drain();
        for &id in &model.ids {
            for by in 0..2 {
                let pushed = &model.halves[&id.get()][by].items;
                let taken = &world.ends[1 - by].user.stream(id).taken;
                if model.cut.contains_key(&id.get()) {
                    prop_assert!(pushed.starts_with(taken), "stream {id:?} from {by}");
                } else {
                    prop_assert_eq!(taken, pushed);
                }
            }
        }
        world.tick(Duration::from_millis(1)).unwrap();
        assert_at_rest(&mut world, &config);
    }

    #[test]
    fn any_chunking_gives_the_same_events(
        lens in prop::collection::vec((0..4usize, length()), 1..60),
        chunks in prop::collection::vec(1..40_000usize, 1..20),
    ) {
        // One recorded direction, replayed in other chunks into a fresh end.
        let config = Config { connection_credit: 32 << 20, stream_credit: 16 << 20, send_buffer: u32::MAX, ..small_config() };
        let mut world = World::connected(&config);
        let mut recorded = Vec::new();
        let mut hello = Vec::new();
        let mut end = dynamo_wire::Connection::<()>::new(dynamo_wire::Role::Dialer, config.clone(), world.now);
        end.take_output(world.now, &mut hello);
        recorded.extend_from_slice(&hello);
        let ids: Vec<StreamId> = (0..4)
            .map(|n| world.ends[0].connection.open(world.now, request(&[n; 50]), true, ()).unwrap())
            .collect();
        for (count, &(pick, len)) in lens.iter().enumerate() {
            world.ends[0].connection.push_item(ids[pick], &content(ids[pick], count, len));
        }
        for &id in &ids {
            world.ends[0].connection.finish(id);
        }
        let mut out = Vec::new();
        while world.ends[0].connection.has_output() {
            world.ends[0].connection.take_output(world.now, &mut out);
            recorded.extend_from_slice(&out);
        }
        let replay = |sizes: &mut dyn FnMut() -> usize| {
            let mut fresh = World::new([config.clone(), config.clone()]);
            let end = &mut fresh.ends[1];
            let mut rest = recorded.as_slice();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(sizes().min(rest.len()));
                end.connection.handle_input(fresh.now, chunk, &mut end.user).unwrap();
                rest = after;
            }
            std::mem::take(&mut end.user.log)
        };
        let whole = replay(&mut || usize::MAX);
        prop_assert!(whole.len() >= lens.len() + 8);
        let mut at = 0;
        prop_assert_eq!(&replay(&mut || { at += 1; chunks[at % chunks.len()] }), &whole);
        prop_assert_eq!(&replay(&mut || 7), &whole);
    }
}
