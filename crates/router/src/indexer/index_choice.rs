//! What the indexes of the service are made of.

use std::{num::NonZeroUsize, time::Duration};

use dynamo_kv_router::FrequencyWindow;

/// The kind of each model's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexChoice {
    /// The plain radix tree under a lock, as in the ecosystem's indexer with one thread.
    Radix {
        /// How long a query counts as a use of the blocks that it finds; without it none is counted.
        frequency_window: Option<FrequencyWindow>,
    },
    /// The index that is best with one writer and many readers.
    Run {
        /// On which events reach it.
        lanes: NonZeroUsize,
    },
}

/// Why there is no such index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexChoiceError {
    /// Events need a lane.
    #[error("--threads: give 1 or more")]
    NoThreads,
    /// Other indexes than the radix tree count no uses.
    #[error("--frequency-window-secs: only the plain radix tree counts uses; add --threads 1")]
    UsesWithoutTree,
    /// A window that is too short to be cut into parts.
    #[error("--frequency-window-secs: give {} or more", FrequencyWindow::SHORTEST.as_secs())]
    ShortWindow,
}

impl IndexChoice {
    /// The plain radix tree for one thread, which counts uses if there is a window; and the other index for more.
    pub fn new(threads: usize, frequency_window: Option<Duration>) -> Result<Self, IndexChoiceError> {
        let lanes = NonZeroUsize::new(threads).ok_or(IndexChoiceError::NoThreads)?;
        let frequency_window = frequency_window
            .map(|window| FrequencyWindow::new(window).ok_or(IndexChoiceError::ShortWindow))
            .transpose()?;
        match (lanes, frequency_window) {
            (NonZeroUsize::MIN, frequency_window) => Ok(Self::Radix { frequency_window }),
            (_, Some(_)) => Err(IndexChoiceError::UsesWithoutTree),
            (lanes, None) => Ok(Self::Run { lanes }),
        }
    }

    /// Lanes on which events reach an index.
    pub(super) fn lanes(self) -> NonZeroUsize {
        match self {
            Self::Radix { .. } => NonZeroUsize::MIN,
            Self::Run { lanes } => lanes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_counted_by_one_thread_alone() {
        let window = Duration::from_secs(60);
        let frequency_window = FrequencyWindow::new(window);
        assert_eq!(IndexChoice::new(1, Some(window)), Ok(IndexChoice::Radix { frequency_window }));
        assert_eq!(IndexChoice::new(1, None), Ok(IndexChoice::Radix { frequency_window: None }));
        assert_eq!(IndexChoice::new(4, None).map(IndexChoice::lanes), Ok(NonZeroUsize::new(4).unwrap()));
        assert_eq!(IndexChoice::new(4, Some(window)), Err(IndexChoiceError::UsesWithoutTree));
        assert_eq!(IndexChoice::new(0, None), Err(IndexChoiceError::NoThreads));
        assert_eq!(IndexChoice::new(1, Some(Duration::ZERO)), Err(IndexChoiceError::ShortWindow));
        let error = IndexChoice::new(1, Some(Duration::ZERO)).unwrap_err();
        assert_eq!(error.to_string(), "--frequency-window-secs: give 1 or more");
    }
}
