//! Whether and how requests wait, as an operator says.

use std::{sync::Arc, time::Duration};

use super::{ClassId, ClassQuery, PolicyClass, PolicyClasses, QueuePolicy, UnknownClass};

/// Whether and how requests wait.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueConfig {
    /// A request waits while all ranks that may serve it have more prompt tokens outstanding than this many of their
    /// largest steps, at least 0; absent: nobody waits.
    pub threshold: Option<f64>,
    /// Who is next.
    pub policy: QueuePolicy,
    /// Requests that wait at most, of all classes.
    pub max_requests: usize,
    /// Prompt tokens of requests that wait, at most, of all classes: each takes some bytes.
    pub max_isl_tokens: u64,
    /// Nobody waits longer, whatever deadline it came with.
    pub max_wait: Duration,
    /// Classes of requests, which may have another threshold, policy and wait, and limits of their own; absent: all are
    /// of one.
    pub classes: Option<Arc<PolicyClasses>>,
}

impl QueueConfig {
    /// Nobody waits.
    pub const OFF: Self = Self {
        threshold: None,
        policy: QueuePolicy::Fcfs,
        // Ten seconds of the rate that one frontend serves; what waits longer than that, waits for nothing.
        max_requests: 10_000,
        // A quarter of a gigabyte of token ids.
        max_isl_tokens: 64 << 20,
        max_wait: Duration::from_secs(60),
        classes: None,
    };
    /// The largest step of a worker that does not say, in tokens: so many that nobody waits for it.
    pub const UNKNOWN_STEP: u64 = 10_000_000;

    /// Whether requests of any class wait.
    pub fn is_used(&self) -> bool {
        (0..self.class_count()).any(|class| self.threshold_of(ClassId::new(class)).is_some())
    }

    /// How many classes there are: one at least.
    pub fn class_count(&self) -> usize {
        self.classes.as_ref().map_or(1, |classes| classes.len())
    }

    /// The classes and their names, the default one first.
    pub fn class_names(&self) -> impl Iterator<Item = (ClassId, &str)> {
        (0..self.class_count()).map(ClassId::new).map(|class| (class, self.class_name(class)))
    }

    /// A class's name.
    pub fn class_name(&self, class: ClassId) -> &str {
        self.class(class).map_or(PolicyClasses::DEFAULT_NAME, |class| &class.name)
    }

    /// Of which class a request is.
    ///
    /// # Errors
    /// If it names one that there is not: it is of the default class then.
    pub fn class_of(&self, request: &ClassQuery<'_>) -> Result<ClassId, UnknownClass> {
        self.classes.as_ref().map_or(Ok(ClassId::DEFAULT), |classes| classes.class_of(request))
    }

    /// [`Self::threshold`] for requests of a class.
    pub fn threshold_of(&self, class: ClassId) -> Option<f64> {
        self.class(class).and_then(|class| class.threshold).or(self.threshold)
    }

    /// [`Self::policy`] for requests of a class.
    pub fn policy_of(&self, class: ClassId) -> QueuePolicy {
        self.class(class).and_then(|class| class.policy).unwrap_or(self.policy)
    }

    /// [`Self::max_wait`] for requests of a class.
    pub fn max_wait_of(&self, class: ClassId) -> Duration {
        self.class(class).and_then(|class| class.max_wait).unwrap_or(self.max_wait)
    }

    /// What is set for a class; `None` where there are none.
    pub(super) fn class(&self, class: ClassId) -> Option<&PolicyClass> {
        self.classes.as_ref().map(|classes| classes.get(class))
    }

    /// What a class's turn is worth, in tokens.
    pub(super) fn quantum_of(&self, class: ClassId) -> u64 {
        let classes = self.classes.as_ref();
        classes.map_or(PolicyClasses::DEFAULT_QUANTUM, |classes| classes.quantum_of(class))
    }
}
