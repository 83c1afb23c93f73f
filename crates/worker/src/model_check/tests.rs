use std::path::Path;

use dynamo_llm::{CardOptions, RuntimeConfigCard};

use super::*;

/// The tiny model with another `tokenizer_config.json`, and perhaps a template of the user's.
fn check(tokenizer_config: Option<&str>, custom: Option<&[u8]>) -> Result<(), String> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(file), folder.path().join(file)).unwrap();
    }
    if let Some(text) = tokenizer_config {
        std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
    }
    let custom_template = custom.map(|text| {
        let path = folder.path().join("mine.jinja");
        std::fs::write(&path, text).unwrap();
        path
    });
    let options = CardOptions {
        kv_cache_block_size: 16,
        custom_template,
        runtime_config: RuntimeConfigCard {
            data_parallel_size: 1,
            enable_local_indexer: true,
            ..RuntimeConfigCard::default()
        },
        ..CardOptions::default()
    };
    let card = ModelCard::from_directory(folder.path(), options).unwrap();
    check_model(&card).map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_model_with_a_template_passes() {
    assert_eq!(check(None, None), Ok(()));
    assert_eq!(check(Some("{}"), Some(b"{{ messages[0].content }}")), Ok(()), "the user's own will do");
}

#[test]
fn a_model_that_no_frontend_could_serve_is_refused_in_one_line() {
    for (tokenizer_config, custom, why) in [
        (Some("{}"), None, "the model has no chat template"),
        (Some(r#"{"chat_template": "{% if %}"}"#), None, "could not be compiled"),
        (None, Some(b"{{ never closed".as_slice()), "could not be compiled"),
        (None, Some(b"\xff\xfe".as_slice()), "mine.jinja is no text"),
    ] {
        let error = check(tokenizer_config, custom).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
}
