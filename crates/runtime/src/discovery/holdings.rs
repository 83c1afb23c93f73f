//! Which registrations this client holds, so that a late removal does not take a later registration with it.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::DiscoveryError;
use crate::discovery::RecordKey;

/// Tells one registration of a key from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim(u64);

#[derive(Default)]
pub(super) struct Holdings {
    state: Mutex<State>,
}

/// Bounded by the table: a key is held only while it is registered or on its way out.
#[derive(Default)]
struct State {
    held: HashMap<RecordKey, Held>,
    next: u64,
}

struct Held {
    claim: Claim,
    leaving: bool,
}

impl Holdings {
    /// Takes `key`, also from a registration that is on its way out.
    pub(super) fn claim(&self, key: &RecordKey) -> Result<Claim, DiscoveryError> {
        let mut state = self.state.lock();
        if state.held.get(key).is_some_and(|held| !held.leaving) {
            return Err(DiscoveryError::AlreadyRegistered { key: key.path() });
        }
        state.next += 1;
        let claim = Claim(state.next);
        state.held.insert(key.clone(), Held { claim, leaving: false });
        Ok(claim)
    }

    /// Lets the key be claimed anew while its record is still being removed.
    pub(super) fn start_leaving(&self, key: &RecordKey, claim: Claim) {
        if let Some(held) = self.state.lock().held.get_mut(key)
            && held.claim == claim
        {
            held.leaving = true;
        }
    }

    pub(super) fn is_current(&self, key: &RecordKey, claim: Claim) -> bool {
        self.state.lock().held.get(key).is_some_and(|held| held.claim == claim)
    }

    /// Gives the key up; false when another registration has it by now.
    pub(super) fn give_up(&self, key: &RecordKey, claim: Claim) -> bool {
        let mut state = self.state.lock();
        let current = state.held.get(key).is_some_and(|held| held.claim == claim);
        if current {
            state.held.remove(key);
        }
        current
    }

    /// Gives up every key, calling `each` with it.
    pub(super) fn drain(&self, mut each: impl FnMut(&RecordKey)) {
        let held = std::mem::take(&mut self.state.lock().held);
        held.keys().for_each(&mut each);
    }
}
