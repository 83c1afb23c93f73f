//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
    response::IntoResponse,
};
use dynamo_llm::ModelInfo;
use dynamo_protocols::{ModelList, ModelObject};
use serde_json::json;

use crate::{api_error::ApiError, app::App};

pub(crate) async fn list(State(app): State<Arc<App>>) -> Response<Body> {
    let models = app.catalog.list();
    Json(ModelList { object: "list", data: models.iter().map(object).collect() }).into_response()
}

/// A model by its exact id, which may hold slashes; else, with `/ready` behind the id, whether it can answer.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let models = app.catalog.list();
    let known = |id: &str| models.iter().find(|model| model.id == id);
    if let Some(model) = known(&id) {
        return Ok(Json(object(model)).into_response());
    }
    let of_readiness = id.strip_suffix("/ready").and_then(known);
    let Some(model) = of_readiness else { return Err(ApiError::model_not_found(&id)) };
    Ok(match app.catalog.get(&model.id) {
        Some(_) => Json(json!({"ready": true})).into_response(),
        None => {
            let reason = "no complete set of workers";
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"ready": false, "reason": reason}))).into_response()
        }
    })
}

fn object(model: &ModelInfo) -> ModelObject<'_> {
    ModelObject {
        id: &model.id,
        object: "model",
        created: model.created,
        owned_by: "dynamo",
        context_window: model.context_length,
    }
}
