//! The bodies of `GET /v1/models` and `GET /v1/models/{id}`.

use serde::Serialize;

/// All models.
#[derive(Clone, Debug, Serialize)]
pub struct ModelList<'a> {
    /// `list`.
    pub object: &'static str,
    /// They.
    pub data: Vec<ModelObject<'a>>,
}

/// One model.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ModelObject<'a> {
    pub id: &'a str,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
    /// Tokens of prompt and answer together.
    pub context_window: u32,
}
