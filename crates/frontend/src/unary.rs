//! A whole answer: a stream, folded.

use std::{future::poll_fn, task::ready};

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use dynamo_llm::{GenerateError, Generation, Progress};
use dynamo_protocols::{AnswerMessage, ChatChoice, ChatCompletion};

use crate::{
    answer::{AnswerShape, Ending},
    api_error::ApiError,
    chat::{log_failure, outcome_of},
    metrics::{Outcome, RequestTracker},
    request_id::RequestId,
    usage::public_usage,
};

pub(crate) async fn answer(
    mut generation: Box<dyn Generation>,
    shape: &AnswerShape,
    mut tracker: RequestTracker,
) -> Result<Response<Body>, ApiError> {
    let mut text = String::new();
    let ended = fold(&mut *generation, &mut text, &mut tracker).await;
    let (finish_reason, stop) = ended.map_err(|error| {
        tracker.end(outcome_of(&error));
        log_failure(&RequestId(shape.id.clone()), &error);
        ApiError::from_generate(&error, shape.overload_status)
    })?;
    let usage = generation.usage();
    let body = ChatCompletion {
        id: &format!("chatcmpl-{}", shape.id),
        object: ChatCompletion::OBJECT,
        created: shape.created,
        model: &shape.model.info().id,
        choices: [ChatChoice {
            index: 0,
            message: AnswerMessage { role: "assistant", content: &text, refusal: None },
            logprobs: None,
            finish_reason,
        }],
        usage: public_usage(usage),
        nvext: shape.extra.answer(&*generation, usage, &tracker, stop),
    };
    let bytes =
        serde_json::to_vec(&body).expect("a Vec takes all bytes, and these types have only string keys");
    tracker.usage(usage, &*generation);
    tracker.end(Outcome::Success);
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

type Ended = Result<(&'static str, Option<dynamo_engine_api::StopReason>), GenerateError>;

async fn fold(generation: &mut dyn Generation, text: &mut String, tracker: &mut RequestTracker) -> Ended {
    let mut ending = Ending::default();
    loop {
        let progress = poll_fn(|cx| {
            let mut tokens = 0;
            let polled = generation.poll_deltas(cx, &mut |delta| {
                tokens += delta.tokens;
                text.push_str(delta.text);
                ending.note(delta);
            });
            tracker.tokens(tokens);
            ready!(polled).into()
        });
        match progress.await {
            Progress::More => {}
            Progress::End => return ending.resolve(),
            Progress::Failed(_) if ending.is_complete() => return ending.resolve(),
            Progress::Failed(error) => return Err(error),
        }
    }
}
