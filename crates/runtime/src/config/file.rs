use super::ConfigError;
use std::path::{Path, PathBuf};

/// A configuration file: TOML whose keys are the names of settings.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    path: PathBuf,
    entries: Vec<(String, Result<String, &'static str>)>,
}

impl ConfigFile {
    /// Reads the file that `--config` names.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::FileUnreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Self::parse(path, &text)
    }

    /// Parses TOML; `path` is only named in messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            ConfigError::FileMalformed { path: path.to_owned(), reason: error.to_string().trim().to_owned() }
        })?;
        let mut entries = Vec::new();
        flatten("", table, &mut entries);
        Ok(Self { path: path.to_owned(), entries })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn get(&self, name: &str) -> Option<&Result<String, &'static str>> {
        let name = canonical(name);
        self.entries.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }
}

/// `http_port` and `http-port` are one key.
pub(super) fn canonical(name: &str) -> String {
    name.replace('_', "-")
}

fn flatten(prefix: &str, table: toml::Table, entries: &mut Vec<(String, Result<String, &'static str>)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { canonical(&key) } else { format!("{prefix}.{}", canonical(&key)) };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, entries),
            toml::Value::Array(items) => {
                let items: Option<Vec<String>> = items.into_iter().map(scalar).collect();
                let joined = items.map(|items| items.join(","));
                entries.push((name, joined.ok_or("a list may hold only strings, numbers and booleans")));
            }
            other => entries.push((name, scalar(other).ok_or("not a string, number or boolean"))),
        }
    }
}

fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Datetime(time) => Some(time.to_string()),
        toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}
