//! What an engine has loaded.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use dynamo_tokens::{HashSeed, LocalBlockHash, TokenId};
use parking_lot::RwLock;

use super::MAX_ADAPTERS;

/// The adapters that one engine has loaded, for all that look at its requests and events.
#[derive(Default)]
pub struct LoadedAdapters {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    loaded: BTreeSet<Arc<str>>,
    /// Unloaded ones, the last first: requests that still run store blocks under their names.
    unloaded: VecDeque<Arc<str>>,
}

impl LoadedAdapters {
    /// Whether requests for it are served.
    pub fn contains(&self, name: &str) -> bool {
        self.state.read().loaded.contains(name)
    }

    pub(crate) fn load(&self, name: &str) {
        let mut state = self.state.write();
        state.unloaded.retain(|known| **known != *name);
        state.loaded.insert(name.into());
    }

    pub(crate) fn unload(&self, name: &str) {
        let mut state = self.state.write();
        if let Some(name) = state.loaded.take(name) {
            state.unloaded.push_front(name);
            state.unloaded.truncate(MAX_ADAPTERS);
        }
    }

    /// The adapter under which a block with these tokens has this hash; none where the base model's is it, or nobody's.
    pub(crate) fn name_of(&self, tokens: &[TokenId], hash: LocalBlockHash) -> Option<Arc<str>> {
        let state = self.state.read();
        if state.loaded.is_empty() && state.unloaded.is_empty()
            || LocalBlockHash::of(tokens, HashSeed::PLAIN) == hash
        {
            return None;
        }
        let is_under = |name: &&Arc<str>| LocalBlockHash::of(tokens, HashSeed::new(Some(name), None)) == hash;
        state.loaded.iter().chain(&state.unloaded).find(is_under).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_under_which_adapter_it_was_stored_also_after_that_is_unloaded() {
        let adapters = LoadedAdapters::default();
        let tokens = [1, 2, 3, 4];
        let under = |name| LocalBlockHash::of(&tokens, HashSeed::new(name, None));
        let named = |name| adapters.name_of(&tokens, under(name)).as_deref().map(str::to_owned);
        assert_eq!(named(Some("a")), None);
        adapters.load("a");
        adapters.load("b");
        assert_eq!(
            (named(None), named(Some("a")).as_deref(), named(Some("b")).as_deref()),
            (None, Some("a"), Some("b"))
        );
        adapters.unload("a");
        assert!(!adapters.contains("a") && adapters.contains("b"));
        assert_eq!((named(Some("a")).as_deref(), named(Some("c"))), (Some("a"), None));
        for number in 0..MAX_ADAPTERS {
            adapters.load(&number.to_string());
            adapters.unload(&number.to_string());
        }
        assert_eq!(named(Some("a")), None, "what is remembered is bounded");
        adapters.load("0");
        adapters.unload("0");
        assert_eq!(adapters.state.read().unloaded.len(), MAX_ADAPTERS);
    }
}
