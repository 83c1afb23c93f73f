//! The tokens of an answer to its visible text, up to whatever ends it.

use std::sync::Arc;

use crate::{Detokenizer, StopMatcher, TokenTable};

/// When an answer ends, and what of it is shown.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Strings that end the answer; empty ones are ignored.
    pub stop: Vec<String>,
    /// The model's end tokens: not shown.
    pub eos_token_ids: Arc<[u32]>,
    /// Further tokens that end the answer and are not shown.
    pub stop_token_ids: Vec<u32>,
    /// Tokens that end the answer and are shown.
    pub stop_token_ids_visible: Vec<u32>,
    /// Nothing ends the answer at a token before this one (the first is 1); stop strings are looked for from it on.
    pub min_tokens: u32,
    /// Nothing ends the answer at all: it goes on to the engine's limit.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Show the stop string.
    pub include_stop_str_in_output: bool,
}

impl DecoderConfig {
    /// An answer that only the model's end tokens end, without special tokens in its text.
    pub fn new(eos_token_ids: Arc<[u32]>) -> Self {
        Self {
            stop: Vec::new(),
            eos_token_ids,
            stop_token_ids: Vec::new(),
            stop_token_ids_visible: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
            skip_special_tokens: true,
            include_stop_str_in_output: false,
        }
    }
}

/// What ended an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// An end token of the model's.
    Eos,
    /// A stop token of the request's.
    StopToken(u32),
    /// A stop string of the request's.
    StopString(String),
}

/// Decodes one answer: tokens in, visible text out.
///
/// Text that may be the beginning of a stop string is held back until it is known not to be, and no longer.
#[derive(Debug)]
pub struct OutputDecoder {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    config: DecoderConfig,
    /// Text decoded and not yet shown; between calls at most the longest stop string less a byte.
    held: String,
    tokens: u32,
    stopped: bool,
}

impl OutputDecoder {
    /// Starts an answer to this prompt (see [`Detokenizer::new`]).
    pub fn new(table: Arc<TokenTable>, config: DecoderConfig, prompt: &[u32]) -> Self {
        Self {
            detokenizer: Detokenizer::new(table, prompt, config.skip_special_tokens),
            matcher: if config.ignore_eos { StopMatcher::default() } else { StopMatcher::new(&config.stop) },
            config,
            held: String::new(),
            tokens: 0,
            stopped: false,
        }
    }

    /// Takes the next token and appends the text that can be shown. Once it has said what stopped the answer, it is
    /// complete (nothing is left to flush) and takes no more.
    #[inline]
    pub fn push(&mut self, token: u32, out: &mut String) -> Option<Stopped> {
        if self.stopped {
            return None;
        }
        self.tokens = self.tokens.saturating_add(1);
        if self.config.ignore_eos || self.tokens < self.config.min_tokens {
            self.detokenizer.push(token, out);
            return None;
        }
        let hidden = if self.config.eos_token_ids.contains(&token) {
            Some(Stopped::Eos)
        } else if self.config.stop_token_ids.contains(&token) {
            Some(Stopped::StopToken(token))
        } else {
            None
        };
        if hidden.is_some() {
            return self.end(hidden, out);
        }
        if self.matcher.is_empty() {
            self.detokenizer.push(token, out);
        } else if let Some(stop) = self.push_matching(token, out) {
            return Some(stop);
        }
        if self.config.stop_token_ids_visible.contains(&token) {
            return self.end(Some(Stopped::StopToken(token)), out);
        }
        None
    }

    /// The answer ended by other means (`max_tokens`, the engine): appends what was held back. A stop string that
    /// only the flushed remainder completes is still honoured. Does nothing the second time, or after a stop.
    pub fn finish(&mut self, out: &mut String) -> Option<Stopped> {
        if self.stopped {
            return None;
        }
        self.end(None, out)
    }

    /// Tokens so far, the one that stopped included.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    fn end(&mut self, stop: Option<Stopped>, out: &mut String) -> Option<Stopped> {
        self.stopped = true;
        let from = self.held.len();
        self.detokenizer.finish(&mut self.held);
        if let Some(earlier) = self.scan(from, out) {
            return Some(earlier);
        }
        out.push_str(&self.held);
        self.held.clear();
        stop
    }

    fn push_matching(&mut self, token: u32, out: &mut String) -> Option<Stopped> {
        let from = self.held.len();
        self.detokenizer.push(token, &mut self.held);
        let stopped = self.scan(from, out);
        if stopped.is_none() {
            let hold = if self.config.include_stop_str_in_output { 0 } else { self.matcher.held() };
            let show = self.held.len() - hold;
            out.push_str(&self.held[..show]);
            self.held.drain(..show);
        }
        stopped
    }

    /// Looks for stop strings in the held text from `from` on; at a match shows what is to be shown, and ends.
    fn scan(&mut self, from: usize, out: &mut String) -> Option<Stopped> {
        let found = self.matcher.feed(&self.held[from..])?;
        let stop = std::mem::take(&mut self.config.stop[found.index]);
        let end = from + found.end;
        let show = if self.config.include_stop_str_in_output { end } else { end - stop.len() };
        out.push_str(&self.held[..show]);
        self.held.clear();
        self.stopped = true;
        Some(Stopped::StopString(stop))
    }
}

#[cfg(test)]
mod tests;
