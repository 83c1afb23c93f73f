//! What is wrong with an input, named by line.

use serde::Serialize;

/// Faults that are named; further ones are counted only, so that a wrong file cannot fill the memory or the screen.
const MAX_NAMED: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// All that is wrong with a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// How many there are.
    pub count: u64,
    /// The first hundred of them.
    pub named: Vec<Fault>,
}

impl Faults {
    pub(crate) fn add(&mut self, line: u64, why: impl Into<String>) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(Fault { line, why: why.into() });
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for fault in &self.named {
            writeln!(f, "line {}: {}", fault.line, fault.why)?;
        }
        match self.count - self.named.len() as u64 {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}
