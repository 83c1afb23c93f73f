use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::Tokenizer;

fn tokenizer() -> Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        Tokenizer::from_json(include_bytes!("../../../../tests/data/tiny-llama/tokenizer.json")).unwrap()
    });
    TOKENIZER.clone()
}

const EOS: u32 = 3;

fn config(stop: &[&str]) -> DecoderConfig {
    DecoderConfig {
        stop: stop.iter().map(ToString::to_string).collect(),
        ..DecoderConfig::new(Arc::from([EOS]))
    }
}

/// One token per byte, so that tests can place pieces as they like.
fn byte_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let table = tokenizer.table();
    let id = |byte: u8| (0..table.len() as u32).find(|id| table.bytes(*id) == Some(&[byte])).unwrap();
    text.bytes().map(id).collect()
}

/// The text after each token, and what stopped it.
fn run(tokenizer: &Tokenizer, config: DecoderConfig, tokens: &[u32]) -> (Vec<String>, Option<Stopped>) {
    let mut decoder = OutputDecoder::new(Arc::clone(tokenizer.table()), config, &[]);
    let mut shown = Vec::new();
    let mut text = String::new();
    let mut stopped = None;
    for token in tokens {
        stopped = decoder.push(*token, &mut text);
        shown.push(text.clone());
        if stopped.is_some() {
            break;
        }
    }
    let more = decoder.finish(&mut text);
    shown.push(text);
    (shown, stopped.or(more))
}

fn last(result: (Vec<String>, Option<Stopped>)) -> (String, Option<Stopped>) {
    (result.0.last().cloned().unwrap_or_default(), result.1)
}

#[test]
fn a_beginning_is_held_until_it_cannot_be_one() {
    let tokenizer = tokenizer();
    let (shown, stopped) = run(&tokenizer, config(&["STOP"]), &byte_tokens(&tokenizer, "aSTxSTOPb"));
    assert_eq!(shown, ["a", "a", "a", "aSTx", "aSTx", "aSTx", "aSTx", "aSTx", "aSTx"]);
    assert_eq!(stopped, Some(Stopped::StopString("STOP".into())));
}

#[test]
fn what_is_held_comes_out_at_the_end() {
    let tokenizer = tokenizer();
    assert_eq!(
        last(run(&tokenizer, config(&["STOP"]), &byte_tokens(&tokenizer, "aST"))),
        ("aST".into(), None)
    );
    let mut tokens = byte_tokens(&tokenizer, "aST");
    tokens.push(EOS);
    assert_eq!(last(run(&tokenizer, config(&["STOP"]), &tokens)), ("aST".into(), Some(Stopped::Eos)));
    let cut = &byte_tokens(&tokenizer, "a🦀")[..3];
    assert_eq!(last(run(&tokenizer, config(&[]), cut)), ("a\u{fffd}".into(), None));
}

#[test]
fn the_stop_string_is_shown_on_request_and_nothing_after_it() {
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode("one two three four", false).unwrap();
    let shown = DecoderConfig { include_stop_str_in_output: true, ..config(&["o th"]) };
    let stop = Some(Stopped::StopString("o th".into()));
    assert_eq!(last(run(&tokenizer, shown, &tokens)), ("one two th".into(), stop.clone()));
    assert_eq!(last(run(&tokenizer, config(&["o th"]), &tokens)), ("one tw".into(), stop));
}

#[test]
fn stop_tokens_end_shown_or_hidden() {
    let tokenizer = tokenizer();
    let tokens = byte_tokens(&tokenizer, "abc");
    let hidden = DecoderConfig { stop_token_ids: vec![tokens[1]], ..config(&[]) };
    let stop = Some(Stopped::StopToken(tokens[1]));
    assert_eq!(last(run(&tokenizer, hidden, &tokens)), ("a".into(), stop.clone()));
    let visible = DecoderConfig { stop_token_ids_visible: vec![tokens[1]], ..config(&["bx"]) };
    assert_eq!(last(run(&tokenizer, visible, &tokens)), ("ab".into(), stop));
}

