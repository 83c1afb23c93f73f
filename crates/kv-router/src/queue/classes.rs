//! Classes of requests: each has its share of the queue, and may have a policy, a threshold and limits of its own.

mod file;

use std::{ops::RangeInclusive, time::Duration};

pub use file::PolicyFileError;

use super::QueuePolicy;

/// Names a class of a [`super::QueueConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(u8);

impl ClassId {
    /// The class of requests that are of no other. There always is one.
    pub const DEFAULT: Self = Self(0);

    /// There are no more than [`PolicyClasses::MAX_CLASSES`], so that the number fits.
    pub(super) fn new(index: usize) -> Self {
        debug_assert!(index < PolicyClasses::MAX_CLASSES);
        Self(index as u8)
    }

    /// Its place among the classes, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is set for one class; what is absent is as for the whole queue.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyClass {
    /// As requests, rules and metrics name it.
    pub name: Box<str>,
    /// Its share of the tokens that leave the queue, beside those of the other classes that have somebody waiting.
    pub weight: u32,
    /// Who of the class is next.
    pub policy: Option<QueuePolicy>,
    /// See [`super::QueueConfig::threshold`].
    pub threshold: Option<f64>,
    /// Requests that wait at most.
    pub request_limit: Option<usize>,
    /// Prompt tokens of requests that wait, at most.
    pub raw_isl_token_limit: Option<u64>,
    /// Of those, tokens that some worker has cached, at most.
    pub cached_token_limit: Option<u64>,
    /// Nobody waits longer.
    pub max_wait: Option<Duration>,
}

impl PolicyClass {
    /// A class for which nothing is set.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            weight: 1,
            policy: None,
            threshold: None,
            request_limit: None,
            raw_isl_token_limit: None,
            cached_token_limit: None,
            max_wait: None,
        }
    }
}

/// Which requests that name no class are of one: those that fit all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassRule {
    /// Theirs.
    pub class: ClassId,
    /// Names of models; none: any.
    pub models: Vec<Box<str>>,
    /// Tokens of the prompt.
    pub isl_tokens: RangeInclusive<usize>,
    /// See [`super::Waiting::priority_jump`].
    pub priority: RangeInclusive<f64>,
    /// See [`super::Waiting::strict_priority`].
    pub strict_priority: RangeInclusive<u32>,
}

impl ClassRule {
    fn fits(&self, request: &ClassQuery<'_>) -> bool {
        self.isl_tokens.contains(&request.isl_tokens)
            && self.priority.contains(&request.priority_jump)
            && self.strict_priority.contains(&request.strict_priority)
            && (self.models.is_empty() || self.models.iter().any(|model| **model == *request.model))
    }
}

/// What decides of which class a request is.
#[derive(Clone, Copy, Debug)]
pub struct ClassQuery<'a> {
    /// The class that the request names.
    pub class: Option<&'a str>,
    /// The model's name.
    pub model: &'a str,
    /// Tokens of the prompt.
    pub isl_tokens: usize,
    /// See [`super::Waiting::priority_jump`].
    pub priority_jump: f64,
    /// See [`super::Waiting::strict_priority`].
    pub strict_priority: u32,
}

/// A request names a class that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such policy class: use one of the router's policy config")]
pub struct UnknownClass;

/// The classes of a queue, and the rules by which requests are of one.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyClasses {
    /// Tokens that a weight of 1 is worth in each turn.
    quantum: u64,
    /// The default one first.
    classes: Vec<PolicyClass>,
    rules: Vec<ClassRule>,
}

impl PolicyClasses {
    /// The class of requests that are of no other.
    pub const DEFAULT_NAME: &str = "default";
    /// Classes at most: each has metrics of its own in each model, and a turn looks at all of them.
    pub const MAX_CLASSES: usize = 64;
    /// Rules at most: each request is held against them in turn.
    pub const MAX_RULES: usize = 256;
    /// Weights at most. With the largest quantum a turn is still far from what a counter holds.
    pub const MAX_WEIGHT: u32 = 1000;
    /// Tokens of a turn at a weight of 1: short prompts take turns two or three at a time, and long ones save up.
    pub const DEFAULT_QUANTUM: u64 = 1024;
    /// The largest of those: beyond the longest prompts a larger one only makes turns longer.
    pub const MAX_QUANTUM: u64 = 1 << 20;

    /// How many there are, the default one among them.
    #[allow(clippy::len_without_is_empty, reason = "the default class is always there")]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Of which class a request is: the one that it names, or that of the first rule that it fits, or the default one.
    ///
    /// # Errors
    /// If it names one that there is not: it is of the default class then.
    pub fn class_of(&self, request: &ClassQuery<'_>) -> Result<ClassId, UnknownClass> {
        if let Some(name) = request.class {
            return self.find(name).ok_or(UnknownClass);
        }
        let rule = self.rules.iter().find(|rule| rule.fits(request));
        Ok(rule.map_or(ClassId::DEFAULT, |rule| rule.class))
    }

    fn find(&self, name: &str) -> Option<ClassId> {
        self.classes.iter().position(|class| *class.name == *name).map(ClassId::new)
    }

    /// What is set for a class. An id of another configuration counts as the default class.
    pub(super) fn get(&self, class: ClassId) -> &PolicyClass {
        self.classes.get(class.index()).unwrap_or(&self.classes[0])
    }

    pub(super) fn quantum_of(&self, class: ClassId) -> u64 {
        u64::from(self.get(class).weight) * self.quantum
    }
}

#[cfg(test)]
mod tests;
