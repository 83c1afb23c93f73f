//! Formulas, tokens, schedule, events, configuration.

use std::time::Duration;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_scheduler::{BlockChange, FullBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash, TokenId};

use crate::kv_report::events_of;
use crate::{MockConfigError, MockerConfig, Timetable, TimingModel, TokenState, Vocabulary};

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

#[test]
fn steps_take_what_the_formulas_say() {
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    close(TimingModel::prefill_ms(0), 0.0);
    close(TimingModel::prefill_ms(1000), 4.209989e-7 * 1e6 + 15.18344 + 16.50142);
    close(TimingModel::decode_ms(0.0), 5.74);
    close(TimingModel::decode_ms(0.5), -6.435 + 27.005 + 5.74);
    close(TimingModel::decode_ms(7.0), TimingModel::decode_ms(1.0));
    let step =
        |ratio, tokens, decodes| TimingModel::new(ratio).step(tokens, decodes, 0.0).as_secs_f64() * 1e3;
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} {b}");
    near(step(1.0, 0, true), 5.74);
    near(step(10.0, 0, true), 0.574);
    near(step(1.0, 100, false), TimingModel::prefill_ms(100));
    near(step(1.0, 100, true), TimingModel::prefill_ms(100) + 5.74);
    near(step(0.0, 8192, true), 0.0);
    assert!(step(f64::MIN_POSITIVE, 1, true).is_finite());
}

#[test]
fn only_a_millisecond_is_worth_sleeping_and_nothing_adds_up() {
    let mut timetable = Timetable::default();
    timetable.idle_until(ms(100));
    for _ in 0..4 {
        timetable.begin(Duration::from_micros(300));
    }
    assert!(timetable.worth_sleeping(ms(100)));
    assert!(!timetable.worth_sleeping(Duration::from_micros(100_201)));
    // Late by 50 ms: the next ones follow at once, until the schedule is reached again.
    timetable.begin(ms(20));
    assert!(!timetable.worth_sleeping(ms(170)));
    timetable.begin(ms(60));
    assert_eq!(timetable.due(), Duration::from_micros(181_200));
    assert!(timetable.worth_sleeping(ms(170)));
    // Nobody asked for anything for a while: that is not made up for.
    timetable.idle_until(ms(500));
    timetable.begin(ms(5));
    assert_eq!(timetable.due(), ms(505));
}

#[test]
fn a_token_depends_on_the_seeds_and_on_all_tokens_before() {
    let vocabulary = Vocabulary::default();
    let next = |state: TokenState| state.next(&vocabulary, &[]);
    let start = TokenState::new(1, None);
    let prompt: Vec<TokenId> = (0..100).collect();
    let mut state = start.after_all(&prompt);
    let mut all = prompt.clone();
    for _ in 0..50 {
        let token = next(state);
        assert_eq!(token, next(start.after_all(&all)), "whoever goes on from here gives the same");
        all.push(token);
        state = state.after(token);
    }
    let mut missing = all.clone();
    missing.remove(40);
    let mut doubled = all.clone();
    doubled.insert(40, all[40]);
    let mut swapped = all.clone();
    swapped.swap(40, 41);
    let other_seeds = [TokenState::new(2, None), TokenState::new(1, Some(1))];
    let others: Vec<TokenId> = [missing, doubled, swapped]
        .iter()
        .map(|tokens| next(start.after_all(tokens)))
        .chain(other_seeds.iter().map(|seed| next(seed.after_all(&all))))
        .collect();
    assert!(others.iter().all(|&token| token != next(state)), "{others:?}");
}

#[test]
fn tokens_come_from_the_vocabulary_and_are_not_unwanted() {
    let range = Vocabulary::Range { start: 10, end: 14 };
    let set = Vocabulary::Set([3, 5, 700].into());
    let mut seen: [Vec<TokenId>; 2] = Default::default();
    let mut state = TokenState::new(0, None);
    for _ in 0..500 {
        seen[0].push(state.next(&range, &[11]));
        seen[1].push(state.next(&set, &[]));
        state = state.after(7);
    }
    for tokens in &mut seen {
        tokens.sort_unstable();
        tokens.dedup();
    }
    assert_eq!(seen, [vec![10, 12, 13], vec![3, 5, 700]]);
    assert_eq!(state.next(&Vocabulary::Set([5].into()), &[5]), 5, "there is nothing else");
}

#[test]
fn blocks_that_follow_one_another_share_an_event() {
    let block = |hash, parent: Option<u64>| {
        BlockChange::Stored(FullBlock {
            sequence_hash: SequenceHash(hash),
            local_hash: LocalBlockHash(hash + 100),
            parent: parent.map(SequenceHash),
            index: 0,
        })
    };
    let gone = |hash| BlockChange::Removed(SequenceHash(hash));
    let mut changes = vec![
        block(1, None),
        block(2, Some(1)),
        block(3, Some(1)),
        gone(2),
        gone(9),
        block(4, Some(3)),
        block(5, None),
    ];
    let stored = |parent: Option<u64>, hashes: &[u64]| KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: hashes
            .iter()
            .map(|&hash| StoredBlock {
                block_hash: ExternalBlockHash(hash),
                tokens_hash: LocalBlockHash(hash + 100),
            })
            .collect(),
    };
    let removed =
        KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(2), ExternalBlockHash(9)] };
    assert_eq!(
        events_of(&mut changes),
        [stored(None, &[1, 2]), stored(Some(1), &[3]), removed, stored(Some(3), &[4]), stored(None, &[5])]
    );
    assert!(changes.is_empty());
}

#[test]
fn configuration_reads_names_of_the_reference_and_refuses_nonsense() {
    let config: MockerConfig = serde_json::from_str(
        r#"{"num_gpu_blocks": 100, "dp_size": 2, "speedup_ratio": 0, "preemption_mode": "fifo",
            "vocabulary": {"start": 5, "end": 9}, "startup_time": 1.5}"#,
    )
    .unwrap();
    assert_eq!((config.num_gpu_blocks, config.data_parallel_size, config.block_size), (100, 2, 64));
    assert_eq!(config.vocabulary, Vocabulary::Range { start: 5, end: 9 });
    assert_eq!(config.validate(), Ok(()));
    assert!(serde_json::from_str::<MockerConfig>(r#"{"num_gpu_block": 100}"#).is_err());
    let set: MockerConfig = serde_json::from_str(r#"{"vocabulary": [4, 5]}"#).unwrap();
    assert_eq!(set.vocabulary, Vocabulary::Set([4, 5].into()));
    let base = MockerConfig::default;
    assert_eq!(base().validate(), Ok(()));
    let wrong = |config: MockerConfig| config.validate().unwrap_err();
    assert_eq!(wrong(MockerConfig { block_size: 0, ..base() }), MockConfigError::Zero("block_size"));
    for ratio in [-1.0, f64::NAN, f64::INFINITY] {
        let error = wrong(MockerConfig { speedup_ratio: ratio, ..base() });
        assert_eq!(error, MockConfigError::Negative("speedup_ratio"));
    }
    let empty = Vocabulary::Range { start: 9, end: 9 };
    assert_eq!(wrong(MockerConfig { vocabulary: empty, ..base() }), MockConfigError::NoVocabulary);
    assert!(matches!(wrong(MockerConfig { max_num_seqs: 9000, ..base() }), MockConfigError::Scheduler(_)));
}
