//! Incremental decoding for decoders that only work on whole token lists.

use crate::token_table::{SPECIAL, TokenTable};

/// Prompt tokens that take part in decoding the first output tokens: enough to see what joins them, as vLLM and
/// text-generation-inference have it.
const PROMPT_WINDOW: usize = 5;

/// Decodes a window of tokens twice, without and with the newest ones; the difference is the new text.
#[derive(Clone, Debug, Default)]
pub(crate) struct WholeDecoder {
    ids: Vec<u32>,
    /// Length of the part of `ids` whose text has been given out.
    read: usize,
}

impl WholeDecoder {
    pub(crate) fn new(prompt: &[u32]) -> Self {
        let window = &prompt[prompt.len().saturating_sub(PROMPT_WINDOW)..];
        Self { ids: window.to_vec(), read: window.len() }
    }

    pub(crate) fn push(&mut self, table: &TokenTable, id: u32, skip_special: bool, out: &mut String) {
        self.ids.push(id);
        self.advance(table, skip_special, false, out);
    }

    pub(crate) fn finish(&mut self, table: &TokenTable, skip_special: bool, out: &mut String) {
        self.advance(table, skip_special, true, out);
    }

    fn advance(&mut self, table: &TokenTable, skip_special: bool, last: bool, out: &mut String) {
        let given = decode(table, &self.ids[..self.read], skip_special);
        let all = decode(table, &self.ids, skip_special);
        if all.len() <= given.len() || (!last && all.ends_with('\u{fffd}')) {
            return;
        }
        // Where the earlier text changed shape, the lengths still tell how much is new.
        let from = (given.len()..=all.len()).find(|at| all.is_char_boundary(*at)).unwrap_or(all.len());
        out.push_str(&all[from..]);
        self.ids.drain(..self.read);
        self.read = self.ids.len();
    }
}

/// The crate's decoders of today cannot fail (one that does gives no text), but some expect at least one token.
pub(crate) fn decode(table: &TokenTable, ids: &[u32], skip_special: bool) -> String {
    let visible = |id: &u32| table.token(*id).is_some_and(|token| !(skip_special && token.is(SPECIAL)));
    if !ids.iter().any(visible) {
        return String::new();
    }
    table.whole.decode(ids, skip_special).unwrap_or_default()
}
