//! From a chat request to token ids and a decoder, by one model's template and tokenizer.

use std::sync::Arc;

use dynamo_engine_api::{OutputOptions, PreprocessedRequest, RoutingHints, StopConditions};
use dynamo_text::{
    ChatTemplate, DecoderConfig, LocalTime, ModelConfig, OutputDecoder, RenderInput, TemplateSources,
    Tokenizer, TokenizerConfig,
};
use tokio::sync::Semaphore;

use crate::{ChatRequest, GenerateError, card::ModelCard, files::ModelFileKind};

/// Prompts up to this many bytes are tokenized where they arrive: it takes less than half a millisecond, and a hop to
/// another thread and back costs a tenth of that. Longer ones go to the pool.
const INLINE_BYTES: usize = 2048;

/// Everything of a model that needs its files.
pub(crate) struct Preprocessor {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    eos_token_ids: Arc<[u32]>,
    context_length: u32,
    vocab_size: u32,
    checksum: String,
    name: String,
}

/// Why a model's files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that the card should name.
    #[error("the model card names no {0}")]
    Missing(&'static str),
    /// A file's contents.
    #[error("{file}: {message}")]
    Content {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// The bytes of a model's files.
pub(crate) type ModelFiles = Vec<(ModelFileKind, Vec<u8>)>;

fn content(kind: ModelFileKind) -> impl Fn(String) -> LoadError {
    move |message| LoadError::Content { file: kind.file_name(), message }
}

impl Preprocessor {
    /// Reads the files. Takes tens to hundreds of milliseconds: not for a reactor.
    pub(crate) fn load(card: &ModelCard, files: &ModelFiles) -> Result<Self, LoadError> {
        let find = |wanted: ModelFileKind| {
            files.iter().find(|(kind, _)| *kind == wanted).map(|(_, bytes)| bytes.as_slice())
        };
        let need = |kind: ModelFileKind| find(kind).ok_or(LoadError::Missing(kind.file_name()));
        let in_config = content(ModelFileKind::Config);
        let config = ModelConfig::parse(dynamo_text::ModelFiles {
            config: need(ModelFileKind::Config)?,
            generation_config: find(ModelFileKind::GenerationConfig),
            tokenizer_config: find(ModelFileKind::TokenizerConfig),
        })
        .map_err(|error| in_config(error.to_string()))?;
        let tokenizer = Tokenizer::from_json(need(ModelFileKind::Tokenizer)?)
            .map_err(|error| content(ModelFileKind::Tokenizer)(error.to_string()))?;
        let in_template = |message: String| content(ModelFileKind::ChatTemplate)(message);
        let template_file = find(ModelFileKind::ChatTemplate)
            .map(std::str::from_utf8)
            .transpose()
            .map_err(|error| in_template(error.to_string()))?;
        let tokenizer_config = find(ModelFileKind::TokenizerConfig)
            .map(TokenizerConfig::parse)
            .transpose()
            .map_err(|error| content(ModelFileKind::TokenizerConfig)(error.to_string()))?;
        let sources = TemplateSources {
            custom: None,
            file: template_file,
            tokenizer_config: tokenizer_config.as_ref(),
        };
        let template = ChatTemplate::new(&sources, Arc::new(utc_now))
            .map_err(|error| content(ModelFileKind::TokenizerConfig)(error.to_string()))?;
        Ok(Self {
            template,
            eos_token_ids: config.eos_token_ids.into(),
            context_length: card.context_length,
            vocab_size: config
                .vocab_size
                .unwrap_or(0)
                .max(u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX)),
            tokenizer,
            checksum: card.checksum(),
            name: card.display_name.clone(),
        })
    }

    /// Template and tokenizer. Long prompts wait for a turn in the pool that `turns` bounds.
    pub(crate) async fn prompt(
        self: &Arc<Self>,
        request: &mut ChatRequest,
        turns: &Arc<Semaphore>,
    ) -> Result<Vec<u32>, GenerateError> {
        let tokens = match request.token_data.take() {
            Some(tokens) => {
                if let Some(token) = tokens.iter().find(|&&token| token >= self.vocab_size) {
                    return Err(GenerateError::Invalid {
                        param: Some("nvext.token_data"),
                        message: format!(
                            "nvext.token_data holds {token}, and this model's tokens end at {}",
                            self.vocab_size - 1
                        ),
                    });
                }
                tokens
            }
            None => self.tokenize(self.render(request)?, turns).await?,
        };
        if tokens.is_empty() {
            return Err(GenerateError::Invalid {
                param: Some("messages"),
                message: "messages: the prompt has no tokens".to_owned(),
            });
        }
        if tokens.len() >= self.context_length as usize {
            return Err(GenerateError::PromptTooLong {
                prompt_tokens: tokens.len(),
                context_length: self.context_length,
            });
        }
        Ok(tokens)
    }

    fn render(&self, request: &ChatRequest) -> Result<String, GenerateError> {
        self.template
            .render(&RenderInput {
                messages: &request.messages,
                tools: request.tools.as_ref(),
                add_generation_prompt: request.add_generation_prompt,
                args: request.template_args.as_ref(),
            })
            .map_err(|error| match error.is_request_fault() {
                true => GenerateError::Template(error.to_string()),
                false => GenerateError::Internal(error.to_string()),
            })
    }

    async fn tokenize(
        self: &Arc<Self>,
        text: String,
        turns: &Arc<Semaphore>,
    ) -> Result<Vec<u32>, GenerateError> {
        let internal = |error: String| GenerateError::Internal(error);
        if text.len() <= INLINE_BYTES {
            return self.tokenizer.encode(&text, false).map_err(|error| internal(error.to_string()));
        }
        let turn = turns.clone().acquire_owned().await.map_err(|_| GenerateError::Cancelled)?;
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let tokens = this.tokenizer.encode(&text, false);
            drop(turn);
            tokens
        })
        .await
        .map_err(|error| internal(error.to_string()))?
        .map_err(|error| internal(error.to_string()))
    }

    /// The engine's request.
    pub(crate) fn engine_request(
        &self,
        request: &ChatRequest,
        token_ids: Vec<u32>,
        routing: RoutingHints,
    ) -> PreprocessedRequest {
        let room = self.context_length.saturating_sub(u32::try_from(token_ids.len()).unwrap_or(u32::MAX));
        let eos = if request.ignore_eos { Vec::new() } else { self.eos_token_ids.to_vec() };
        let hidden = (!eos.is_empty()).then(|| eos.clone());
        let own = (!request.stop_token_ids.is_empty()).then(|| request.stop_token_ids.clone());
        PreprocessedRequest {
            model: self.name.clone(),
            token_ids,
            stop_conditions: StopConditions {
                max_tokens: Some(request.max_tokens.map_or(room, |asked| asked.min(room))),
                stop_token_ids: own,
                stop_token_ids_hidden: hidden,
                min_tokens: request.min_tokens,
                ignore_eos: Some(request.ignore_eos),
                ..StopConditions::default()
            },
            sampling_options: request.sampling.clone(),
            output_options: OutputOptions {
                skip_special_tokens: request.skip_special_tokens,
                ..OutputOptions::default()
            },
            eos_token_ids: eos,
            mdc_sum: Some(self.checksum.clone()),
            annotations: request.annotations.clone(),
            routing,
        }
    }

    /// The decoder of one answer to `prompt`.
    pub(crate) fn decoder(&self, request: &mut ChatRequest, prompt: &[u32]) -> OutputDecoder {
        let config = DecoderConfig {
            stop: std::mem::take(&mut request.stop),
            stop_token_ids: std::mem::take(&mut request.stop_token_ids),
            min_tokens: request.min_tokens.unwrap_or(0),
            ignore_eos: request.ignore_eos,
            skip_special_tokens: request.skip_special_tokens.unwrap_or(true),
            include_stop_str_in_output: request.include_stop_str_in_output,
            ..DecoderConfig::new(self.eos_token_ids.clone())
        };
        OutputDecoder::new(self.tokenizer.table().clone(), config, prompt)
    }
}

/// What templates that print the date are told: UTC, as servers run in it.
fn utc_now() -> LocalTime {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    LocalTime::from_unix(i64::try_from(now.as_secs()).unwrap_or(0), 0)
}
