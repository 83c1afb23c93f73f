use super::file::canonical;
use super::resolved::MASK;
use super::{ConfigError, ConfigFile, Effective, Env, Key, Resolved, Source, parse_bool};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The prefix of the variables that belong to this project.
const PREFIX: &str = "DYN_";

/// The longest distance at which an unknown name is taken for a misspelt one.
const TYPO_DISTANCE: usize = 3;

/// The sources of a configuration, highest first: flags (given with each call), environment, file.
#[derive(Debug)]
pub struct Layers<'a> {
    env: &'a Env,
    file: Option<ConfigFile>,
    settings: Vec<Effective>,
    warnings: Vec<String>,
    known_variables: BTreeSet<&'static str>,
    known_keys: BTreeSet<String>,
}

impl<'a> Layers<'a> {
    /// Layers over `env` and, if there is one, a file.
    pub fn new(env: &'a Env, file: Option<ConfigFile>) -> Self {
        Self {
            env,
            file,
            settings: Vec::new(),
            warnings: Vec::new(),
            known_variables: BTreeSet::new(),
            known_keys: BTreeSet::new(),
        }
    }

    /// The environment below these layers, for settings that take part in no file and no flag.
    pub fn env(&self) -> &'a Env {
        self.env
    }

    /// Variables that are read elsewhere and so deserve no warning.
    pub fn also_known(&mut self, names: &[&'static str]) {
        self.known_variables.extend(names);
    }

    /// Keys that other binaries read from the same file.
    pub fn also_known_keys(&mut self, names: &[&'static str]) {
        self.known_keys.extend(names.iter().map(|name| canonical(name)));
    }

    /// A value that prints as it parses: numbers, strings, addresses, enums.
    pub fn value<T>(&mut self, key: &Key, flag: Option<T>, default: T) -> Result<T, ConfigError>
    where
        T: FromStr + Display,
        T::Err: Display,
    {
        Ok(self.resolve(key, flag, Some(default), parse_trimmed, T::to_string)?.expect("has a default"))
    }

    /// A value that may be absent.
    pub fn optional<T>(&mut self, key: &Key, flag: Option<T>) -> Result<Option<T>, ConfigError>
    where
        T: FromStr + Display,
        T::Err: Display,
    {
        self.resolve(key, flag, None, parse_trimmed, T::to_string)
    }

    /// A value without which there is no starting.
    pub fn required<T>(&mut self, key: &Key, flag: Option<T>) -> Result<T, ConfigError>
    where
        T: FromStr + Display,
        T::Err: Display,
    {
        let env = key.env.first().map(|name| format!(", or {name}")).unwrap_or_default();
        let flag_name = format!("--{}", key.name);
        self.optional(key, flag)?.ok_or(ConfigError::Missing { key: key.name, flag: flag_name, env })
    }

    /// A truth value.
    pub fn switch(&mut self, key: &Key, flag: Option<bool>, default: bool) -> Result<bool, ConfigError> {
        let parse = |text: &str| parse_bool(text).map_err(|error| error.to_string());
        Ok(self.resolve(key, flag, Some(default), parse, bool::to_string)?.expect("has a default"))
    }

    /// A span of time, given in seconds, fractions allowed.
    pub fn seconds(
        &mut self,
        key: &Key,
        flag: Option<f64>,
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        Ok(self.time(key, flag, Some(default))?.expect("has a default"))
    }

    /// A span of time that may be absent, given in seconds, fractions allowed.
    pub fn optional_seconds(
        &mut self,
        key: &Key,
        flag: Option<f64>,
    ) -> Result<Option<Duration>, ConfigError> {
        self.time(key, flag, None)
    }

    fn time(
        &mut self,
        key: &Key,
        flag: Option<f64>,
        default: Option<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        let parse = |text: &str| {
            let seconds: f64 = parse_trimmed(text)?;
            Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
        };
        let flag = match flag.map(|seconds| parse(&seconds.to_string())) {
            None => None,
            Some(Ok(time)) => Some(time),
            Some(Err(reason)) => {
                let value = flag.unwrap_or_default().to_string();
                return Err(invalid(key, Source::Flag(key.name), &value, reason));
            }
        };
        self.resolve(key, flag, default, parse, |time: &Duration| time.as_secs_f64().to_string())
    }

    /// A path that may be absent.
    pub fn path(&mut self, key: &Key, flag: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
        self.resolve(key, flag, None, |text| Ok(PathBuf::from(text)), |path| path.display().to_string())
    }

    /// A list: separated by commas, or a TOML array. A flag given at least once replaces what lies below.
    pub fn list(&mut self, key: &Key, flag: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let flag = (!flag.is_empty()).then_some(flag);
        let parse = |text: &str| {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        };
        let show = |items: &Vec<String>| items.join(",");
        Ok(self.resolve(key, flag, Some(Vec::new()), parse, show)?.expect("has a default"))
    }

    /// The general form: any type with its own parser and its own way to be shown.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the highest source that gives a value, if that value does not parse: a bad value
    /// is never passed over for a lower one.
    pub fn resolve<T>(
        &mut self,
        key: &Key,
        flag: Option<T>,
        default: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> Result<Option<T>, ConfigError> {
        self.known_variables.extend(key.env.iter().chain(key.deprecated));
        self.known_keys.insert(canonical(key.name));
        let (value, source) = match flag {
            Some(value) => (Some(value), Source::Flag(key.name)),
            None => match self.text(key)? {
                Some((text, source)) => match parse(&text) {
                    Ok(value) => (Some(value), source),
                    Err(reason) => return Err(invalid(key, source, &text, reason)),
                },
                None => (default, Source::Default),
            },
        };
        let shown = value.as_ref().map(|value| if key.secret { MASK.to_owned() } else { show(value) });
        self.settings.push(Effective { name: key.name, value: shown, source });
        Ok(value)
    }

    /// Ends the reading: the effective values, and warnings for deprecated and unknown names.
    pub fn finish(mut self) -> Resolved {
        for name in self.env.names_with_prefix(PREFIX) {
            if !self.known_variables.contains(name) {
                let hint = closest(name, self.known_variables.iter().copied());
                self.warnings.push(format!("unknown variable {name} is ignored{hint}"));
            }
        }
        if let Some(file) = &self.file {
            for name in file.names().filter(|name| !self.known_keys.contains(*name)) {
                let hint = closest(name, self.known_keys.iter().map(String::as_str));
                let path = file.path().display();
                self.warnings.push(format!("unknown key {name} in {path} is ignored{hint}"));
            }
        }
        Resolved { settings: self.settings, warnings: self.warnings }
    }

    /// The text that the highest layer below the flags holds for `key`.
    fn text(&mut self, key: &Key) -> Result<Option<(String, Source)>, ConfigError> {
        for &name in key.env {
            if let Some(value) = self.env.get(name) {
                return Ok(Some((value.to_owned(), Source::Env(name))));
            }
        }
        for &name in key.deprecated {
            if let Some(value) = self.env.get(name) {
                let instead =
                    key.env.first().map_or_else(|| format!("--{}", key.name), |name| (*name).to_owned());
                self.warnings.push(format!("{name} is deprecated: use {instead}"));
                return Ok(Some((value.to_owned(), Source::Env(name))));
            }
        }
        let Some(file) = &self.file else { return Ok(None) };
        let source = Source::File { path: file.path().to_owned(), key: key.name };
        match file.get(key.name) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some((text.clone(), source))),
            Some(Err(reason)) => Err(invalid(key, source, "", (*reason).to_owned())),
        }
    }
}

fn parse_trimmed<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: Display,
{
    text.trim().parse().map_err(|error: T::Err| error.to_string())
}

fn invalid(key: &Key, source: Source, value: &str, reason: String) -> ConfigError {
    let value = if key.secret { MASK.to_owned() } else { value.to_owned() };
    let advice = if key.expects.is_empty() {
        "correct it or remove it".to_owned()
    } else {
        format!("give {}", key.expects)
    };
    ConfigError::Invalid { source_name: Box::new(source), value, key: key.name, reason, advice }
}

/// "; did you mean X?" for the nearest of `known`, if one is near.
fn closest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= TYPO_DISTANCE)
        .min()
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        .unwrap_or_default()
}

/// Levenshtein's distance, in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
