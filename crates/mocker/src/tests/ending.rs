//! How requests end.

use dynamo_engine_api::{AbortReason, Engine, FinishReason, Refused, StopReason};

use super::harness::{Harness, Reader, instant, prompt, request};
use crate::{MockerConfig, Vocabulary};

#[tokio::test(start_paused = true)]
async fn the_first_output_counts_and_the_last_says_why_too() {
    let mut harness = Harness::new(instant());
    let reader = harness.serve([request(prompt(1, 100), 5)]).await.remove(0);
    assert_eq!(reader.tokens().len(), 5);
    assert_eq!(reader.read.lock().outputs.len(), 5, "one output per token, the last with the reason");
    let last = reader.last();
    assert_eq!(last.finish_reason, Some(FinishReason::Length));
    let usage = last.completion_usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (100, 5, 105));
    let outputs = &reader.read.lock().outputs;
    let first = outputs[0].1.completion_usage.unwrap();
    assert_eq!((first.prompt_tokens, first.completion_tokens), (100, 1));
    assert_eq!(first.prompt_tokens_details.unwrap().cached_tokens, 0);
    assert!(outputs[..4].iter().all(|(_, output)| output.finish_reason.is_none()));
    assert!(outputs[1..4].iter().all(|(_, output)| output.completion_usage.is_none()));
}

#[tokio::test(start_paused = true)]
async fn the_first_output_says_what_was_cached() {
    let mut harness = Harness::new(instant());
    for cached in [0, 576] {
        let reader = harness.serve([request(prompt(1, 640), 5)]).await.remove(0);
        let first = reader.read.lock().outputs[0].1.completion_usage.unwrap();
        assert_eq!(first.prompt_tokens_details.unwrap().cached_tokens, cached);
    }
}

#[tokio::test(start_paused = true)]
async fn end_tokens_are_drawn_only_when_asked_for() {
    let vocabulary = Vocabulary::Range { start: 0, end: 8 };
    let finish = async |draw_end_tokens, ignore_eos, min_tokens| {
        let mut harness =
            Harness::new(MockerConfig { vocabulary: vocabulary.clone(), draw_end_tokens, ..instant() });
        let mut request = request(prompt(1, 10), 200);
        request.eos_token_ids = vec![3];
        request.stop_conditions.ignore_eos = Some(ignore_eos);
        request.stop_conditions.min_tokens = min_tokens;
        let reader = harness.serve([request]).await.remove(0);
        (reader.finish().unwrap(), reader.tokens())
    };
    let (reason, tokens) = finish(false, false, None).await;
    assert_eq!((reason, tokens.len()), (FinishReason::Length, 200));
    assert!(!tokens.contains(&3));
    let (reason, tokens) = finish(true, false, None).await;
    assert_eq!(reason, FinishReason::Eos);
    assert_eq!(tokens.iter().position(|&token| token == 3), Some(tokens.len() - 1));
    let (reason, tokens) = finish(true, true, None).await;
    assert_eq!((reason, tokens.len(), tokens.contains(&3)), (FinishReason::Length, 200, true));
    let (reason, tokens) = finish(true, false, Some(100)).await;
    assert_eq!(reason, FinishReason::Eos);
    assert!(tokens.len() >= 100 && tokens[..99].contains(&3) && tokens.last() == Some(&3));
}

