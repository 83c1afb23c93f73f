//! Whom one request may still be sent to.

use dynamo_runtime::request_plane::StreamError;

use crate::GenerateError;

/// The request plane's application code of a request for an adapter that the worker does not have. The worker is well, so
/// it is no unavailable one.
pub const UNKNOWN_ADAPTER: u16 = 404;

/// Whether another worker may serve a request that one refused so before it accepted it.
pub(crate) fn is_for_another(error: &StreamError) -> bool {
    error.is_retriable() || matches!(error, StreamError::Application { code: UNKNOWN_ADAPTER, .. })
}

/// Workers that a request leaves out: those that refused it for good, and at first also those that are better avoided.
pub(crate) struct Candidates {
    /// Those that refused, then those that are avoided.
    excluded: Vec<u64>,
    refused: usize,
    last_was_overloaded: bool,
}

impl Candidates {
    /// Leaves these out while there are others.
    pub(crate) fn avoiding(workers: Vec<u64>) -> Self {
        Self { excluded: workers, refused: 0, last_was_overloaded: false }
    }

    /// Who is not to be chosen now.
    pub(crate) fn excluded(&self) -> &[u64] {
        &self.excluded
    }

    /// A worker refused: it is not asked again.
    pub(crate) fn refused_by(&mut self, worker_id: u64, overloaded: bool) {
        self.excluded.insert(self.refused, worker_id);
        self.refused += 1;
        self.last_was_overloaded = overloaded;
    }

    /// Nobody else is left: from now on only those that refused are left out. `false` if that is no change.
    pub(crate) fn avoid_nobody(&mut self) -> bool {
        let avoided = self.excluded.len() > self.refused;
        self.excluded.truncate(self.refused);
        avoided
    }

    /// What the client is told when really nobody is left.
    pub(crate) fn exhausted(&self) -> GenerateError {
        if self.last_was_overloaded { GenerateError::Overloaded } else { GenerateError::NoWorkers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avoided_workers_are_asked_when_the_others_refused_and_those_never_again() {
        let mut candidates = Candidates::avoiding(vec![7, 8]);
        candidates.refused_by(9, false);
        assert_eq!(candidates.excluded(), [9, 7, 8]);
        assert!(candidates.avoid_nobody());
        assert_eq!(candidates.excluded(), [9]);
        candidates.refused_by(7, true);
        assert_eq!(candidates.excluded(), [9, 7]);
        assert!(!candidates.avoid_nobody());
    }

    #[test]
    fn the_last_refusal_says_why_there_is_no_answer() {
        let mut candidates = Candidates::avoiding(Vec::new());
        assert!(matches!(candidates.exhausted(), GenerateError::NoWorkers));
        candidates.refused_by(7, true);
        assert!(matches!(candidates.exhausted(), GenerateError::Overloaded));
        candidates.refused_by(8, false);
        assert!(matches!(candidates.exhausted(), GenerateError::NoWorkers));
    }
}
