//! How requests end.

use dynamo_engine_api::{AbortReason, Engine, FinishReason, StopReason, Submission};

use super::harness::{Harness, Reader, instant, prompt, request};
use crate::{MockerConfig, Vocabulary};

#[tokio::test(start_paused = true)]
async fn the_last_output_says_why_and_counts() {
    let mut harness = Harness::new(instant());
    let reader = harness.serve([request(prompt(1, 100), 5)]).await.remove(0);
    assert_eq!(reader.tokens().len(), 5);
    assert_eq!(reader.read.lock().outputs.len(), 5, "one output per token, the last with the reason");
    let last = reader.last();
    assert_eq!(last.finish_reason, Some(FinishReason::Length));
    let usage = last.completion_usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (100, 5, 105));
    let outputs = &reader.read.lock().outputs;
    assert!(
        outputs[..4]
            .iter()
            .all(|(_, output)| output.finish_reason.is_none() && output.completion_usage.is_none())
    );
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
async fn what_cannot_be_served_ends_with_an_error() {
    let config = MockerConfig { num_gpu_blocks: 4, max_model_len: Some(200), max_waiting: 3, ..instant() };
    let mut harness = Harness::new(config);
    let error = |reader: &Reader| match reader.finish() {
        Some(FinishReason::Error(text)) => text,
        other => panic!("{other:?}"),
    };
    let long = harness.serve([request(prompt(1, 200), 1)]).await.remove(0);
    assert_eq!(error(&long), "the prompt has 200 tokens, and at most 199 fit");
    assert!(error(&harness.serve([request(vec![], 1)]).await[0]).contains("no tokens"));
    let nowhere = harness.submit_to(3, request(prompt(1, 2), 1), Reader::default()).1;
    assert_eq!(error(&nowhere), "there is no rank 3: this worker has 1");
    // The inbox is looked at only when this task waits.
    let many: Vec<Reader> = (0..4).map(|i| harness.submit(request(prompt(i, 2), 1)).1).collect();
    assert!(error(&many[3]).contains("3 requests are waiting already"));
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
    struct Refused(Reader);
    impl dynamo_engine_api::OutputSink for Refused {
        fn push(&mut self, output: &dynamo_engine_api::EngineOutput) -> dynamo_engine_api::SinkState {
            self.0.read.lock().outputs.push((tokio::time::Instant::now(), output.clone()));
            dynamo_engine_api::SinkState::Open
        }
        fn flush(&mut self) {}
    }
    let second = Reader::default();
    let sink = Box::new(Refused(second.clone()));
    harness.engine.submit(Submission { key, dp_rank: 0, request: request(prompt(1, 10), 3), sink });
    assert_eq!(second.finish(), Some(FinishReason::Error("request 1 is live already".into())));
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
    assert!(matches!(late.finish(), Some(FinishReason::Error(_))));
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
