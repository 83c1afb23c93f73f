use super::*;

const BYTE_LEVEL: &[u8] = include_bytes!("../../../../tests/data/tiny-llama/tokenizer.json");
const BYTE_FALLBACK: &[u8] = include_bytes!("../../../../tests/data/tinyllama-tokenizer/tokenizer.json");

/// Made with the Python `tokenizers` package; `tests/data/README.md` says how.
#[derive(serde::Deserialize)]
struct Golden {
    tokenizer: String,
    text: String,
    ids: Vec<u32>,
    special_ids: Vec<u32>,
    decoded: String,
}

#[test]
fn tokens_are_those_of_the_python_package() {
    let cases: Vec<Golden> = serde_json::from_slice(include_bytes!("../../tests/data/tokens.json")).unwrap();
    let byte_level = Tokenizer::from_json(BYTE_LEVEL).unwrap();
    let fallback = Tokenizer::from_json(BYTE_FALLBACK).unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let tokenizer = if case.tokenizer == "tiny-llama" { &byte_level } else { &fallback };
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.encode(&case.text, true).unwrap(), case.special_ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.special_ids, true), case.decoded, "{:?}", case.text);
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_switched_off() {
    let mut file: serde_json::Value = serde_json::from_slice(BYTE_LEVEL).unwrap();
    file["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|begin_of_text|>"});
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap()).unwrap();
    let plain = Tokenizer::from_json(BYTE_LEVEL).unwrap();
    let text = "a text of some words";
    assert_eq!(tokenizer.encode(text, true).unwrap(), plain.encode(text, true).unwrap());
}

#[test]
fn the_table_knows_each_token() {
    let tokenizer = Tokenizer::from_json(BYTE_FALLBACK).unwrap();
    assert_eq!(tokenizer.vocab_size(), 32_000);
    let table = tokenizer.table();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert!(table.is_special(id("</s>")) && !table.is_special(id("▁the")));
    assert_eq!(table.bytes(id("▁the")), Some(b" the".as_slice()));
    assert_eq!(table.bytes(id("<0xFF>")), Some([0xff].as_slice()));
    assert_eq!(table.bytes(32_000), None);
    assert!(table.heap_bytes() < 32_000 * 20);
}

#[test]
fn a_file_of_another_kind_is_refused_by_name() {
    let error = Tokenizer::from_json(b"{}").unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json could not be read"), "{error}");
}
