//! One typed configuration per binary: flags over environment over file over defaults.
//!
//! A binary describes each value by a [`Key`] and resolves it through [`Layers`], which take the environment as an
//! argument and so are pure. Whatever was resolved is also remembered, with where it came from: that is what
//! `--print-config` shows. [`Layers::finish`] names the `DYN_*` variables and file keys that nobody asked for.

mod env;
mod file;
mod key;
mod layers;
mod resolved;
mod truthy;

pub use env::Env;
pub use file::ConfigFile;
pub use key::Key;
pub use layers::Layers;
pub use resolved::{Effective, Resolved, Source};
pub use truthy::{TruthError, parse_bool};

use std::path::PathBuf;

/// Why a configuration cannot be used. Each message names the place to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A value that does not parse, or is out of range.
    #[error("{source_name}={value:?} is not valid for {key}: {reason}; {advice}")]
    Invalid {
        /// The flag, variable or file key that holds it.
        source_name: Box<Source>,
        /// The value as given, masked if it is a secret.
        value: String,
        /// The setting.
        key: &'static str,
        /// What the parser said.
        reason: String,
        /// What to give instead.
        advice: String,
    },
    /// A setting that has no default and was given nowhere.
    #[error("{key} is not set: give {flag}{env}, or {key} in the configuration file")]
    Missing {
        /// The setting.
        key: &'static str,
        /// Its flag.
        flag: String,
        /// ", or <variable>", empty if it has none.
        env: String,
    },
    /// A configuration file that cannot be read.
    #[error("cannot read the configuration file {}: {reason}; check the path given to --config", path.display())]
    FileUnreadable {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A configuration file that is not TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    FileMalformed {
        /// The path given.
        path: PathBuf,
        /// The parser's message, with line and column.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
