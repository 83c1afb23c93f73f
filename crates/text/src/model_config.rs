//! `config.json` and `generation_config.json`: lengths, vocabulary, end tokens.

use serde_json::{Map, Value};

use crate::{ConfigError, TokenizerConfig, tokenizer_config::parse_object};

/// The contents of a model's configuration files.
#[derive(Clone, Copy, Debug)]
pub struct ModelFiles<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<&'a [u8]>,
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<&'a [u8]>,
}

/// What a server needs to know of a model beside its tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelConfig {
    /// Tokens of prompt and answer together, if a file says.
    pub context_length: Option<u32>,
    /// Rows of the embedding, if the file says; may exceed the tokenizer's.
    pub vocab_size: Option<u32>,
    /// All tokens that end a text: those of `config.json`, its text part and `generation_config.json`, each once.
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The family, `llama` for instance.
    pub model_type: Option<String>,
}

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Names of the maximal length, most usual first.
const LENGTH_FIELDS: [&str; 6] =
    ["max_position_embeddings", "max_seq_len", "seq_length", "n_positions", "max_sequence_length", "n_ctx"];

impl ModelConfig {
    /// Reads the files. A field that is there must be of its type; what is missing is `None`.
    ///
    /// The context length is the position limit of `config.json` or its `text_config`, stretched by rope scaling
    /// where the limit is that before scaling (linear, dynamic, YaRN); without one, the tokenizer's
    /// `model_max_length`, which many models leave at a placeholder.
    pub fn parse(files: ModelFiles<'_>) -> Result<Self, ConfigError> {
        let config = parse_object(CONFIG, files.config)?;
        let text = config.get("text_config").and_then(Value::as_object);
        let generation = files.generation_config.map(|json| parse_object(GENERATION, json)).transpose()?;
        let tokenizer = files.tokenizer_config.map(TokenizerConfig::parse).transpose()?;
        let parts = || [(&config, ""), (text.unwrap_or(&config), "text_config.")].into_iter();

        let mut context_length = None;
        for (part, path) in parts() {
            if context_length.is_none() {
                context_length = positions(part, path)?;
            }
        }
        let mut vocab_size = None;
        let mut bos_token_id = None;
        let mut eos_token_ids = Vec::new();
        for (part, path) in parts() {
            vocab_size = vocab_size.or(number(CONFIG, part, path, "vocab_size")?);
            bos_token_id = bos_token_id.or(token(CONFIG, part, path, "bos_token_id")?);
            add_eos(&mut eos_token_ids, CONFIG, part, path)?;
        }
        if let Some(generation) = &generation {
            bos_token_id = bos_token_id.or(token(GENERATION, generation, "", "bos_token_id")?);
            add_eos(&mut eos_token_ids, GENERATION, generation, "")?;
        }
        Ok(Self {
            context_length: context_length.or(tokenizer.and_then(|tokenizer| tokenizer.model_max_length)),
            vocab_size,
            eos_token_ids,
            bos_token_id,
            model_type: config.get("model_type").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// The context length, or an error that says how to give one.
    pub fn require_context_length(&self) -> Result<u32, ConfigError> {
        let advice = "give the context length on the command line";
        self.context_length.ok_or(ConfigError::Missing { file: CONFIG, field: LENGTH_FIELDS[0], advice })
    }
}

type Fields = Map<String, Value>;

fn present<'a>(fields: &'a Fields, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn number(file: &'static str, fields: &Fields, path: &str, name: &str) -> Result<Option<u32>, ConfigError> {
    let Some(value) = present(fields, name) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
    let wrong = || ConfigError::field(file, format!("{path}{name}"), "a positive 32-bit number", value);
    number.map(Some).ok_or_else(wrong)
}

/// A token id; −1 stands for none in some files.
fn token(file: &'static str, fields: &Fields, path: &str, name: &str) -> Result<Option<u32>, ConfigError> {
    let Some(value) = present(fields, name) else { return Ok(None) };
    let one = value.as_array().and_then(|list| list.first()).unwrap_or(value);
    token_id(one).ok_or_else(|| ConfigError::field(file, format!("{path}{name}"), "a token id", value))
}

fn token_id(value: &Value) -> Option<Option<u32>> {
    let number = value.as_i64()?;
    if number < 0 { Some(None) } else { u32::try_from(number).ok().map(Some) }
}

fn add_eos(ids: &mut Vec<u32>, file: &'static str, fields: &Fields, path: &str) -> Result<(), ConfigError> {
    const NAME: &str = "eos_token_id";
    let Some(value) = present(fields, NAME) else { return Ok(()) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    for one in list {
        let wrong =
            || ConfigError::field(file, format!("{path}{NAME}"), "a token id or a list of token ids", value);
        if let Some(id) = token_id(one).ok_or_else(wrong)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(())
}

fn positions(fields: &Fields, path: &str) -> Result<Option<u32>, ConfigError> {
    for name in LENGTH_FIELDS {
        if let Some(limit) = number(CONFIG, fields, path, name)? {
            return scaled(limit, fields, path).map(Some);
        }
    }
    Ok(None)
}

/// `rope_scaling` of older files, `rope_parameters` of newer ones.
fn scaled(limit: u32, fields: &Fields, path: &str) -> Result<u32, ConfigError> {
    let Some((field, scaling)) = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find_map(|field| present(fields, field)?.as_object().map(|scaling| (field, scaling)))
    else {
        return Ok(limit);
    };
    let kind =
        ["rope_type", "type"].iter().find_map(|name| scaling.get(*name)?.as_str()).unwrap_or("default");
    // The other kinds (llama3, longrope, su, mrope) give the limit after scaling.
    if !matches!(kind, "linear" | "dynamic" | "yarn") {
        return Ok(limit);
    }
    let Some(value) = present(scaling, "factor") else { return Ok(limit) };
    let factor = value.as_f64().filter(|factor| *factor >= 1.0 && *factor <= 1e6);
    let wrong =
        || ConfigError::field(CONFIG, format!("{path}{field}.factor"), "a number of at least 1", value);
    let factor = factor.ok_or_else(wrong)?;
    let original = number(CONFIG, scaling, &format!("{path}{field}."), "original_max_position_embeddings")?;
    // Some YaRN files give the stretched limit as the limit, with the original beside it.
    let base = if kind == "yarn" { original.unwrap_or(limit) } else { limit };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and both are positive"
    )]
    Ok((f64::from(base) * factor) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        config: &str,
        generation: Option<&str>,
        tokenizer: Option<&str>,
    ) -> Result<ModelConfig, ConfigError> {
        ModelConfig::parse(ModelFiles {
            config: config.as_bytes(),
            generation_config: generation.map(str::as_bytes),
            tokenizer_config: tokenizer.map(str::as_bytes),
        })
    }

    fn length(config: &str) -> Option<u32> {
        parse(config, None, None).unwrap().context_length
    }

    #[test]
    fn a_llama_config_is_read() {
        let config = include_bytes!("../../../tests/data/tiny-llama/config.json");
        let generation = include_bytes!("../../../tests/data/tiny-llama/generation_config.json");
        let files = ModelFiles { config, generation_config: Some(generation), tokenizer_config: None };
        let expected = ModelConfig {
            context_length: Some(8192),
            vocab_size: Some(4096),
            eos_token_ids: vec![3],
            bos_token_id: Some(0),
            model_type: Some("llama".into()),
        };
        assert_eq!(ModelConfig::parse(files).unwrap(), expected);
    }

    #[test]
    fn end_tokens_are_the_union_of_all_files() {
        let config = r#"{"eos_token_id": 2, "text_config": {"eos_token_id": [2, 5], "vocab_size": 9}}"#;
        let parsed = parse(config, Some(r#"{"eos_token_id": [7, 5]}"#), None).unwrap();
        assert_eq!(parsed.eos_token_ids, [2, 5, 7]);
        assert_eq!(parsed.vocab_size, Some(9));
    }

    #[test]
    fn rope_scaling_stretches_the_limit_it_applies_to() {
        let with = |scaling: &str| {
            length(&format!(r#"{{"max_position_embeddings": 1000, "rope_scaling": {scaling}}}"#)).unwrap()
        };
        assert_eq!(with("null"), 1000);
        assert_eq!(with(r#"{"type": "linear", "factor": 4.0}"#), 4000);
        assert_eq!(with(r#"{"rope_type": "llama3", "factor": 8.0}"#), 1000);
        assert_eq!(
            with(r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}"#),
            1000
        );
        let newer =
            r#"{"max_position_embeddings": 1000, "rope_parameters": {"rope_type": "yarn", "factor": 2.5}}"#;
        assert_eq!(length(newer), Some(2500));
        assert_eq!(length(r#"{"text_config": {"max_position_embeddings": 77}}"#), Some(77));
    }

    #[test]
    fn the_tokenizers_limit_serves_where_the_model_has_none() {
        let tokenizer = Some(r#"{"model_max_length": 512}"#);
        assert_eq!(parse("{}", None, tokenizer).unwrap().context_length, Some(512));
        let both = parse(r#"{"n_positions": 1024}"#, None, tokenizer).unwrap();
        assert_eq!(both.context_length, Some(1024));
        let none = parse("{}", None, None).unwrap().require_context_length().unwrap_err().to_string();
        assert!(none.starts_with("config.json: field `max_position_embeddings` is missing"), "{none}");
    }

    #[test]
    fn errors_name_file_and_field() {
        let error = |config, generation| parse(config, generation, None).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"text_config": {"vocab_size": "many"}}"#, None),
            r#"config.json: field `text_config.vocab_size` must be a positive 32-bit number, not "many""#
        );
        assert_eq!(
            error("{}", Some(r#"{"eos_token_id": "</s>"}"#)),
            r#"generation_config.json: field `eos_token_id` must be a token id or a list of token ids, not "</s>""#
        );
        assert_eq!(error("[]", None), "config.json must hold a JSON object");
    }
}
