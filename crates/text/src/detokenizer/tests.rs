use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use serde_json::json;

use super::*;
use crate::Tokenizer;

const BYTE_LEVEL: &[u8] = include_bytes!("../../../../tests/data/tiny-llama/tokenizer.json");
const BYTE_FALLBACK: &[u8] = include_bytes!("../../../../tests/data/tinyllama-tokenizer/tokenizer.json");

/// Characters of one to four bytes, joiners, combining marks, right-to-left text, spaces of several kinds.
const SAMPLES: [&str; 12] = [
    "Hello, world! It's 3 o'clock.",
    "  leading and   inner  spaces \n\n\tand tabs",
    "naïve café Ångström ﬁne",
    "👩‍👩‍👧‍👦 🇪🇺 🏳️‍🌈 👍🏽",
    "日本語のテキスト 中文文本 한국어",
    "שלום עולם مرحبا بالعالم",
    "e\u{301}e\u{301} a\u{30a}\u{327}",
    "\u{a0}\u{2003}\u{3000}\u{200b}\u{feff}",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀𓀀",
    "\u{0}\u{1}\u{7f}\u{80}\u{fffd}\u{10ffff}",
    "▁▁ <0x41> <s> </s> <|im_end|>",
    "ไทย हिन्दी தமிழ்",
];

fn streamed(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer.table()), prompt, skip_special);
    let mut text = String::new();
    for token in tokens {
        detokenizer.push(*token, &mut text);
        assert!(detokenizer.carry.len() <= 3, "a character has at most 4 bytes");
    }
    detokenizer.finish(&mut text);
    text
}

fn crate_decodes(tokenizer: &Tokenizer, tokens: &[u32], skip_special: bool) -> String {
    tokenizer.table().whole.decode(tokens, skip_special).unwrap()
}

/// Whether a run of fallback bytes has a whole character before a wrong byte: a stream has shown it by then.
fn has_mixed_run(tokenizer: &Tokenizer, tokens: &[u32], skip_special: bool) -> bool {
    let table = tokenizer.table();
    let mut run = Vec::new();
    let mixed = |run: &[u8]| std::str::from_utf8(run).is_err_and(|error| error.valid_up_to() > 0);
    for id in tokens {
        let Some(token) = table.token(*id) else { continue };
        if skip_special && token.is(SPECIAL) {
            continue;
        }
        if token.is(FALLBACK_BYTE) {
            run.extend_from_slice(table.bytes_of(token));
        } else {
            if mixed(&run) {
                return true;
            }
            run.clear();
        }
    }
    mixed(&run)
}

#[test]
fn encoded_texts_come_back() {
    for json in [BYTE_LEVEL, BYTE_FALLBACK] {
        let tokenizer = Tokenizer::from_json(json).unwrap();
        for sample in SAMPLES {
            let tokens = tokenizer.encode(sample, false).unwrap();
            for skip_special in [false, true] {
                let expected = crate_decodes(&tokenizer, &tokens, skip_special);
                assert_eq!(streamed(&tokenizer, &[], &tokens, skip_special), expected, "{sample}");
                assert_eq!(tokenizer.decode(&tokens, skip_special), expected);
            }
        }
    }
}

#[test]
fn any_tokens_decode_as_the_crate_does() {
    for json in [BYTE_LEVEL, BYTE_FALLBACK] {
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        let ids = u32::try_from(tokenizer.vocab_size()).unwrap();
        let (mut compared, mut broken) = (0, 0);
        for round in 0..4000 {
            let samples: Vec<u32> = tokenizer.encode(SAMPLES.choose(&mut rng).unwrap(), false).unwrap();
            let tokens: Vec<u32> = (0..rng.random_range(0..24))
                .map(|_| match (round % 4, rng.random_range(0..8)) {
                    // Bytes and specials, which a uniform draw would rarely hit, and ids outside the vocabulary.
                    (0, _) => rng.random_range(0..260),
                    (_, 0) => rng.random_range(0..4),
                    (_, 1) => rng.random_range(ids..ids + 9),
                    (1 | 2, _) => *samples.choose(&mut rng).unwrap(),
                    _ => rng.random_range(0..ids),
                })
                .collect();
            for skip_special in [false, true] {
                if has_mixed_run(&tokenizer, &tokens, skip_special) {
                    broken += 1;
                    continue;
                }
                compared += 1;
                let expected = crate_decodes(&tokenizer, &tokens, skip_special);
                assert_eq!(streamed(&tokenizer, &[], &tokens, skip_special), expected, "{tokens:?}");
            }
        }
        assert!(compared > 5000, "{compared} compared, {broken} left out");
    }
}

#[test]
fn an_answer_continues_its_prompt() {
    let tokenizer = Tokenizer::from_json(BYTE_FALLBACK).unwrap();
    let prompt = tokenizer.encode("The answer is", true).unwrap();
    let answer = tokenizer.encode("forty two", false).unwrap();
    assert_eq!(streamed(&tokenizer, &prompt, &answer, true), " forty two");
    assert_eq!(streamed(&tokenizer, &[], &answer, true), "forty two");
    let bos = prompt[..1].to_vec();
    assert_eq!(streamed(&tokenizer, &bos, &answer, true), "forty two", "a special token is no text");
    assert_eq!(streamed(&tokenizer, &bos, &answer, false), " forty two", "unless it is shown");
}

#[test]
fn a_character_comes_with_its_last_byte() {
    let tokenizer = Tokenizer::from_json(BYTE_FALLBACK).unwrap();
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer.table()), &[], true);
    let mut text = String::new();
    for (at, part) in "🦀".bytes().enumerate() {
        detokenizer.push(byte(part), &mut text);
        assert_eq!(text.is_empty(), at < 3);
    }
    assert_eq!(text, "🦀");
    detokenizer.push(byte(0xf0), &mut text);
    detokenizer.push(byte(0x9f), &mut text);
    assert_eq!(text, "🦀");
    detokenizer.finish(&mut text);
    assert_eq!(text, "🦀\u{fffd}\u{fffd}");
}

/// Decoders that the table does not know, and those whose first token is special.
#[test]
fn other_decoders_stream_too() {
    let decoders = [
        json!({"type": "WordPiece", "prefix": "##", "cleanup": false}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}),
        json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "▁+"}, "content": "_"}]}),
        serde_json::Value::Null,
    ];
    for decoder in decoders {
        let mut file: serde_json::Value = serde_json::from_slice(BYTE_FALLBACK).unwrap();
        file["decoder"] = decoder.clone();
        let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap()).unwrap();
        let tokens = tokenizer.encode("Tokens of a  longer text, one by one: été.", true).unwrap();
        for skip_special in [false, true] {
            let expected = crate_decodes(&tokenizer, &tokens, skip_special);
            assert_eq!(streamed(&tokenizer, &[], &tokens, skip_special), expected, "{decoder}");
        }
    }
}