#[tokio::test(start_paused = true)]
async fn a_stop_token_of_the_users_stops() {
    let mut harness =
        Harness::new(MockerConfig { vocabulary: Vocabulary::Set([1, 2, 3].into()), ..instant() });
    let mut request = request(prompt(1, 10), 200);
    request.stop_conditions.stop_token_ids = Some(vec![2]);
    let reader = harness.serve([request]).await.remove(0);
    let last = reader.last();
    assert_eq!(
        (last.finish_reason, last.stop_reason),
        (Some(FinishReason::Stop), Some(StopReason::Token(2)))
    );
    assert_eq!(reader.tokens().iter().filter(|&&token| token == 2).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_is_refused_at_submission() {
    let config = MockerConfig { num_gpu_blocks: 4, max_model_len: Some(200), max_waiting: 3, ..instant() };
    let mut harness = Harness::new(config);
    let invalid = |reader: &Reader| match reader.refused() {
        Some(Refused::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    let long = harness.submit(request(prompt(1, 200), 1)).1;
    assert_eq!(invalid(&long), "the prompt has 200 tokens, and at most 199 fit");
    assert!(invalid(&harness.submit(request(vec![], 1)).1).contains("the prompt has no tokens"));
    assert!(invalid(&harness.submit(request(prompt(1, 2), 0)).1).contains("no tokens were asked for"));
    let nowhere = harness.submit_to(3, request(prompt(1, 2), 1), Reader::default()).1;
    let why = "there is no rank 3: this worker has 1".to_owned();
    assert_eq!(nowhere.refused(), Some(Refused::Unavailable(why)));
    // The inbox is looked at only when this task waits.
    let many: Vec<Reader> = (0..4).map(|i| harness.submit(request(prompt(i, 2), 1)).1).collect();
    let Some(Refused::Overloaded(why)) = many[3].refused() else { panic!("{:?}", many[3].refused()) };
    assert!(why.contains("3 requests are waiting already"));
    for reader in &many {
        reader.ended().await;
    }
    assert_eq!(many[0].finish(), Some(FinishReason::Length));
    let full = harness.serve([request(prompt(1, 190), 1000)]).await.remove(0);
    assert_eq!((full.finish(), full.tokens().len()), (Some(FinishReason::Length), 10), "the context is full");
    harness.empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_live_is_refused() {
    let mut harness = Harness::new(MockerConfig::default());
    let (key, first) = harness.submit(request(prompt(1, 10), 3));
    let second = harness.submit_as(key, request(prompt(1, 10), 3));
    assert_eq!(second.refused(), Some(Refused::Unavailable("request 1 is live already".into())));
    first.ended().await;
    assert_eq!(first.tokens().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_abort_is_seen_while_the_engine_sleeps() {
    let mut harness = Harness::new(MockerConfig { speedup_ratio: 0.001, ..MockerConfig::default() });
    let (key, reader) = harness.submit(request(prompt(1, 1000), 100));
    let (_, other) = harness.submit(request(prompt(2, 10), 2));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(harness.engine.stats().running, 2);
    let before = tokio::time::Instant::now();
    harness.engine.abort(key, AbortReason::Cancelled);
    reader.ended().await;
    assert!(before.elapsed() < std::time::Duration::from_millis(5));
    assert!(reader.read.lock().outputs.is_empty());
    let stats = harness.engine.stats();
    assert_eq!((stats.live, stats.running), (1, 1));
    assert_eq!((stats.held_blocks, stats.used_blocks), (16, 17), "the step in flight still writes them");
    other.ended().await;
    assert_eq!(other.tokens().len(), 2);
    harness.engine.abort(key, AbortReason::Cancelled);
    harness.empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_sink_ends_its_request() {
    let mut harness = Harness::new(MockerConfig::default());
    let closing = Reader::default();
    closing.read.lock().closed_after = Some(3);
    harness.submit_to(0, request(prompt(1, 10), 1000), closing.clone());
    let (_, open) = harness.submit(request(prompt(2, 10), 20));
    closing.ended().await;
    assert_eq!(closing.tokens().len(), 3);
    open.ended().await;
    assert_eq!(open.tokens().len(), 20);
    harness.empty().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_engine_ends_its_tasks_and_requests() {
    let mut harness = Harness::new(MockerConfig { data_parallel_size: 2, ..MockerConfig::default() });
    let (_, reader) = harness.submit(request(prompt(1, 10), 1000));
    reader.flushed(2).await;
    let Harness { engine, mut tasks, .. } = harness;
    drop(engine);
    reader.ended().await;
    assert_eq!(reader.finish(), None, "an incomplete stream has no reason");
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_whose_tasks_were_cancelled_refuses() {
    let mut harness = Harness::new(MockerConfig::default());
    let (_, reader) = harness.submit(request(prompt(1, 10), 1000));
    reader.flushed(2).await;
    harness.tasks.shutdown().await;
    reader.ended().await;
    let (_, late) = harness.submit(request(prompt(1, 10), 1000));
    assert!(matches!(late.refused(), Some(Refused::Unavailable(_))));
    harness.empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_taken_back_before_it_was_looked_at_is_never_served() {
    let mut harness = Harness::new(instant());
    let (key, reader) = harness.submit(request(prompt(1, 10), 5));
    harness.engine.abort(key, AbortReason::Cancelled);
    reader.ended().await;
    assert!(reader.read.lock().outputs.is_empty());
    assert_eq!(harness.empty().await.steps, 0);
}
