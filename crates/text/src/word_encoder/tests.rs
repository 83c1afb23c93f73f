use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokenizers::NormalizedString;

use super::*;

const FILE: &[u8] = include_bytes!("../../../../tests/data/tiny-llama/tokenizer.json");

/// The patterns of Llama 3 and Qwen 2.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut file: Value = serde_json::from_slice(FILE).unwrap();
    change(&mut file);
    Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap()
}

fn split_by(regex: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
}

/// Characters that the patterns tell apart or that NFC changes, and some of everything.
fn text(rng: &mut SmallRng) -> String {
    const SOME: [&str; 40] = [
        "a",
        "b",
        "Z",
        "'s",
        "'S",
        "'ſ",
        "'re",
        "'VE",
        "'ll",
        "'",
        "é",
        "ß",
        "ſ",
        "1",
        "23",
        "4567",
        "²",
        "Ⅷ",
        "٣",
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{2028}",
        "\u{85}",
        "\u{1c}",
        ".",
        ",;",
        "!",
        "👩‍👧",
        "日本",
        "e\u{301}",
        "\u{1100}\u{1161}",
        "<|im_start|>",
        "<|im_end",
        "\u{200b}",
    ];
    let mut text = String::new();
    for _ in 0..rng.random_range(0..40) {
        match rng.random_range(0..12) {
            0 => text.extend(char::from_u32(rng.random_range(0..0x11_0000))),
            1 => text.extend(char::from_u32(rng.random_range(0..0x3100))),
            _ => text.push_str(SOME.choose(rng).unwrap()),
        }
    }
    text
}

#[test]
fn tokens_are_those_of_the_crate() {
    let tokenizers = [
        tokenizer(|_| {}),
        tokenizer(|file| file["pre_tokenizer"] = split_by(LLAMA3)),
        tokenizer(|file| {
            file["pre_tokenizer"] = split_by(QWEN2);
            file["normalizer"] = json!({"type": "NFC"});
        }),
        tokenizer(|file| file["added_tokens"][2]["normalized"] = json!(true)),
    ];
    let mut rng = SmallRng::seed_from_u64(11);
    for (at, tokenizer) in tokenizers.iter().enumerate() {
        let encoder = WordEncoder::new(tokenizer).unwrap();
        for _ in 0..6000 {
            let text = text(&mut rng);
            let expected = tokenizer.encode_fast(text.as_str(), false).unwrap();
            for round in ["first", "remembered"] {
                let ids = encoder.encode(tokenizer, &text).unwrap();
                assert_eq!(ids, expected.get_ids(), "tokenizer {at}, {round}: {text:?}");
            }
        }
    }
}

#[test]
fn other_shapes_are_left_to_the_crate() {
    let changes: [fn(&mut Value); 6] = [
        |file| file["pre_tokenizer"]["add_prefix_space"] = json!(true),
        |file| file["pre_tokenizer"] = split_by(r"\s+"),
        |file| file["normalizer"] = json!({"type": "NFKC"}),
        |file| file["added_tokens"][0]["lstrip"] = json!(true),
        |file| file["added_tokens"][0]["single_word"] = json!(true),
        |file| file["model"]["dropout"] = json!(0.5),
    ];
    for change in changes {
        assert!(WordEncoder::new(&tokenizer(change)).is_none());
    }
}

#[test]
fn nfc_leaves_its_ranges_alone() {
    let mut symbols: Vec<char> =
        (0..0x11_0000).filter_map(char::from_u32).filter(|c| stays_in_nfc(*c)).collect();
    for _ in 0..2 {
        let text: String = symbols.iter().collect();
        let mut normalized = NormalizedString::from(text.as_str());
        normalized.nfc();
        assert!(normalized.get() == text);
        symbols.reverse();
    }
}

#[test]
fn the_cache_is_bounded() {
    let tokenizer = tokenizer(|_| {});
    let encoder = WordEncoder::new(&tokenizer).unwrap();
    for round in 0..5 {
        let text: String =
            (0..CACHED_WORDS / 2 - 1).map(|word| format!("w{}x", round * CACHED_WORDS + word)).collect();
        encoder.encode(&tokenizer, &text).unwrap();
        assert!(encoder.cache.read().unwrap().len() <= CACHED_WORDS);
    }
    let long = "long".repeat(CACHED_BYTES);
    encoder.encode(&tokenizer, &long).unwrap();
    assert!(!encoder.cache.read().unwrap().contains_key(long.as_str()));
}
