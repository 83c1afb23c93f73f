//! Blocks under a cache salt. An engine names the salt with the first block of a sequence only; the blocks after it
//! have it from their parents.

use dynamo_tokens::HashSeed;
use rustc_hash::FxHashMap;

use super::FilterReason;

/// Salted blocks that are kept account of: 32 MiB, and as many blocks of sixteen tokens as sixteen million tokens make.
const MAX_SALTED: usize = 1 << 20;

struct Salted {
    seed: HashSeed,
    /// Times that it is stored.
    count: u32,
}

/// The seeds of salted blocks, by the engine's hash.
#[derive(Default)]
pub(super) struct SaltedBlocks {
    blocks: FxHashMap<u64, Salted>,
}

impl SaltedBlocks {
    /// The seed of blocks that are stored now.
    pub(super) fn store(
        &mut self,
        lora_name: Option<&str>,
        salt: Option<&str>,
        parent: Option<u64>,
        hashes: &[u64],
    ) -> Result<HashSeed, FilterReason> {
        let salt = salt.filter(|salt| !salt.is_empty());
        if salt.is_none() && self.blocks.is_empty() {
            return Ok(HashSeed::new(lora_name, None));
        }
        let inherited = parent.and_then(|parent| self.blocks.get(&parent)).map(|parent| parent.seed);
        let own = salt.map(|salt| HashSeed::new(lora_name, Some(salt)));
        let ambiguous = match (own, inherited) {
            (Some(own), Some(inherited)) => own != inherited,
            _ => false,
        };
        let salted = own.or(inherited);
        let seed = salted.unwrap_or_else(|| HashSeed::new(lora_name, None));
        let reused =
            |hash: &u64| self.blocks.get(hash).is_some_and(|known| known.count > 0 && known.seed != seed);
        if ambiguous || hashes.iter().any(reused) {
            return Err(FilterReason::AmbiguousSalt);
        }
        if salted.is_some() {
            if self.blocks.len() + hashes.len() > MAX_SALTED {
                return Err(FilterReason::TooManySalted);
            }
            for &hash in hashes {
                self.blocks.entry(hash).or_insert(Salted { seed, count: 0 }).count += 1;
            }
        }
        Ok(seed)
    }

    pub(super) fn remove(&mut self, hashes: &[u64]) {
        if self.blocks.is_empty() {
            return;
        }
        for hash in hashes {
            if let Some(known) = self.blocks.get_mut(hash) {
                known.count -= 1;
                if known.count == 0 {
                    self.blocks.remove(hash);
                }
            }
        }
        if self.blocks.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.blocks = FxHashMap::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_goes_from_parent_to_child_until_the_block_is_gone() {
        let mut salted = SaltedBlocks::default();
        let seed = salted.store(None, Some("a"), None, &[1, 2]).unwrap();
        assert_eq!(seed, HashSeed::new(None, Some("a")));
        assert_eq!(salted.store(None, None, Some(2), &[3]), Ok(seed));
        assert_eq!(salted.store(None, Some("b"), Some(3), &[4]), Err(FilterReason::AmbiguousSalt));
        assert_eq!(salted.store(None, Some("b"), None, &[1]), Err(FilterReason::AmbiguousSalt));
        assert_eq!(salted.store(None, None, None, &[3]), Err(FilterReason::AmbiguousSalt));
        assert_eq!(salted.store(None, None, None, &[9]), Ok(HashSeed::PLAIN));
        // Stored twice, it is there until it was removed twice.
        assert_eq!(salted.store(None, None, Some(2), &[3]), Ok(seed));
        salted.remove(&[3, 77]);
        assert_eq!(salted.store(None, None, Some(3), &[5]), Ok(seed));
        salted.remove(&[3, 5]);
        assert_eq!(salted.store(None, None, Some(3), &[5]), Ok(HashSeed::PLAIN));
        salted.remove(&[1, 2]);
        assert!(salted.blocks.is_empty());
    }
}
