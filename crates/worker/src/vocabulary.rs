//! What simulated tokens are drawn from.

use dynamo_mocker::Vocabulary;
use dynamo_text::Tokenizer;

/// The model's ordinary tokens: not special, and text by themselves, so that every token of an answer can be shown when it
/// comes. Tokens that are a part of a character are left out.
pub(crate) fn ordinary_tokens(tokenizer: &Tokenizer) -> Vocabulary {
    let table = tokenizer.table();
    let count = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let is_text = |&id: &u32| {
        let shown = table.bytes(id).and_then(|bytes| std::str::from_utf8(bytes).ok());
        !table.is_special(id) && shown.is_some_and(|text| text.chars().any(char::is_alphanumeric))
    };
    Vocabulary::Set((0..count).filter(is_text).collect())
}