#[test]
fn an_end_token_is_never_text() {
    let tokenizer = tokenizer();
    let mut tokens = byte_tokens(&tokenizer, "ab");
    tokens.insert(1, EOS);
    let shown = DecoderConfig { skip_special_tokens: false, ..config(&[]) };
    assert_eq!(last(run(&tokenizer, shown, &tokens)), ("a".into(), Some(Stopped::Eos)));
}

#[test]
fn nothing_stops_before_min_tokens() {
    let tokenizer = tokenizer();
    let mut tokens = byte_tokens(&tokenizer, "xx.xx");
    tokens.insert(1, EOS);
    let config = DecoderConfig { min_tokens: 5, ..config(&["x"]) };
    assert_eq!(last(run(&tokenizer, config, &tokens)), ("xx.".into(), Some(Stopped::StopString("x".into()))));
}

#[test]
fn ignore_eos_runs_to_the_engines_limit() {
    let tokenizer = tokenizer();
    let mut tokens = byte_tokens(&tokenizer, "a.b");
    tokens.insert(1, EOS);
    let config = DecoderConfig { ignore_eos: true, ..config(&["."]) };
    assert_eq!(last(run(&tokenizer, config, &tokens)), ("a.b".into(), None));
}

#[test]
fn tokens_after_the_stop_are_ignored() {
    let tokenizer = tokenizer();
    let tokens = byte_tokens(&tokenizer, "ab");
    let mut decoder = OutputDecoder::new(Arc::clone(tokenizer.table()), config(&["a"]), &[]);
    let mut text = String::new();
    assert!(decoder.push(tokens[0], &mut text).is_some());
    assert_eq!(decoder.push(tokens[1], &mut text), None);
    assert_eq!(decoder.finish(&mut text), None);
    assert_eq!((text.as_str(), decoder.tokens()), ("", 1));
}

/// The visible text and stop of a whole text, found without any automaton.
fn reference(stops: &[String], include: bool, text: &str) -> (String, Option<Stopped>) {
    for end in 1..=text.len() {
        let found =
            stops.iter().filter(|stop| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()));
        if let Some(stop) = found.max_by_key(|stop| stop.len()) {
            let show = if include { end } else { end - stop.len() };
            return (text[..show].to_owned(), Some(Stopped::StopString(stop.clone())));
        }
    }
    (text.to_owned(), None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_tokens_of_a_text_give_the_same_answer(
        words in prop::collection::vec("[ abé🦀.]{0,6}", 0..6),
        stops in prop::collection::vec("[ abé🦀]{1,4}", 0..4),
        include: bool,
    ) {
        let tokenizer = tokenizer();
        let text = words.concat();
        let expected = reference(&stops, include, &text);
        let merged = tokenizer.encode(&text, false).unwrap();
        let by_word: Vec<u32> = words.iter().flat_map(|word| tokenizer.encode(word, false).unwrap()).collect();
        for tokens in [merged, by_word, byte_tokens(&tokenizer, &text)] {
            let config = DecoderConfig {
                stop: stops.clone(),
                include_stop_str_in_output: include,
                ..config(&[])
            };
            let (shown, stopped) = run(&tokenizer, config, &tokens);
            prop_assert_eq!((shown.last().cloned().unwrap(), stopped), expected.clone());
            for (count, visible) in shown.iter().take(tokens.len()).enumerate() {
                prop_assert!(expected.0.starts_with(visible.as_str()));
                if !include && shown.len() > count + 2 {
                    // Not stopped yet: all that is whole and cannot be the start of a stop string is out.
                    let mut whole = String::new();
                    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer.table()), &[], true);
                    tokens[..=count].iter().for_each(|token| detokenizer.push(*token, &mut whole));
                    let held = stops.iter().flat_map(|stop| (1..stop.len()).map(|n| &stop.as_bytes()[..n]))
                        .filter(|start| whole.as_bytes().ends_with(start)).map(<[u8]>::len).max().unwrap_or(0);
                    prop_assert_eq!(visible.len(), whole.len() - held);
                }
            }
            if !include {
                let last = shown.last().unwrap();
                prop_assert!(!stops.iter().any(|stop| last.contains(stop.as_str())));
            }
        }
    }
}
