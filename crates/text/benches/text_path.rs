//! What the text path of a request costs: `cargo bench -p dynamo-text`. Prints the best of several rounds.

use std::{hint::black_box, sync::Arc, time::Instant};

use dynamo_text::{
    ChatTemplate, DecoderConfig, LocalTime, OutputDecoder, RenderInput, TemplateSources, Tokenizer,
    TokenizerConfig,
};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data");

/// Nanoseconds per unit, the best of 7 rounds.
fn measure(name: &str, units: usize, mut round: impl FnMut()) {
    let best = (0..7)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!("{name:<58} {:>12.1} ns", best.as_nanos() as f64 / units as f64);
}

/// Words of a small vocabulary in a fixed random order.
fn words(count: usize, seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "request", "router", "the", "cache", "of", "token", "server", "block", "latency", "a", "worker",
        "prefix", "model", "stream", "answer", "measured",
    ];
    let mut state = seed;
    let mut text = String::new();
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 60) as usize]);
        text.push(' ');
    }
    text
}

fn main() {
    for model in ["tiny-llama", "tinyllama-tokenizer"] {
        let json = std::fs::read(format!("{DATA}/{model}/tokenizer.json"))
            .expect("the test data is in the repository");
        let tokenizer = Tokenizer::from_json(&json).expect("the test data is a tokenizer");
        measure(&format!("{model}: load the tokenizer"), 1, || {
            black_box(Tokenizer::from_json(&json).expect("the test data is a tokenizer"));
        });
        println!("{model}: token table of {} bytes", tokenizer.table().heap_bytes());
        let prompts: Vec<String> = (0..64).map(|seed| words(256, seed + 1)).collect();
        let bytes = prompts[0].len();
        let crate_only = tokenizers::Tokenizer::from_bytes(&json).expect("the test data is a tokenizer");
        measure(&format!("{model}: the crate's encode, per prompt"), 64, || {
            for prompt in &prompts {
                black_box(crate_only.encode(prompt.as_str(), false).expect("encodes"));
            }
        });
        measure(&format!("{model}: the crate's encode_fast, per prompt"), 64, || {
            for prompt in &prompts {
                black_box(crate_only.encode_fast(prompt.as_str(), false).expect("encodes"));
            }
        });
        measure(&format!("{model}: encode, per prompt of {bytes} bytes"), 64, || {
            for prompt in &prompts {
                black_box(tokenizer.encode(prompt, false).expect("encodes"));
            }
        });
        // Every word is new, to this tokenizer and to the crate's own cache of words.
        let mut next = 0_u64;
        let mut unseen = || {
            let words = (0..256).map(|_| {
                next += 1;
                format!("{:06x} ", next.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40)
            });
            words.collect::<String>()
        };
        measure(&format!("{model}: the crate's encode_fast, 256 new words"), 8, || {
            for _ in 0..8 {
                black_box(crate_only.encode_fast(unseen(), false).expect("encodes"));
            }
        });
        measure(&format!("{model}: encode, 256 new words"), 8, || {
            for _ in 0..8 {
                black_box(tokenizer.encode(&unseen(), false).expect("encodes"));
            }
        });
        let table = tokenizer.table();
        let tokens = tokenizer.encode(&words(2000, 9), false).expect("encodes");
        let count = tokens.len();
        let mut out = String::with_capacity(1 << 16);
        for (name, stop) in
            [("no stop strings", vec![]), ("4 stop strings", vec!["</s>", "\n\nUser:", "###", "tokenx"])]
        {
            let eos: Arc<[u32]> = Arc::from([2, 3]);
            let config = || DecoderConfig {
                stop: stop.iter().map(ToString::to_string).collect(),
                ..DecoderConfig::new(Arc::clone(&eos))
            };
            measure(&format!("{model}: decode, per token, {name}"), count, || {
                let mut decoder = OutputDecoder::new(Arc::clone(table), config(), &[5000]);
                for token in &tokens {
                    out.clear();
                    black_box(decoder.push(*token, &mut out));
                }
            });
            measure(&format!("{model}: new decoder, {name}"), 1000, || {
                for _ in 0..1000 {
                    black_box(OutputDecoder::new(Arc::clone(table), config(), &tokens));
                }
            });
        }
        let config = std::fs::read(format!("{DATA}/{model}/tokenizer_config.json")).expect("test data");
        let config = TokenizerConfig::parse(&config).expect("test data");
        let sources = TemplateSources { tokenizer_config: Some(&config), ..TemplateSources::default() };
        let template =
            ChatTemplate::new(&sources, Arc::new(|| LocalTime::from_unix(0, 0))).expect("test data");
        let messages = serde_json::json!([{"role": "user", "content": prompts[0]}]);
        let input = RenderInput { messages: &messages, tools: None, add_generation_prompt: true, args: None };
        measure(&format!("{model}: render one message of {bytes} bytes"), 1000, || {
            for _ in 0..1000 {
                black_box(template.render(&input).expect("renders"));
            }
        });
    }
}
