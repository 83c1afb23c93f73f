//! Chat templates, tokenizers, incremental detokenizing and stop conditions of Hugging Face models.
//!
//! Pure: the contents of a model's files go in (`tokenizer.json`, `tokenizer_config.json`, `config.json`, …), text and
//! tokens come out. Nothing here reads a file, looks at a clock or starts a thread.
//!
//! - [`Tokenizer`]: text → tokens, exactly as the `tokenizers` crate does.
//! - [`TokenTable`] and [`Detokenizer`]: tokens → text one by one, never splitting a character.
//! - [`OutputDecoder`]: the same with stop tokens and stop strings. Once warm it does not allocate per token.
//! - [`ChatTemplate`]: messages → prompt text.
//! - [`ModelConfig`] and [`TokenizerConfig`]: what a server needs from the configuration files.

mod char_class;
mod chat_template;
mod decoder_kind;
mod detokenizer;
mod model_config;
mod output_decoder;
mod stop_matcher;
mod token_table;
mod tokenizer;
mod tokenizer_config;
mod whole_decoder;
mod word_encoder;
mod word_split;

pub use chat_template::{
    ChatTemplate, ContentShape, LocalTime, RenderInput, TemplateClock, TemplateError, TemplateSources,
};
pub use detokenizer::Detokenizer;
pub use model_config::{ModelConfig, ModelFiles};
pub use output_decoder::{DecoderConfig, OutputDecoder, Stopped};
pub use stop_matcher::{StopMatch, StopMatcher};
pub use token_table::{TokenTable, TokenTableError};
pub use tokenizer::{Tokenizer, TokenizerError};
pub use tokenizer_config::{ChatTemplates, ConfigError, SpecialTokens, TokenizerConfig};
