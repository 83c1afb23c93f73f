//! The atomics that the writer shares with its readers: the standard library's, or loom's, which tries out in which order
//! they may be seen.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicUsize};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize};

#[cfg(loom)]
pub(super) use self::used::AtomicU64;

#[cfg(loom)]
mod used {
    #![allow(unsafe_code, reason = "what is read as a plain word must be one that loom watches")]

    use std::sync::{OnceLock, atomic::Ordering};

    /// One of loom's from its first use on: a chunk has hundreds of words, of which a test uses a few, and each costs loom
    /// time in every execution.
    ///
    /// The first use has to come before the others, as if it wrote: the writer writes every word before it shows it. Loom
    /// reports a reader that comes first.
    #[derive(Default)]
    pub(in super::super) struct AtomicU64(OnceLock<loom::sync::atomic::AtomicU64>);

    impl AtomicU64 {
        pub(in super::super) fn new(value: u64) -> Self {
            Self(OnceLock::from(loom::sync::atomic::AtomicU64::new(value)))
        }

        fn used(&self) -> &loom::sync::atomic::AtomicU64 {
            self.0.get_or_init(|| loom::sync::atomic::AtomicU64::new(0))
        }

        pub(in super::super) fn load(&self, order: Ordering) -> u64 {
            self.used().load(order)
        }

        pub(in super::super) fn store(&self, value: u64, order: Ordering) {
            self.used().store(value, order);
        }

        /// As a plain word: loom reports it if a store may be under way.
        pub(in super::super) fn load_plainly(&self) -> u64 {
            // SAFETY: loom reports what would be none.
            unsafe { self.used().unsync_load() }
        }

        /// Ends its use, as giving its memory back does: loom reports it if anybody may look, or looks later.
        pub(in super::super) fn end(&mut self) {
            if let Some(used) = self.0.get_mut() {
                used.with_mut(|_| ());
            }
        }
    }
}
