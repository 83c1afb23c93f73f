//! How large a token's KV is.

use dynamo_llm::{ModelCard, ModelFileKind};
use serde::Deserialize;
use tracing::debug;

/// Bytes of one token's KV in all layers of a model, as its `config.json` has it; `None` where that does not say.
pub(crate) fn kv_bytes_per_token(card: &ModelCard) -> Option<u64> {
    let (_, file) = card.files().find(|(kind, _)| *kind == ModelFileKind::Config)?;
    let bytes = file.read_in_place().ok().and_then(|config| of_config(&config));
    if bytes.is_none() {
        debug!(path = file.path, "no size of the KV cache in it: blocks take no time between engines");
    }
    bytes
}

/// What Hugging Face calls the parts. Models that see pictures have those of their text in a part of its own.
#[derive(Deserialize)]
struct Config {
    text_config: Option<Box<Config>>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    hidden_size: Option<u64>,
    head_dim: Option<u64>,
    /// Latent attention keeps one vector of this and the next for all heads.
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: Option<u64>,
    dtype: Option<String>,
    /// The older name; some configurations have both.
    torch_dtype: Option<String>,
}

impl Config {
    fn dtype(&self) -> Option<&str> {
        self.dtype.as_deref().or(self.torch_dtype.as_deref())
    }
}

fn of_config(json: &[u8]) -> Option<u64> {
    let config: Config = serde_json::from_slice(json).ok()?;
    let text = config.text_config.as_deref().unwrap_or(&config);
    let values = match (text.kv_lora_rank, text.qk_rope_head_dim) {
        (Some(rank), Some(rope)) => rank.checked_add(rope)?,
        _ => {
            let queries = text.num_attention_heads;
            let heads = text.num_key_value_heads.or(queries)?;
            let dim = text.head_dim.or_else(|| text.hidden_size?.checked_div(queries?))?;
            heads.checked_mul(dim)?.checked_mul(2)?
        }
    };
    let dtype = text.dtype().or(config.dtype());
    text.num_hidden_layers?.checked_mul(values)?.checked_mul(bytes_of(dtype))
}

/// Bytes of a number. What is not known is taken for one of two bytes, as nearly all are.
fn bytes_of(dtype: Option<&str>) -> u64 {
    match dtype {
        Some("float32") => 4,
        Some(name) if name.starts_with("float8") || name.starts_with("fp8") || name == "int8" => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_times_keys_and_values_times_heads() {
        let bytes = |json: &str| of_config(json.as_bytes());
        let grouped = r#"{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "hidden_size": 4096, "torch_dtype": "bfloat16"}"#;
        assert_eq!(bytes(grouped), Some(32 * 2 * 8 * 128 * 2));
        let plain =
            r#"{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 256, "dtype": "float32"}"#;
        assert_eq!(bytes(plain), Some(2 * 2 * 4 * 64 * 4));
        let given = r#"{"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 10,
            "dtype": "float8_e4m3fn", "torch_dtype": "bfloat16"}"#;
        assert_eq!(bytes(given), Some(2 * 2 * 4 * 10));
    }

    #[test]
    fn a_models_text_may_be_a_part_of_it() {
        let json = br#"{"dtype": "float32", "text_config": {"num_hidden_layers": 3, "num_attention_heads": 2,
            "head_dim": 8}, "vision_config": {"num_hidden_layers": 99}}"#;
        assert_eq!(of_config(json), Some(3 * 2 * 2 * 8 * 4));
    }

    #[test]
    fn latent_attention_has_one_vector_for_all_heads() {
        let json = br#"{"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
            "hidden_size": 7168, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "torch_dtype": "bfloat16"}"#;
        assert_eq!(of_config(json), Some(61 * 576 * 2));
    }

    #[test]
    fn a_configuration_that_does_not_say_has_no_size() {
        for json in ["{}", "[", r#"{"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 0}"#] {
            assert_eq!(of_config(json.as_bytes()), None, "{json}");
        }
    }
}
