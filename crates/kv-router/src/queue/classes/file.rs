//! The file in which an operator describes the classes.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use super::{ClassId, ClassRule, PolicyClass, PolicyClasses};

/// A file of classes that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFileError {
    /// More text than all classes and rules could need.
    #[error("the file is longer than {0} bytes")]
    TooLong(usize),
    /// No YAML, or not of the form that is read; the text says in which line.
    #[error("{0}")]
    Form(String),
    /// A value that makes no sense.
    #[error("{key}: {problem}")]
    Value {
        /// Where it is, as `classes.batch.weight`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn value_error(key: impl Into<String>, problem: impl Into<String>) -> PolicyFileError {
    PolicyFileError::Value { key: key.into(), problem: problem.into() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    quantum: Option<u64>,
    #[serde(default)]
    classes: BTreeMap<String, Option<ClassEntry>>,
    #[serde(default)]
    rules: Vec<RuleEntry>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassEntry {
    weight: Option<u32>,
    policy: Option<String>,
    threshold: Option<f64>,
    request_limit: Option<usize>,
    raw_isl_token_limit: Option<u64>,
    cached_token_limit: Option<u64>,
    max_wait_secs: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    class: String,
    #[serde(default)]
    models: Vec<String>,
    isl_tokens: Option<Bounds<usize>>,
    priority: Option<Bounds<f64>>,
    strict_priority: Option<Bounds<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds<T> {
    min: Option<T>,
    max: Option<T>,
}

impl PolicyClasses {
    /// The longest file in bytes: sixteen times what all classes and rules with a long name each take.
    pub const MAX_FILE: usize = 1 << 20;
    /// The longest name of a class: a label's worth.
    const MAX_NAME: usize = 64;
    /// The longest wait that can be set: no client waits for a day.
    const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

    /// Reads a file of classes and rules (`docs/routing.md` has its form). Unknown keys are errors.
    pub fn from_yaml(text: &str) -> Result<Self, PolicyFileError> {
        if text.len() > Self::MAX_FILE {
            return Err(PolicyFileError::TooLong(Self::MAX_FILE));
        }
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| PolicyFileError::Form(error.without_snippet().to_string()))?;
        let quantum = file.quantum.unwrap_or(Self::DEFAULT_QUANTUM);
        if !(1..=Self::MAX_QUANTUM).contains(&quantum) {
            let problem = format!("give 1 to {} tokens, not {quantum}", Self::MAX_QUANTUM);
            return Err(value_error("quantum", problem));
        }
        let mut entries = file.classes;
        let default = entries.remove(Self::DEFAULT_NAME);
        let entries = std::iter::once((Self::DEFAULT_NAME.to_owned(), default.flatten())).chain(entries);
        let classes: Vec<PolicyClass> =
            entries.map(|(name, entry)| class(&name, entry.unwrap_or_default())).collect::<Result<_, _>>()?;
        if classes.len() > Self::MAX_CLASSES {
            let problem = format!("there are {}, and {} are possible", classes.len(), Self::MAX_CLASSES);
            return Err(value_error("classes", problem));
        }
        if file.rules.len() > Self::MAX_RULES {
            let problem = format!("there are {}, and {} are possible", file.rules.len(), Self::MAX_RULES);
            return Err(value_error("rules", problem));
        }
        let mut read = Self { quantum, classes, rules: Vec::new() };
        read.rules = file
            .rules
            .into_iter()
            .enumerate()
            .map(|(number, entry)| read.rule(&format!("rules[{number}]"), entry))
            .collect::<Result<_, _>>()?;
        Ok(read)
    }

    fn rule(&self, key: &str, entry: RuleEntry) -> Result<ClassRule, PolicyFileError> {
        let class: ClassId = self.find(&entry.class).ok_or_else(|| {
            let problem = format!("there is no class `{}` under classes", entry.class);
            value_error(format!("{key}.class"), problem)
        })?;
        Ok(ClassRule {
            class,
            models: entry.models.into_iter().map(Into::into).collect(),
            isl_tokens: bounds(key, "isl_tokens", entry.isl_tokens, 0..=usize::MAX)?,
            priority: bounds(key, "priority", entry.priority, 0.0..=f64::INFINITY)?,
            strict_priority: bounds(key, "strict_priority", entry.strict_priority, 0..=u32::MAX)?,
        })
    }
}

fn bounds<T: PartialOrd + Copy + std::fmt::Display>(
    key: &str,
    name: &str,
    given: Option<Bounds<T>>,
    all: RangeInclusive<T>,
) -> Result<RangeInclusive<T>, PolicyFileError> {
    let Some(Bounds { min, max }) = given else { return Ok(all) };
    let (least, most) = (min.unwrap_or(*all.start()), max.unwrap_or(*all.end()));
    // Not a number is in no order.
    if least <= most {
        return Ok(least..=most);
    }
    Err(value_error(format!("{key}.{name}"), format!("nothing is from {least} to {most}")))
}

fn class(name: &str, entry: ClassEntry) -> Result<PolicyClass, PolicyFileError> {
    let is_name = |symbol: char| symbol.is_ascii_alphanumeric() || "_-.".contains(symbol);
    if name.is_empty() || name.len() > PolicyClasses::MAX_NAME || !name.chars().all(is_name) {
        let problem = "a name has 1 to 64 letters, digits, `_`, `-` and `.`";
        return Err(value_error(format!("classes.{name:.64}"), problem));
    }
    let key = |field: &str| format!("classes.{name}.{field}");
    let weight = entry.weight.unwrap_or(1);
    if !(1..=PolicyClasses::MAX_WEIGHT).contains(&weight) {
        let problem = format!("give a number from 1 to {}, not {weight}", PolicyClasses::MAX_WEIGHT);
        return Err(value_error(key("weight"), problem));
    }
    let policy = entry.policy.map(|policy| policy.parse()).transpose();
    let policy = policy.map_err(|error: super::super::ParseQueuePolicyError| {
        value_error(key("policy"), error.to_string())
    })?;
    if let Some(threshold) = entry.threshold.filter(|threshold| !threshold.is_finite() || *threshold < 0.0) {
        return Err(value_error(key("threshold"), format!("give a number of 0 or more, not {threshold}")));
    }
    let wait = |seconds: f64| {
        let wait = Duration::try_from_secs_f64(seconds).ok();
        wait.filter(|wait| !wait.is_zero() && *wait <= PolicyClasses::MAX_WAIT).ok_or_else(|| {
            let most = PolicyClasses::MAX_WAIT.as_secs();
            let problem = format!("give seconds, more than 0 and at most {most}, not {seconds}");
            value_error(key("max_wait_secs"), problem)
        })
    };
    Ok(PolicyClass {
        weight,
        policy,
        threshold: entry.threshold,
        request_limit: entry.request_limit,
        raw_isl_token_limit: entry.raw_isl_token_limit,
        cached_token_limit: entry.cached_token_limit,
        max_wait: entry.max_wait_secs.map(wait).transpose()?,
        ..PolicyClass::named(name)
    })
}
