//! The model calls of one agent run, as they come by, and the session that they make.

use std::io::{self, Write};

use rustc_hash::FxHashMap;

use super::{Conversion, PromptBlocks, TokenizerFault};
use crate::mooncake::TraceRequest;

/// Calls of one run that may be under way at once, and calls of one run in all: more than any agent makes, and some
/// 100 MB at most.
const MAX_OPEN_CALLS: usize = 4096;
const MAX_CALLS: usize = 65_536;

/// An LLM event of a run.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// A call with this prompt; empty if it is not known.
    Start { prompt: &'a str },
    /// The answer, with so many tokens.
    End { prompt_tokens: u64, completion_tokens: u64 },
}

struct Call {
    began: f64,
    ended: f64,
    tokens: u32,
    ids: Vec<u64>,
    output: u32,
}

/// Writes runs as sessions.
pub(super) struct Sessions<'a, W> {
    pub(super) out: W,
    pub(super) blocks: &'a PromptBlocks,
    /// Milliseconds between turns.
    pub(super) delay: f64,
    pub(super) done: Conversion,
    open: FxHashMap<String, Call>,
    calls: Vec<Call>,
    /// Seconds: when the first call of the first run began.
    origin: Option<f64>,
    /// Milliseconds: the latest start of a session so far.
    time: f64,
}

impl<'a, W: Write> Sessions<'a, W> {
    pub(super) fn new(out: W, blocks: &'a PromptBlocks, delay: f64) -> Self {
        Self {
            out,
            blocks,
            delay,
            done: Conversion::default(),
            open: FxHashMap::default(),
            calls: Vec::new(),
            origin: None,
            time: 0.0,
        }
    }

    /// An event of the current run, at a time in seconds.
    pub(super) fn event(&mut self, uuid: &str, time: f64, event: &Event<'_>) -> Result<(), TokenizerFault> {
        match event {
            Event::Start { prompt } => {
                let (tokens, ids) = self.blocks.of(prompt)?;
                if self.open.len() >= MAX_OPEN_CALLS {
                    self.done.leave_out("too many calls at once");
                    return Ok(());
                }
                self.open.insert(uuid.to_owned(), Call { began: time, ended: time, tokens, ids, output: 0 });
            }
            Event::End { prompt_tokens, completion_tokens } => match self.open.remove(uuid) {
                None => self.done.leave_out("an end without a start"),
                Some(_) if *prompt_tokens == 0 || *completion_tokens == 0 => self.done.leave_out("no tokens"),
                Some(call) if call.tokens == 0 => self.done.leave_out("no prompt text"),
                Some(_) if self.calls.len() >= MAX_CALLS => self.done.leave_out("too many calls of one run"),
                Some(call) => {
                    let output = u32::try_from(*completion_tokens).unwrap_or(u32::MAX);
                    self.calls.push(Call { ended: time, output, ..call });
                }
            },
        }
        Ok(())
    }

    /// The run is over, or the input is. Its calls become turns in the order in which they ended.
    pub(super) fn finish(&mut self, run: u64) -> io::Result<()> {
        for _ in self.open.drain() {
            *self.done.left_out.entry("a start without an end").or_default() += 1;
        }
        let mut calls = std::mem::take(&mut self.calls);
        calls.sort_by(|a, b| a.ended.total_cmp(&b.ended));
        let began = calls.iter().map(|call| call.began).fold(f64::INFINITY, f64::min);
        for (turn, call) in calls.drain(..).enumerate() {
            let timestamp = (turn == 0).then(|| {
                let origin = *self.origin.get_or_insert(began);
                let time = ((began - origin) * 1e3).round();
                self.done.moved += u64::from(time < self.time);
                self.time = self.time.max(time);
                self.time
            });
            let request = TraceRequest {
                timestamp,
                input_length: call.tokens,
                output_length: call.output,
                hash_ids: call.ids,
                session_id: Some(format!("conv_{run}")),
                delay: (turn > 0).then_some(self.delay),
            };
            request.write(&mut self.out, &[])?;
            self.done.requests += 1;
            self.done.sessions += u64::from(turn == 0);
        }
        // Keeps its memory for the next run.
        self.calls = calls;
        Ok(())
    }
}
