//! How a handler learns that nobody waits for its answer.

use std::sync::atomic::{AtomicBool, Ordering};

use dynamo_wire::CancelReason;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

type Callback = Box<dyn FnOnce(CancelReason) + Send>;

#[derive(Default)]
enum Hook {
    #[default]
    Unset,
    Set(Callback),
    Fired(CancelReason),
}

/// The serving end's side of a stream that outlives the connection's knowledge of it.
#[derive(Default)]
pub(super) struct Serving {
    cancelled: AtomicBool,
    hook: Mutex<Hook>,
    /// Wakes who waits for room to send.
    pub(super) room: AtomicWaker,
}

impl Serving {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Sets what is called at the cancel; at once if that has been.
    pub(super) fn on_cancel(&self, callback: Callback) {
        let mut hook = self.hook.lock();
        match *hook {
            Hook::Fired(reason) => {
                drop(hook);
                callback(reason);
            }
            _ => *hook = Hook::Set(callback),
        }
    }

    /// Says that the stream is cancelled. Only the first time counts. Called without locks: the callback is a
    /// stranger's.
    pub(super) fn fire(&self, reason: CancelReason) {
        self.mark();
        let before = {
            let mut hook = self.hook.lock();
            if matches!(*hook, Hook::Fired(_)) {
                return;
            }
            std::mem::replace(&mut *hook, Hook::Fired(reason))
        };
        if let Hook::Set(callback) = before {
            callback(reason);
        }
    }

    /// What [`Serving::is_cancelled`] and a waiting sender see; the callback is yet to come.
    pub(super) fn mark(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.room.wake();
    }

    /// The answer is complete: nothing is called any more.
    pub(super) fn disarm(&self) {
        let before = std::mem::take(&mut *self.hook.lock());
        drop(before);
    }
}
