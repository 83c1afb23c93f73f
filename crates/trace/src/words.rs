//! Text by the yard: deterministic runs of ordinary words with a known number of tokens in the tiny test model.
//!
//! A byte-level BPE with the usual splitting treats every " word" on its own, so token counts add up: a mix of words of
//! three and of four tokens hits any count from three to four times the number of words exactly. That is what keeps
//! equal trace ids aligned to equal KV blocks.

mod list;

use list::{LONG, SHORT};

use crate::rng::SplitMix;

/// How many tokens `words` words of ordinary text have in the tiny model: 32/9 each, which is 64 tokens for 18.
#[must_use]
pub fn usual_tokens(words: usize) -> usize {
    (words * 32 + 4) / 9
}

/// How many words make `tokens` tokens of ordinary text in the tiny model.
#[must_use]
pub fn usual_words(tokens: usize) -> usize {
    ((tokens * 9 + 16) / 32).max(1)
}

/// Appends `words` words, each with a space before it, that the tiny model tokenizes to `tokens` tokens (as near as three
/// to four tokens a word allow). The same seed and sizes give the same text.
pub fn push_words(out: &mut Vec<u8>, seed: u64, words: usize, tokens: usize) {
    let mut rng = SplitMix::new(seed);
    let long = tokens.saturating_sub(3 * words).min(words);
    let mut due = 0;
    for _ in 0..words {
        // Spread the longer words evenly, so that a cut anywhere has about the usual density.
        due += long;
        let word = if due >= words {
            due -= words;
            LONG[rng.below(LONG.len() as u64) as usize]
        } else {
            SHORT[rng.below(SHORT.len() as u64) as usize]
        };
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, words: usize, tokens: usize) -> String {
        let mut out = Vec::new();
        push_words(&mut out, seed, words, tokens);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn equal_seeds_give_equal_text_and_others_do_not() {
        assert_eq!(text(7, 18, 64), text(7, 18, 64));
        assert_ne!(text(7, 18, 64), text(8, 18, 64));
    }

    #[test]
    fn a_block_of_eighteen_words_has_sixty_four_tokens() {
        for seed in 0..200 {
            let text = text(seed, 18, 64);
            let long = text.split_whitespace().filter(|w| LONG.contains(w)).count();
            assert_eq!(text.split_whitespace().count(), 18);
            assert_eq!(long * 4 + (18 - long) * 3, 64);
        }
    }

    #[test]
    fn words_and_tokens_convert_both_ways() {
        assert_eq!(usual_words(64), 18);
        assert_eq!(usual_tokens(18), 64);
        assert_eq!(usual_tokens(256), 910);
        assert_eq!(usual_words(1), 1);
    }
}
