use super::*;
use crate::analyze::{Analysis, analyze};

const BLOCK: u32 = 64;

/// Conversations: a common first block, some system prompts, and turns that go on where earlier ones ended.
fn conversations(requests: usize) -> Vec<TraceRequest> {
    let mut rng = SplitMix::new(7);
    let mut open: Vec<Vec<u64>> = Vec::new();
    let mut next_id = 100;
    let mut time = 0.0;
    let mut trace = Vec::new();
    for _ in 0..requests {
        time += if rng.below(3) == 0 { 3000.0 * rng.exponential() } else { 0.0 };
        let mut ids = if !open.is_empty() && rng.below(2) == 0 {
            open.swap_remove(rng.below(open.len() as u64) as usize)
        } else {
            vec![0, 1 + rng.below(20)]
        };
        for _ in 0..1 + rng.below(12) {
            ids.push(next_id);
            next_id += 1;
        }
        if rng.below(3) > 0 {
            open.push(ids.clone());
        }
        trace.push(TraceRequest {
            timestamp: Some(f64::floor(time)),
            input_length: ids.len() as u32 * BLOCK - rng.below(u64::from(BLOCK)) as u32,
            output_length: 1 + (300.0 * rng.exponential()) as u32,
            hash_ids: ids,
            ..TraceRequest::default()
        });
    }
    trace
}

fn synthesis(num_requests: u64) -> Synthesis {
    Synthesis {
        num_requests,
        speedup_ratio: 1.0,
        prefix_len_multiplier: 1.0,
        prefix_root_multiplier: 1,
        prompt_len_multiplier: 1.0,
        osl_multiplier: 1.0,
        max_isl: None,
        min_isl: None,
        max_osl: None,
        min_osl: None,
        window: 64,
        block_size: BLOCK,
        seed: 1,
    }
}

fn make(old: &[TraceRequest], synthesis: Synthesis) -> Vec<SynthesizedRequest> {
    let mut made = Vec::new();
    let sink = |new| {
        made.push(new);
        Ok::<(), SynthesisError>(())
    };
    Synthesizer::new(old, synthesis).unwrap().run(sink).unwrap();
    made
}

fn statistics(made: &[SynthesizedRequest]) -> Analysis {
    let requests: Vec<TraceRequest> = made.iter().map(|made| made.request.clone()).collect();
    analyze(&requests, BLOCK, &[])
}

fn close(a: f64, b: f64, share: f64) {
    assert!((a - b).abs() <= share * b.abs(), "{a} is not within {share} of {b}");
}

#[test]
fn a_trace_of_equal_length_keeps_lengths_rates_and_hits() {
    let old = conversations(4000);
    let (before, after) = (analyze(&old, BLOCK, &[]), statistics(&make(&old, synthesis(4000))));
    for (a, b) in [
        (after.input_length, before.input_length),
        (after.output_length, before.output_length),
        (after.context_length, before.context_length),
    ] {
        close(a.mean, b.mean, 1e-9);
        assert_eq!((a.min, a.p50, a.p99, a.max), (b.min, b.p50, b.p99, b.max));
    }
    assert_eq!((after.blocks, after.distinct_blocks), (before.blocks, before.distinct_blocks));
    close(after.cached_share, before.cached_share, 1e-9);
    close(after.requests_per_second, before.requests_per_second, 0.02);
}

#[test]
fn part_of_a_trace_is_like_the_part_of_the_old_one() {
    let old = conversations(4000);
    let (before, after) = (analyze(&old[..1500], BLOCK, &[]), statistics(&make(&old, synthesis(1500))));
    close(after.input_length.mean, before.input_length.mean, 0.05);
    close(after.output_length.mean, before.output_length.mean, 0.1);
    close(after.cached_share, before.cached_share, 0.05);
}

#[test]
fn prefixes_come_back_after_as_long_as_they_did() {
    let old = conversations(4000);
    let bounded = |trace: &[TraceRequest]| analyze(trace, BLOCK, &[400]).cached_share_by_blocks[0].1;
    let with = |window| {
        let made = make(&old, Synthesis { window, ..synthesis(4000) });
        bounded(&made.into_iter().map(|made| made.request).collect::<Vec<_>>())
    };
    close(with(1), bounded(&old), 1e-9);
    close(with(64), bounded(&old), 0.1);
    assert!(with(u32::MAX) < with(64) * 0.8, "{} {}", with(u32::MAX), with(64));
}

#[test]
fn equal_seeds_are_equal_traces_and_other_seeds_are_not() {
    let old = conversations(300);
    assert_eq!(make(&old, synthesis(200)), make(&old, synthesis(200)));
    assert_ne!(make(&old, synthesis(200)), make(&old, Synthesis { seed: 2, ..synthesis(200) }));
}

#[test]
fn each_multiplier_does_its_own_part() {
    let old = conversations(2000);
    let plain = statistics(&make(&old, synthesis(2000)));
    let with = |change: fn(&mut Synthesis)| {
        let mut changed = synthesis(2000);
        change(&mut changed);
        statistics(&make(&old, changed))
    };
    let faster = with(|s| s.speedup_ratio = 4.0);
    close(faster.seconds, plain.seconds / 4.0, 0.02);
    let prefix = with(|s| s.prefix_len_multiplier = 3.0);
    close(prefix.context_length.mean, plain.context_length.mean * 3.0, 0.02);
    close(prefix.unique_prompt_length.mean, plain.unique_prompt_length.mean, 0.02);
    let prompt = with(|s| s.prompt_len_multiplier = 2.0);
    close(prompt.unique_prompt_length.mean, plain.unique_prompt_length.mean * 2.0, 0.02);
    let output = with(|s| s.osl_multiplier = 0.5);
    close(output.output_length.mean, plain.output_length.mean / 2.0, 0.02);
    let roots = with(|s| s.prefix_root_multiplier = 50);
    assert!(roots.cached_share < plain.cached_share * 0.7, "{} {}", roots.cached_share, plain.cached_share);
    close(roots.input_length.mean, plain.input_length.mean, 1e-9);
}

#[test]
fn limits_drop_prompts_and_cut_answers() {
    let old = conversations(500);
    let limits = Synthesis {
        min_isl: Some(200),
        max_isl: Some(700),
        min_osl: Some(50),
        max_osl: Some(60),
        ..synthesis(400)
    };
    let made = make(&old, limits.clone());
    assert_eq!(made.len(), 400);
    for SynthesizedRequest { request, context_len, unique_user_prompt_len } in &made {
        assert!((200..=700).contains(&request.input_length) && (50..=60).contains(&request.output_length));
        assert_eq!(context_len + unique_user_prompt_len, request.input_length);
        assert_eq!(request.hash_ids.len() as u32, request.input_length.div_ceil(BLOCK));
    }
    let none = Synthesis { min_isl: Some(1 << 30), max_isl: None, ..limits };
    let error = Synthesizer::new(&old, none).unwrap().run(|_| Ok::<(), SynthesisError>(())).unwrap_err();
    assert!(matches!(error, SynthesisError::NoneFits { .. }));
}

#[test]
fn a_wrong_block_size_is_told() {
    let old = conversations(10);
    let wrong = Synthesis { block_size: 512, ..synthesis(10) };
    assert!(matches!(Synthesizer::new(&old, wrong), Err(SynthesisError::BlockSize { block_size: 512, .. })));
    assert!(matches!(Synthesizer::new(&[], synthesis(1)), Err(SynthesisError::NoBlocks)));
}
