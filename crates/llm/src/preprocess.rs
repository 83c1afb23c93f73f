//! From a chat request to token ids and a decoder, by one model's template and tokenizer.

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::{OutputOptions, PreprocessedRequest, RoutingHints, StopConditions};
use dynamo_protocols::ChatMessage;
use dynamo_text::{
    ChatTemplate, DecoderConfig, LocalTime, ModelConfig, OutputDecoder, RenderInput, TemplateSources,
    Tokenizer, TokenizerConfig,
};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{ChatRequest, GenerateError, card::ModelCard, files::ModelFileKind};

/// Prompts up to this many bytes are rendered and tokenized where they arrive: it takes less than half a millisecond,
/// and a hop to another thread and back costs a tenth of that. Longer ones go to the pool.
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

    /// Template and tokenizer. Long prompts wait for a turn in the pool that `turns` bounds, until `deadline`. Takes the
    /// conversation out of the request.
    pub(crate) async fn prompt(
        self: &Arc<Self>,
        request: &mut ChatRequest,
        turns: &Arc<Semaphore>,
        deadline: Option<Instant>,
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
            None => self.tokens_of(Conversation::take(request), turns, deadline).await?,
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

    fn render(&self, request: &Conversation) -> Result<String, GenerateError> {
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

    fn encode(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        self.tokenizer.encode(text, false).map_err(|error| GenerateError::Internal(error.to_string()))
    }

    async fn tokens_of(
        self: &Arc<Self>,
        conversation: Conversation,
        turns: &Arc<Semaphore>,
        deadline: Option<Instant>,
    ) -> Result<Vec<u32>, GenerateError> {
        let this = self.clone();
        if conversation.bytes() > INLINE_BYTES {
            let turn = turn(turns, deadline).await?;
            return in_pool(turn, move || this.encode(&this.render(&conversation)?)).await;
        }
        let text = self.render(&conversation)?;
        if text.len() <= INLINE_BYTES {
            return self.encode(&text);
        }
        // A long template.
        let turn = turn(turns, deadline).await?;
        in_pool(turn, move || this.encode(&text)).await
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
        let own = (!request.ignore_eos && !request.stop_token_ids.is_empty())
            .then(|| request.stop_token_ids.clone());
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
            router: request.latency_targets,
            router_config_override: None,
            prefill_result: None,
        }
    }

    /// The decoder of one answer to `prompt`.
    pub(crate) fn decoder(&self, request: &mut ChatRequest, prompt: &[u32]) -> OutputDecoder {
        let stop_token_ids = std::mem::take(&mut request.stop_token_ids);
        let config = DecoderConfig {
            stop: std::mem::take(&mut request.stop),
            stop_token_ids: if request.ignore_eos { Vec::new() } else { stop_token_ids },
            min_tokens: request.min_tokens.unwrap_or(0),
            ignore_eos: request.ignore_eos,
            skip_special_tokens: request.skip_special_tokens.unwrap_or(true),
            include_stop_str_in_output: request.include_stop_str_in_output,
            ..DecoderConfig::new(self.eos_token_ids.clone())
        };
        OutputDecoder::new(self.tokenizer.table().clone(), config, prompt)
    }
}

/// What the template is given.
struct Conversation {
    messages: Vec<ChatMessage>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    template_args: Option<serde_json::Map<String, Value>>,
}

impl Conversation {
    fn take(request: &mut ChatRequest) -> Self {
        Self {
            messages: std::mem::take(&mut request.messages),
            tools: request.tools.take(),
            add_generation_prompt: request.add_generation_prompt,
            template_args: request.template_args.take(),
        }
    }

    /// About how long the prompt will be, the template's own text apart.
    fn bytes(&self) -> usize {
        let of_message = |message: &ChatMessage| {
            let content = message.content.iter().flat_map(|content| content.text_parts());
            let calls = message.tool_calls.iter().flatten().map(|call| call.function.arguments.len());
            let thought = message.reasoning_content.as_ref().map_or(0, String::len);
            content.map(str::len).sum::<usize>() + calls.sum::<usize>() + thought
        };
        self.messages.iter().map(of_message).sum::<usize>()
            + self.tools.as_ref().map_or(0, json_bytes)
            + self.template_args.iter().flat_map(|args| args.values()).map(json_bytes).sum::<usize>()
    }
}

fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(json_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + json_bytes(value)).sum(),
    }
}

async fn turn(
    turns: &Arc<Semaphore>,
    deadline: Option<Instant>,
) -> Result<OwnedSemaphorePermit, GenerateError> {
    let turn = turns.clone().acquire_owned();
    let turn = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), turn)
            .await
            .map_err(|_| GenerateError::DeadlineExceeded)?,
        None => turn.await,
    };
    turn.map_err(|_| GenerateError::Cancelled)
}

/// Runs `work` in the blocking pool; the turn is over when the work is, also if nobody waits for it any more.
async fn in_pool(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<Vec<u32>, GenerateError> + Send + 'static,
) -> Result<Vec<u32>, GenerateError> {
    let working = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    working.await.map_err(|error| GenerateError::Internal(error.to_string()))?
}

/// What templates that print the date are told: UTC, as servers run in it.
fn utc_now() -> LocalTime {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    LocalTime::from_unix(i64::try_from(now.as_secs()).unwrap_or(0), 0)
}

#[cfg(test)]
mod tests;
