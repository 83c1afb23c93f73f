//! `GET` and `POST /busy_threshold`: how busy workers may be.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    response::IntoResponse,
};
use dynamo_llm::BusyThresholds;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{api_error::ApiError, app::App, request_body::read_json};

/// The thresholds of one model, by the names of the route.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ModelThresholds {
    model: String,
    #[serde(default)]
    active_decode_blocks_threshold: Option<f64>,
    #[serde(default)]
    active_prefill_tokens_threshold: Option<u64>,
    #[serde(default)]
    active_prefill_tokens_threshold_frac: Option<f64>,
}

impl ModelThresholds {
    fn new(model: String, thresholds: BusyThresholds) -> Self {
        Self {
            model,
            active_decode_blocks_threshold: thresholds.active_decode_blocks,
            active_prefill_tokens_threshold: thresholds.active_prefill_tokens,
            active_prefill_tokens_threshold_frac: thresholds.active_prefill_tokens_frac,
        }
    }

    fn given(&self) -> BusyThresholds {
        BusyThresholds {
            active_decode_blocks: self.active_decode_blocks_threshold,
            active_prefill_tokens: self.active_prefill_tokens_threshold,
            active_prefill_tokens_frac: self.active_prefill_tokens_threshold_frac,
        }
    }
}

/// Those of all models that can be asked.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response<Body> {
    let of = |name: String| {
        let model = app.catalog.get(&name)?;
        Some(ModelThresholds::new(name, model.busy_thresholds()))
    };
    let thresholds: Vec<_> = app.catalog.list().into_iter().filter_map(|model| of(model.id)).collect();
    Json(json!({"thresholds": thresholds})).into_response()
}

/// Sets those that are given, and says all; with none given, only says them.
pub(crate) async fn set(State(app): State<Arc<App>>, request: Request) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let (bytes, _held) = read_json(&parts.headers, body, &app.body_limits).await?;
    let asked: ModelThresholds = match serde_json::from_slice(&bytes) {
        Ok(asked) => asked,
        Err(error) => return Ok(refused(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())),
    };
    let Some(model) = app.catalog.get(&asked.model) else {
        return Ok(refused(StatusCode::NOT_FOUND, &format!("model not found: {:.256}", asked.model)));
    };
    let given = asked.given();
    let thresholds =
        if given.is_set() { model.merge_busy_thresholds(given) } else { Ok(model.busy_thresholds()) };
    Ok(match thresholds {
        Ok(thresholds) => Json(ModelThresholds::new(asked.model, thresholds)).into_response(),
        Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
    })
}

fn refused(status: StatusCode, error: &str) -> Response<Body> {
    (status, Json(json!({"error": error}))).into_response()
}
