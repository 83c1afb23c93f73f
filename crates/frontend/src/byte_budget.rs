//! How many bytes of request bodies may be held at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A budget shared by all requests in flight. When it is spent, a request is refused; nobody waits.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    held: AtomicU64,
}

/// The budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetSpent;

impl ByteBudget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { shared: Arc::new(Shared { limit, held: AtomicU64::new(0) }) }
    }

    /// A share of nothing yet.
    pub(crate) fn share(&self) -> BytesHeld {
        BytesHeld { shared: self.shared.clone(), bytes: 0 }
    }
}

/// Bytes that a request holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct BytesHeld {
    shared: Arc<Shared>,
    bytes: u64,
}

impl BytesHeld {
    /// Holds `bytes` altogether, if there are as many; never fewer than before.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), BudgetSpent> {
        let more = bytes.saturating_sub(self.bytes);
        let Shared { limit, held } = &*self.shared;
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|sum| sum <= limit)
        })
        .map_err(|_| BudgetSpent)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for BytesHeld {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_held_again() {
        let budget = ByteBudget::new(10);
        let mut first = budget.share();
        first.grow_to(6).unwrap();
        let mut second = budget.share();
        assert_eq!(second.grow_to(5), Err(BudgetSpent));
        second.grow_to(4).unwrap();
        second.grow_to(2).unwrap();
        assert_eq!(second.grow_to(5), Err(BudgetSpent));
        drop(first);
        second.grow_to(10).unwrap();
        drop(second);
        budget.share().grow_to(10).unwrap();
    }
}
