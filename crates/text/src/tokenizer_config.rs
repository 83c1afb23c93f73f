//! `tokenizer_config.json`: templates, special tokens, limits.

use serde_json::{Map, Value};

/// Why a configuration file could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON.
    #[error("{file} is not valid JSON: {source}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Something else than a JSON object.
    #[error("{file} must hold a JSON object")]
    NotAnObject {
        /// The file's name.
        file: &'static str,
    },
    /// A field of the wrong type or out of range.
    #[error("{file}: field `{field}` must be {expected}, not {found}")]
    Field {
        /// The file's name.
        file: &'static str,
        /// The field, dotted where nested.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// The value, cut short.
        found: String,
    },
    /// A field that is needed and in no file.
    #[error("{file}: field `{field}` is missing; {advice}")]
    Missing {
        /// The file where it usually is.
        file: &'static str,
        /// The field.
        field: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

impl ConfigError {
    pub(crate) fn field(
        file: &'static str,
        field: impl Into<String>,
        expected: &'static str,
        found: &Value,
    ) -> Self {
        /// Characters of a wrong value that a message quotes.
        const QUOTED: usize = 60;
        let found = found.to_string().chars().take(QUOTED).collect();
        Self::Field { file, field: field.into(), expected, found }
    }
}

pub(crate) fn parse_object(file: &'static str, json: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ConfigError::NotAnObject { file }),
        Err(source) => Err(ConfigError::Json { file, source }),
    }
}

/// The templates of a `chat_template` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplates {
    /// One for everything.
    One(String),
    /// Several by name; `default` and `tool_use` are used.
    Named(Vec<(String, String)>),
}

/// The special tokens that templates refer to (`bos_token`, `eos_token`, …), by field name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(Vec<(String, String)>);

impl SpecialTokens {
    /// Field names and texts, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The text of one, `bos_token` for instance.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(field, _)| *field == name).map(|(_, text)| text)
    }
}

/// What a server needs from `tokenizer_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// The chat template, if it is not in a file of its own.
    pub chat_template: Option<ChatTemplates>,
    /// The special tokens' texts.
    pub special_tokens: SpecialTokens,
    /// The length that the tokenizer was made for; absent where the file has its placeholder for "none".
    pub model_max_length: Option<u32>,
}

const FILE: &str = "tokenizer_config.json";

/// The fields with special tokens, as `transformers` hands them to templates.
const SPECIAL_FIELDS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerConfig {
    /// Reads the contents of a `tokenizer_config.json`.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let fields = parse_object(FILE, json)?;
        let mut special_tokens = SpecialTokens::default();
        for name in SPECIAL_FIELDS {
            if let Some(text) =
                fields.get(name).map(|value| special_token(name, value)).transpose()?.flatten()
            {
                special_tokens.0.push((name.to_owned(), text));
            }
        }
        Ok(Self {
            chat_template: fields.get("chat_template").map(templates).transpose()?.flatten(),
            special_tokens,
            model_max_length: fields.get("model_max_length").map(max_length).transpose()?.flatten(),
        })
    }
}

/// A string, or an `AddedToken` object with a `content`.
fn special_token(name: &str, value: &Value) -> Result<Option<String>, ConfigError> {
    match (value, value.get("content")) {
        (Value::Null, _) => Ok(None),
        (Value::String(text), _) | (_, Some(Value::String(text))) => Ok(Some(text.clone())),
        _ => Err(ConfigError::field(FILE, name, "a string or an object with a string `content`", value)),
    }
}

fn templates(value: &Value) -> Result<Option<ChatTemplates>, ConfigError> {
    let wrong = || ConfigError::field(FILE, "chat_template", "a string or a list of {name, template}", value);
    let named = |entry: &Value| match (entry["name"].as_str(), entry["template"].as_str()) {
        (Some(name), Some(template)) => Ok((name.to_owned(), template.to_owned())),
        _ => Err(wrong()),
    };
    match value {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(ChatTemplates::One(template.clone()))),
        Value::Array(list) => {
            Ok(Some(ChatTemplates::Named(list.iter().map(named).collect::<Result<_, _>>()?)))
        }
        _ => Err(wrong()),
    }
}

/// "No limit" is written as 10³⁰, which is no 32-bit number.
fn max_length(value: &Value) -> Result<Option<u32>, ConfigError> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => {
            Ok(number.as_u64().and_then(|length| u32::try_from(length).ok()).filter(|n| *n > 0))
        }
        _ => Err(ConfigError::field(FILE, "model_max_length", "a number", value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_strings_or_objects() {
        let json =
            br#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null}"#;
        let config = TokenizerConfig::parse(json).unwrap();
        assert_eq!(config.special_tokens.get("bos_token"), Some("<s>"));
        assert_eq!(config.special_tokens.get("eos_token"), Some("</s>"));
        assert_eq!(config.special_tokens.get("pad_token"), None);
    }

    #[test]
    fn templates_are_one_or_named() {
        let one = TokenizerConfig::parse(br#"{"chat_template": "x"}"#).unwrap();
        assert_eq!(one.chat_template, Some(ChatTemplates::One("x".into())));
        let named =
            br#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]}"#;
        let named = TokenizerConfig::parse(named).unwrap().chat_template;
        let expected = vec![("default".into(), "d".into()), ("rag".into(), "r".into())];
        assert_eq!(named, Some(ChatTemplates::Named(expected)));
    }

    #[test]
    fn the_placeholder_for_no_limit_is_no_limit() {
        for json in ["1000000000000000019884624838656", "1e30", "null", "0"] {
            let file = format!(r#"{{"model_max_length": {json}}}"#);
            assert_eq!(TokenizerConfig::parse(file.as_bytes()).unwrap().model_max_length, None, "{json}");
        }
        assert_eq!(
            TokenizerConfig::parse(br#"{"model_max_length": 2048}"#).unwrap().model_max_length,
            Some(2048)
        );
    }

    #[test]
    fn errors_name_file_and_field() {
        let error = TokenizerConfig::parse(br#"{"bos_token": 7}"#).unwrap_err().to_string();
        assert_eq!(
            error,
            "tokenizer_config.json: field `bos_token` must be a string or an object with a string `content`, not 7"
        );
        let error =
            TokenizerConfig::parse(br#"{"chat_template": [{"name": "default"}]}"#).unwrap_err().to_string();
        assert!(error.contains("chat_template"), "{error}");
        assert!(
            TokenizerConfig::parse(b"{").unwrap_err().to_string().starts_with("tokenizer_config.json is not")
        );
    }
}
