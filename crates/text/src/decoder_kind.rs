//! What a tokenizer's `decoder` does, where it can be done token by token.

use serde_json::Value;

/// How the text of a token list comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DecoderKind {
    /// Each character of a token stands for a byte; ill-formed UTF-8 becomes U+FFFD as `String::from_utf8_lossy` does.
    ByteLevel,
    /// Tokens are text after some replacements.
    Pieces(Pieces),
    /// Anything else: the `tokenizers` crate decodes a window of tokens.
    Whole,
}

/// Decoders of the SentencePiece family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Replaced in each token, in this order.
    pub(crate) replacements: Vec<(String, String)>,
    /// `<0xNN>` stands for a byte; a run of bytes that is not UTF-8 becomes one U+FFFD per byte.
    pub(crate) byte_fallback: bool,
    /// Removed from the start of the text: this character, so many times at most.
    pub(crate) strip: Option<(char, usize)>,
    /// The first token is decoded otherwise than all others (`Metaspace` drops its marks).
    pub(crate) special_first: bool,
}

impl DecoderKind {
    /// Reads the `decoder` of a `tokenizer.json`.
    pub(crate) fn detect(decoder: &Value) -> Self {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        match steps.as_slice() {
            [only] if kind(only) == "ByteLevel" => Self::ByteLevel,
            [only] if kind(only) == "Metaspace" => metaspace(only).map_or(Self::Whole, Self::Pieces),
            [] => Self::Whole,
            steps => pieces(steps).map_or(Self::Whole, Self::Pieces),
        }
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match (kind(decoder), decoder["decoders"].as_array()) {
        ("Sequence", Some(inner)) => inner.iter().for_each(|step| flatten(step, steps)),
        _ if decoder.is_null() => {}
        _ => steps.push(decoder),
    }
}

fn metaspace(step: &Value) -> Option<Pieces> {
    let mark = step["replacement"].as_str()?.to_owned();
    let never = step["prepend_scheme"].as_str() == Some("never");
    Some(Pieces { replacements: vec![(mark, " ".to_owned())], special_first: !never, ..Pieces::default() })
}

/// `Replace* ByteFallback? Fuse? Strip?`, in that order; `Strip` works on the whole text only after `Fuse`.
fn pieces(steps: &[&Value]) -> Option<Pieces> {
    let mut pieces = Pieces::default();
    let mut fused = false;
    for step in steps {
        match kind(step) {
            "Replace" if !pieces.byte_fallback && !fused => {
                let pattern = step["pattern"]["String"].as_str().filter(|pattern| !pattern.is_empty())?;
                pieces.replacements.push((pattern.to_owned(), step["content"].as_str()?.to_owned()));
            }
            "ByteFallback" if !fused => pieces.byte_fallback = true,
            "Fuse" => fused = true,
            "Strip" if fused && pieces.strip.is_none() && step["stop"].as_u64() == Some(0) => {
                let mut content = step["content"].as_str()?.chars();
                let (Some(strip), None) = (content.next(), content.next()) else { return None };
                pieces.strip = Some((strip, usize::try_from(step["start"].as_u64()?).ok()?));
            }
            _ => return None,
        }
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_llama_sequence_is_pieces() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        let expected = Pieces {
            replacements: vec![("▁".into(), " ".into())],
            byte_fallback: true,
            strip: Some((' ', 1)),
            special_first: false,
        };
        assert_eq!(DecoderKind::detect(&decoder), DecoderKind::Pieces(expected));
    }

    #[test]
    fn a_sequence_of_one_is_that_one() {
        let decoder = json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]});
        assert_eq!(DecoderKind::detect(&decoder), DecoderKind::ByteLevel);
    }

    #[test]
    fn what_needs_the_whole_text_is_left_to_the_crate() {
        for decoder in [
            Value::Null,
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}]}),
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "ByteLevel"}]}),
        ] {
            assert_eq!(DecoderKind::detect(&decoder), DecoderKind::Whole, "{decoder}");
        }
    }
}
