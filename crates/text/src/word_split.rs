//! The pre-tokenizer patterns of the byte-level families, without a regular-expression engine.

use serde_json::Value;

use crate::char_class::{CharClass, CharClasses};

/// The pattern by which a text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WordPattern {
    /// GPT-2's, the default of the `ByteLevel` pre-tokenizer.
    Gpt2,
    /// That of GPT-4 and Llama 3 (numbers of up to three digits) and Qwen 2 (one digit each).
    Gpt4 {
        /// Digits in one word at most.
        digits: usize,
    },
}

const GPT4_DIGITS_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4_DIGITS_1: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl WordPattern {
    /// Recognises a `pre_tokenizer` that cuts by one of the patterns and then maps bytes to characters.
    pub(crate) fn detect(pre_tokenizer: &Value) -> Option<Self> {
        let byte_level = |step: &Value, use_regex: bool| {
            step["type"] == "ByteLevel" && step["add_prefix_space"] == false && step["use_regex"] == use_regex
        };
        if byte_level(pre_tokenizer, true) {
            return Some(Self::Gpt2);
        }
        let [split, bytes] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
        let isolated =
            split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
        if pre_tokenizer["type"] != "Sequence" || !isolated || !byte_level(bytes, false) {
            return None;
        }
        match split["pattern"]["Regex"].as_str()? {
            GPT4_DIGITS_3 => Some(Self::Gpt4 { digits: 3 }),
            GPT4_DIGITS_1 => Some(Self::Gpt4 { digits: 1 }),
            _ => None,
        }
    }

    /// The words of a text, in order; put together they are the text.
    pub(crate) fn words(self, text: &str) -> Words<'_> {
        Words { pattern: self, rest: text, classes: CharClasses::get() }
    }
}

/// An iterator over words.
pub(crate) struct Words<'a> {
    pattern: WordPattern,
    rest: &'a str,
    classes: CharClasses,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        let length = match self.pattern {
            WordPattern::Gpt2 => self.gpt2(first),
            WordPattern::Gpt4 { digits } => self.gpt4(first, digits),
        };
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(word)
    }
}

impl Words<'_> {
    fn class_at(&self, at: usize) -> Option<CharClass> {
        self.rest[at..].chars().next().map(|symbol| self.classes.of(symbol))
    }

    /// The end of the run of this class that starts at `from`.
    fn run(&self, from: usize, class: CharClass) -> usize {
        let text = &self.rest[from..];
        from + text.find(|symbol| self.classes.of(symbol) != class).unwrap_or(text.len())
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d|·?L+|·?N+|·?[^sLN]+|\s+(?!\S)|\s+` where `·` is a space.
    fn gpt2(&self, first: char) -> usize {
        if first == '\''
            && let Some(length) = self.contraction(false)
        {
            return length;
        }
        let class = self.classes.of(first);
        if class != CharClass::Space {
            return self.run(0, class);
        }
        match self.class_at(first.len_utf8()) {
            Some(next) if first == ' ' && next != CharClass::Space => self.run(1, next),
            _ => self.spaces(),
        }
    }

    /// `(?i:…)|[^\r\nLN]?L+|N{1,n}|·?[^sLN]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn gpt4(&self, first: char, digits: usize) -> usize {
        if first == '\''
            && let Some(length) = self.contraction(true)
        {
            return length;
        }
        let class = self.classes.of(first);
        let width = first.len_utf8();
        let next = || self.class_at(width);
        match class {
            CharClass::Letter => self.run(0, CharClass::Letter),
            CharClass::Number => {
                let numbers = &self.rest[..self.run(0, CharClass::Number)];
                numbers.char_indices().nth(digits).map_or(numbers.len(), |(at, _)| at)
            }
            _ if !matches!(first, '\r' | '\n') && next() == Some(CharClass::Letter) => {
                self.run(width, CharClass::Letter)
            }
            CharClass::Other => self.others(0),
            CharClass::Space if first == ' ' && next() == Some(CharClass::Other) => self.others(1),
            CharClass::Space => {
                let run = &self.rest[..self.run(0, CharClass::Space)];
                run.rfind(['\r', '\n']).map_or_else(|| self.spaces(), |at| at + 1)
            }
        }
    }

    /// `[^sLN]+[\r\n]*`
    fn others(&self, from: usize) -> usize {
        let end = self.run(from, CharClass::Other);
        let rest = &self.rest[end..];
        end + rest.find(|symbol| !matches!(symbol, '\r' | '\n')).unwrap_or(rest.len())
    }

    /// `\s+(?!\S)|\s+`: all spaces at the end of the text, else all but the last, else the last.
    fn spaces(&self) -> usize {
        let end = self.run(0, CharClass::Space);
        if end == self.rest.len() {
            return end;
        }
        let last = self.rest[..end].char_indices().next_back().map_or(0, |(at, _)| at);
        if last == 0 { end } else { last }
    }

    /// After an apostrophe; the long s folds to an s.
    fn contraction(&self, any_case: bool) -> Option<usize> {
        let mut symbols = self.rest[1..].chars().map(|symbol| match symbol {
            'ſ' if any_case => 's',
            symbol if any_case => symbol.to_ascii_lowercase(),
            symbol => symbol,
        });
        match (symbols.next()?, symbols.next()) {
            ('s', _) if self.rest[1..].starts_with('ſ') => Some(1 + 'ſ'.len_utf8()),
            ('s' | 't' | 'm' | 'd', _) => Some(2),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: WordPattern, text: &str) -> Vec<&str> {
        pattern.words(text).collect()
    }

    #[test]
    fn gpt2_keeps_a_space_with_the_word_after_it() {
        let expected = ["It", "'s", "  ", " 3", ".", "5", " km", " \n", "\n", "x", " "];
        assert_eq!(words(WordPattern::Gpt2, "It's   3.5 km \n\nx "), expected);
    }

    #[test]
    fn gpt4_cuts_numbers_and_keeps_line_ends_together() {
        let text = "It'LL cost $12345.\r\n\n  next (x)";
        let expected = ["It", "'LL", " cost", " $", "123", "45", ".\r\n\n", " ", " next", " (", "x", ")"];
        assert_eq!(words(WordPattern::Gpt4 { digits: 3 }, text), expected);
        assert_eq!(words(WordPattern::Gpt4 { digits: 1 }, "12"), ["1", "2"]);
    }
}
