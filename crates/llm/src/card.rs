//! The model deployment card: what a worker says of the model that it serves.

mod lora;

use std::path::Path;

pub(crate) use lora::adapter_of;
pub use lora::{AdapterNameError, LoraCard, MAX_ADAPTER_NAME};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, ModelFile, ModelFileKind};

/// A model as its worker registers it. Field names are those of the ecosystem's cards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The public name.
    pub display_name: String,
    /// The name in characters that keys and file names can hold.
    pub slug: String,
    /// The directory on the worker's host; only a hint elsewhere.
    pub source_path: String,
    /// `config.json`.
    pub model_info: ModelFile,
    /// `tokenizer.json`.
    pub tokenizer: ModelFile,
    /// `tokenizer_config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_formatter: Option<ModelFile>,
    /// `chat_template.jinja`, or the template that the worker was told to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_file: Option<ModelFile>,
    /// `generation_config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_config: Option<ModelFile>,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens per KV block.
    pub kv_cache_block_size: u32,
    /// Tries of a request on another worker.
    #[serde(default)]
    pub migration_limit: u32,
    /// What it can be asked for, as in `Chat | Completions`; `Prefill`: for prompts that other workers answer.
    pub model_type: String,
    /// What the worker takes: `Tokens`.
    pub model_input: String,
    /// The adapter that the card is for; absent: the base model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraCard>,
    /// How the worker runs it.
    #[serde(default)]
    pub runtime_config: RuntimeConfigCard,
}

/// Limits of one worker, for routing and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeConfigCard {
    /// KV blocks per rank.
    pub total_kv_blocks: Option<u64>,
    /// Concurrent requests per rank.
    pub max_num_seqs: Option<u64>,
    /// Tokens per step and rank.
    pub max_num_batched_tokens: Option<u64>,
    /// Ranks.
    pub data_parallel_size: u32,
    /// The first rank of this worker.
    pub data_parallel_start_rank: u32,
    /// Whether the worker answers queries about its KV events.
    pub enable_local_indexer: bool,
    /// Labels that requests may ask for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
}

/// Why a directory is not a model.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// A file is missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file's contents.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong in it.
        message: String,
    },
}

/// What the command line adds to a model directory.
#[derive(Clone, Debug, Default)]
pub struct CardOptions {
    /// The public name; absent: the directory's.
    pub name: Option<String>,
    /// Tokens per KV block.
    pub kv_cache_block_size: u32,
    /// A template that goes before the model's own.
    pub custom_template: Option<std::path::PathBuf>,
    /// Tries of a request on another worker.
    pub migration_limit: u32,
    /// Another context than the files say.
    pub context_length: Option<u32>,
    /// Limits of the worker.
    pub runtime_config: RuntimeConfigCard,
    /// Whether the worker computes prompts alone, and others answer.
    pub is_prefill: bool,
}

/// What the workers of prompts alone can be asked for.
const PREFILL: &str = "Prefill";
const CHAT: &str = "Chat | Completions";

impl ModelCard {
    /// Reads a Hugging Face model directory: tokenizer and configuration, never weights.
    pub fn from_directory(directory: &Path, options: CardOptions) -> Result<Self, CardError> {
        let required = |kind: ModelFileKind| ModelFile::describe(&directory.join(kind.file_name()));
        let optional = |kind: ModelFileKind| ModelFile::describe_if_there(&directory.join(kind.file_name()));
        let model_info = required(ModelFileKind::Config)?;
        let prompt_formatter = optional(ModelFileKind::TokenizerConfig)?;
        let read = |file: &ModelFile| file.read_in_place();
        let gen_config = optional(ModelFileKind::GenerationConfig)?;
        let content = |error: dynamo_text::ConfigError| CardError::Content {
            path: directory.display().to_string(),
            message: error.to_string(),
        };
        let config = dynamo_text::ModelConfig::parse(dynamo_text::ModelFiles {
            config: &read(&model_info)?,
            generation_config: gen_config.as_ref().map(read).transpose()?.as_deref(),
            tokenizer_config: prompt_formatter.as_ref().map(read).transpose()?.as_deref(),
        })
        .map_err(content)?;
        let context_length = match options.context_length {
            Some(given) => given,
            None => config.require_context_length().map_err(content)?,
        };
        let absolute = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name = options.name.unwrap_or_else(|| {
            absolute
                .file_name()
                .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        });
        let chat_template_file = match &options.custom_template {
            Some(path) => Some(ModelFile::describe(path)?),
            None => optional(ModelFileKind::ChatTemplate)?,
        };
        Ok(Self {
            slug: slug(&name),
            display_name: name,
            source_path: absolute.display().to_string(),
            model_info,
            tokenizer: required(ModelFileKind::Tokenizer)?,
            prompt_formatter,
            chat_template_file,
            gen_config,
            context_length,
            kv_cache_block_size: options.kv_cache_block_size,
            migration_limit: options.migration_limit,
            model_type: if options.is_prefill { PREFILL } else { CHAT }.to_owned(),
            model_input: "Tokens".to_owned(),
            lora: None,
            runtime_config: options.runtime_config,
        })
    }

