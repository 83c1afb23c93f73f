use super::LogError;
use crate::config::{Env, parse_bool};
use std::collections::BTreeMap;

const CONFIG_PATH: &str = "DYN_LOGGING_CONFIG_PATH";
const FILTER: &str = "DYN_LOG";
const JSONL: &str = "DYN_LOGGING_JSONL";
const FORMAT: &str = "DYN_LOGGING_CONSOLE_FORMAT";
const NO_ANSI: &str = "DYN_SDK_DISABLE_ANSI_LOGGING";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Readable,
    /// One JSON object a line.
    Jsonl,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Level for what no filter names; from the file, `info` by default.
    pub level: String,
    /// Levels by target, from the file.
    pub filters: BTreeMap<String, String>,
    /// Directives of `DYN_LOG`, which stand above the others. Empty if not set.
    pub directives: String,
    /// Form of a line.
    pub format: LogFormat,
    /// Colours, where lines are for people.
    pub ansi: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    log_level: Option<String>,
    #[serde(default)]
    log_filters: BTreeMap<String, String>,
}

impl LogOptions {
    /// The variables read by [`LogOptions::from_env`], to be declared as known.
    pub const VARIABLES: [&'static str; 5] = [FILTER, JSONL, FORMAT, CONFIG_PATH, NO_ANSI];

    /// From `DYN_LOG`, `DYN_LOGGING_JSONL` (or `DYN_LOGGING_CONSOLE_FORMAT`, which wins), `DYN_SDK_DISABLE_ANSI_LOGGING`
    /// and the TOML file that `DYN_LOGGING_CONFIG_PATH` names (`log_level`, table `log_filters`). `terminal` says whether
    /// the lines go to one: others get no colours.
    pub fn from_env(env: &Env, terminal: bool) -> Result<Self, LogError> {
        let file = match env.get(CONFIG_PATH) {
            None => File { log_level: None, log_filters: BTreeMap::new() },
            Some(path) => {
                let bad = |reason: String| LogError::File { path: path.to_owned(), reason };
                let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
                toml::from_str(&text).map_err(|error| bad(error.to_string().trim().to_owned()))?
            }
        };
        let format = match env.get(FORMAT) {
            Some("readable") => LogFormat::Readable,
            Some("jsonl") => LogFormat::Jsonl,
            Some(other) => {
                let reason = "expected readable or jsonl".to_owned();
                return Err(LogError::Variable { name: FORMAT, value: other.to_owned(), reason });
            }
            None if truth(env, JSONL)? => LogFormat::Jsonl,
            None => LogFormat::Readable,
        };
        Ok(Self {
            level: file.log_level.unwrap_or_else(|| "info".to_owned()),
            filters: file.log_filters,
            directives: env.get(FILTER).unwrap_or_default().to_owned(),
            format,
            ansi: terminal && !truth(env, NO_ANSI)?,
        })
    }
}

fn truth(env: &Env, name: &'static str) -> Result<bool, LogError> {
    let Some(value) = env.get(name) else { return Ok(false) };
    parse_bool(value).map_err(|error| LogError::Variable {
        name,
        value: value.to_owned(),
        reason: error.to_string(),
    })
}
