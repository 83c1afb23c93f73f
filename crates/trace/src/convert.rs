//! Other formats into mooncake traces, line by line, in memory that does not grow with the input.
//!
//! What is bad is named by its line and left out; an input that was cut off is read up to there.

mod burstgpt;
mod conversation;
mod csv;
mod nat;
mod nat_csv;
mod profile_json;
mod prompt_blocks;

use std::{collections::BTreeMap, io};

use serde::Serialize;

use crate::faults::Faults;

pub use burstgpt::{BurstGpt, convert_burstgpt};
pub use nat::{Nat, convert_nat};
pub use nat_csv::convert_nat_csv;
pub use prompt_blocks::{PromptBlocks, TokenizerFault};

/// What became of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Conversion {
    /// Requests written.
    pub requests: u64,
    /// Sessions written, where the format has some.
    pub sessions: u64,
    /// What was left out for good reason, and how often.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Requests that were listed after one that came later, and got its time.
    pub moved: u64,
    /// Whether the input ends in the middle of something.
    pub truncated: bool,
    /// What is wrong with it.
    pub faults: Faults,
}

impl Conversion {
    fn leave_out(&mut self, why: &'static str) {
        *self.left_out.entry(why).or_default() += 1;
    }
}

/// Why an input could not be converted. Bad lines are no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It could not be read, or the trace not written.
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
    /// It has no header, or not the right columns.
    #[error("the first line must name the columns, and {0} is not among them")]
    Column(&'static str),
    /// It begins like something else.
    #[error("line {line}: {why}")]
    Format {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The tokenizer does not take a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerFault),
}

#[cfg(test)]
mod tests;