    /// The files that a frontend needs, with what they are.
    pub fn files(&self) -> impl Iterator<Item = (ModelFileKind, &ModelFile)> {
        [
            (ModelFileKind::Config, Some(&self.model_info)),
            (ModelFileKind::Tokenizer, Some(&self.tokenizer)),
            (ModelFileKind::TokenizerConfig, self.prompt_formatter.as_ref()),
            (ModelFileKind::ChatTemplate, self.chat_template_file.as_ref()),
            (ModelFileKind::GenerationConfig, self.gen_config.as_ref()),
        ]
        .into_iter()
        .filter_map(|(kind, file)| Some((kind, file?)))
    }

    /// Whether its worker computes prompts alone, and others answer.
    pub fn is_prefill(&self) -> bool {
        self.model_type == PREFILL
    }

    /// Identifies what a frontend makes of the card: names, contents of files (not their paths), context, block size.
    /// Workers of one model must agree on it, those of prompts alone included.
    pub fn checksum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(&self.display_name);
        part(if self.is_prefill() { CHAT } else { &self.model_type });
        part(&self.model_input);
        part(&self.context_length.to_string());
        part(&self.kv_cache_block_size.to_string());
        for (kind, file) in self.files() {
            part(kind.file_name());
            part(&file.checksum);
        }
        hasher.finalize().to_hex().as_str()[..16].to_owned()
    }
}

/// Lower case, with `-` for whatever is not a letter, digit, `-` or `_`.
fn slug(name: &str) -> String {
    name.chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-' | '_') => c,
            _ => '-',
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The card of the tiny model, with blocks of 16 tokens.
    pub(crate) fn tiny_card() -> ModelCard {
        let options = CardOptions { kv_cache_block_size: 16, ..CardOptions::default() };
        ModelCard::from_directory(&tiny(), options).unwrap()
    }

    fn tiny() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama")
    }

    fn options() -> CardOptions {
        CardOptions { kv_cache_block_size: 64, ..CardOptions::default() }
    }

    #[test]
    fn a_directory_becomes_a_card() {
        let card = ModelCard::from_directory(&tiny(), options()).unwrap();
        assert_eq!((card.display_name.as_str(), card.context_length), ("tiny-llama", 8192));
        assert_eq!(card.files().count(), 4);
        let json = serde_json::to_value(&card).unwrap();
        assert_eq!(serde_json::from_value::<ModelCard>(json).unwrap(), card);
    }

    #[test]
    fn the_checksum_is_of_contents_not_of_places() {
        let card = ModelCard::from_directory(&tiny(), options()).unwrap();
        let mut moved = card.clone();
        moved.source_path = "/elsewhere".into();
        moved.tokenizer.path = "/elsewhere/tokenizer.json".into();
        assert_eq!(moved.checksum(), card.checksum());
        moved.tokenizer.checksum = "blake3:00".into();
        assert_ne!(moved.checksum(), card.checksum());
        let other = CardOptions { name: Some("other".into()), ..options() };
        assert_ne!(ModelCard::from_directory(&tiny(), other).unwrap().checksum(), card.checksum());
    }

    #[test]
    fn workers_of_prompts_alone_have_the_same_checksum() {
        let card = ModelCard::from_directory(&tiny(), options()).unwrap();
        let prefill = CardOptions { is_prefill: true, ..options() };
        let prefill = ModelCard::from_directory(&tiny(), prefill).unwrap();
        assert!(prefill.is_prefill() && !card.is_prefill());
        assert_eq!((prefill.model_type.as_str(), prefill.checksum()), ("Prefill", card.checksum()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = ModelCard::from_directory(Path::new("/nonexistent"), options()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.json"), "{error}");
    }

    #[test]
    fn slugs_are_plain() {
        assert_eq!(slug("Meta/Llama-3.1 8B"), "meta-llama-3-1-8b");
    }
}
