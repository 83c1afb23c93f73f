//! Whether a frontend will be able to serve the model: found out where the model is, and before it is offered.

use std::sync::Arc;

use dynamo_llm::{FileError, ModelCard, ModelFileKind};
use dynamo_text::{
    ChatTemplate, ConfigError, LocalTime, TemplateError, TemplateSources, Tokenizer, TokenizerConfig,
    TokenizerError,
};

/// Why a model can't be served. One line, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelCheckError {
    /// A file that changed or went while it was read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json`.
    #[error("tokenizer.json: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// `tokenizer_config.json`.
    #[error("tokenizer_config.json: {0}")]
    TokenizerConfig(ConfigError),
    /// `chat_template.jinja`, or the user's own.
    #[error("{path} is no text: {error}")]
    NoText {
        /// The template's file.
        path: String,
        /// Where it is not.
        error: std::str::Utf8Error,
    },
    /// A template is missing or does not compile.
    #[error("no chat can be served: {0}; give one with --custom-jinja-template FILE")]
    Template(#[from] TemplateError),
}

/// Reads the files of a card and makes of them what a frontend makes. Takes tens to hundreds of milliseconds: not for a
/// reactor.
pub(crate) fn check_model(card: &ModelCard) -> Result<Tokenizer, ModelCheckError> {
    let find = |wanted: ModelFileKind| card.files().find(|(kind, _)| *kind == wanted).map(|(_, file)| file);
    let read = |wanted| find(wanted).map(|file| file.read_in_place()).transpose();
    let config = read(ModelFileKind::TokenizerConfig)?
        .map(|bytes| TokenizerConfig::parse(&bytes))
        .transpose()
        .map_err(ModelCheckError::TokenizerConfig)?;
    let template = read(ModelFileKind::ChatTemplate)?;
    let template = template.as_deref().map(std::str::from_utf8).transpose().map_err(|error| {
        let path = find(ModelFileKind::ChatTemplate).map(|file| file.path.clone()).unwrap_or_default();
        ModelCheckError::NoText { path, error }
    })?;
    let sources = TemplateSources { custom: None, file: template, tokenizer_config: config.as_ref() };
    // Only compiled here, so it never asks what time it is.
    ChatTemplate::new(&sources, Arc::new(|| LocalTime::from_unix(0, 0)))?;
    Ok(Tokenizer::from_json(&card.tokenizer.read_in_place()?)?)
}

#[cfg(test)]
mod tests;
