use std::fmt;
use std::path::PathBuf;

/// What stands for a secret wherever the configuration is shown.
pub(super) const MASK: &str = "********";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag(&'static str),
    /// An environment variable.
    Env(&'static str),
    /// A key of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: &'static str,
    },
    /// Nobody gave one.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "--{name}"),
            Source::Env(name) => f.write_str(name),
            Source::File { path, key } => write!(f, "{}: {key}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// One setting as it took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting.
    pub name: &'static str,
    /// Its value as text, `None` if it is not set, masked if it is a secret.
    pub value: Option<String>,
    /// Where the value came from.
    pub source: Source,
}

/// Everything that was resolved, and what deserves a warning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The settings, in the order in which they were asked for.
    pub settings: Vec<Effective>,
    /// One line each, to be logged as warnings.
    pub warnings: Vec<String>,
}

impl fmt::Display for Resolved {
    /// What `--print-config` prints: TOML that `--config` takes back, with the source of each value as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Effective { name, value, source } in &self.settings {
            match value {
                Some(value) => {
                    // JSON's quoting of strings is TOML's for all text that a setting can hold.
                    let quoted = serde_json::Value::String(value.clone());
                    writeln!(f, "{name} = {quoted} # {source}")?;
                }
                None => writeln!(f, "# {name} is not set")?,
            }
        }
        Ok(())
    }
}
