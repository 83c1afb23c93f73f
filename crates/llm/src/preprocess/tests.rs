use std::{path::Path, time::Duration};

use super::*;
use crate::{CardOptions, ModelCard};

fn preprocessor() -> Arc<Preprocessor> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama");
    let options = CardOptions { kv_cache_block_size: 16, ..CardOptions::default() };
    let card = ModelCard::from_directory(&directory, options).unwrap();
    let files = card.files().map(|(kind, file)| (kind, file.read_in_place().unwrap())).collect();
    Arc::new(Preprocessor::load(&card, &files).unwrap())
}

fn request(words: usize) -> ChatRequest {
    let messages = vec![ChatMessage::text("user", "word ".repeat(words))];
    ChatRequest { messages, add_generation_prompt: true, ..ChatRequest::default() }
}

#[tokio::test]
async fn long_prompts_wait_for_a_turn_no_longer_than_the_client_does() {
    let preprocessor = preprocessor();
    let turns = Arc::new(Semaphore::new(0));
    let deadline = Some(Instant::now() + Duration::from_millis(5));
    let short = preprocessor.prompt(&mut request(10), &turns, deadline).await.unwrap();
    let waited = preprocessor.prompt(&mut request(1000), &turns, deadline).await;
    assert!(matches!(waited, Err(GenerateError::DeadlineExceeded)));
    turns.add_permits(1);
    let long = preprocessor.prompt(&mut request(1000), &turns, None).await.unwrap();
    assert!(long.len() > short.len());
    assert_eq!(turns.available_permits(), 1);
}

#[test]
fn without_an_end_token_users_stop_tokens_end_nothing_either() {
    let preprocessor = preprocessor();
    let mut request = ChatRequest { stop_token_ids: vec![7], ..ChatRequest::default() };
    let stops = |request: &ChatRequest| {
        preprocessor.engine_request(request, vec![1], RoutingHints::default()).stop_conditions.stop_token_ids
    };
    assert_eq!(stops(&request), Some(vec![7]));
    request.ignore_eos = true;
    assert_eq!(stops(&request), None);
}
