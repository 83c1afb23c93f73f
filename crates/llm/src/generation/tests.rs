use std::{path::Path, sync::Arc};

use dynamo_engine_api::encode_output;
use dynamo_text::{DecoderConfig, Tokenizer};

use super::*;

const EOS: u32 = 2;

fn decoded() -> DecodedOutput {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama/tokenizer.json");
    let tokenizer = Tokenizer::from_json(&std::fs::read(file).unwrap()).unwrap();
    let eos: Arc<[u32]> = vec![EOS].into();
    DecodedOutput {
        decoder: OutputDecoder::new(tokenizer.table().clone(), DecoderConfig::new(eos), &[1]),
        output: EngineOutput::default(),
        text: String::new(),
        usage: CompletionUsage::default(),
        closed: None,
        engine_ended: false,
        is_prefilled: false,
    }
}

fn show(decoded: &mut DecodedOutput, output: &EngineOutput) -> Vec<(u32, Option<FinishReason>)> {
    let mut item = Vec::new();
    encode_output(output, &mut item);
    let mut deltas = Vec::new();
    decoded.show(&item, &mut |delta| deltas.push((delta.tokens, delta.finish_reason)));
    deltas
}

fn finish(reason: FinishReason) -> EngineOutput {
    EngineOutput { finish_reason: Some(reason), ..EngineOutput::default() }
}

#[test]
fn an_answer_that_the_engine_ends_is_known_to_be_near_its_streams_end() {
    let mut decoded = decoded();
    let token = EngineOutput { token_ids: [5].into_iter().collect(), ..EngineOutput::default() };
    assert_eq!(show(&mut decoded, &token), [(1, None)]);
    assert!(decoded.closed.is_none() && !decoded.engine_ended);
    assert_eq!(show(&mut decoded, &finish(FinishReason::Length)), [(0, Some(FinishReason::Length))]);
    assert!(matches!(decoded.closed, Some(Closed::Finished)) && decoded.engine_ended);
}

#[test]
fn an_answer_that_the_frontend_ends_has_a_stream_that_goes_on() {
    let mut decoded = decoded();
    let token = EngineOutput { token_ids: [EOS].into_iter().collect(), ..EngineOutput::default() };
    assert_eq!(show(&mut decoded, &token), [(1, Some(FinishReason::Eos))]);
    assert!(matches!(decoded.closed, Some(Closed::Finished)) && !decoded.engine_ended);
}

#[test]
fn an_engine_that_takes_a_request_back_gives_no_answer() {
    let mut decoded = decoded();
    assert!(show(&mut decoded, &finish(FinishReason::Cancelled)).is_empty());
    assert!(matches!(decoded.closed, Some(Closed::Failed(GenerateError::Cancelled))));
}

#[test]
fn faults_of_the_request_are_told_apart_from_those_of_the_worker() {
    let invalid = StreamError::Application { code: 400, message: "too long".into() };
    assert!(matches!(stream_error(invalid), GenerateError::Invalid { param: None, .. }));
    let failed = StreamError::Application { code: 500, message: "broken".into() };
    assert!(matches!(stream_error(failed), GenerateError::Engine(_)));
    let large = StreamError::TooLarge("9 MiB".into());
    assert!(matches!(stream_error(large), GenerateError::Invalid { param: Some("messages"), .. }));
    assert!(matches!(stream_error(StreamError::Disconnected), GenerateError::WorkerLost));
}
