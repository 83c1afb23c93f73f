//! What a process prints when it is up: where it is, what it chose and why, and what to try.

use std::fmt::Write;

/// Lines of a name and a value, under a title.
pub(crate) struct StartBlock(String);

impl StartBlock {
    pub(crate) fn new(role: &str) -> Self {
        Self(format!("dynamo {} {role}\n", env!("CARGO_PKG_VERSION")))
    }

    pub(crate) fn line(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "  {name:<10} {value}");
        self
    }

    /// Prints to standard output in one write, so that whoever reads it sees all of it.
    pub(crate) fn print(self) {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        // A closed output is no reason not to serve.
        let _ = out.write_all(self.0.as_bytes()).and_then(|()| out.flush());
    }
}
