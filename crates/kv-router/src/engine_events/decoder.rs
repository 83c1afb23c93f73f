//! From an engine's event to this crate's.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_tokens::{BlockSize, LocalBlockHash};
use rustc_hash::FxHashSet;

use super::{
    FilterReason, IntakeCounters,
    extra_keys::ExtraKeys,
    fields::{Fields, Kind, Lists},
    groups::Groups,
    salted::SaltedBlocks,
    tier_names::tier_of,
};
use crate::{
    event_lists::EventLists,
    msgpack::{Reader, WireError},
};

/// Scratch elements kept between batches: those of a long prompt.
const KEPT_SCRATCH: usize = 1 << 18;
/// Up to this many hashes all pairs are compared; above, a set is filled.
const FEW_HASHES: usize = 16;

/// An event of an engine, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEvent {
    /// Where it happened.
    pub tier: StorageTier,
    /// What happened. `Cleared` concerns all tiers.
    pub data: KvCacheEventData,
}

/// Reads the batches of one engine. It remembers what groups of layers and salted blocks there are, so an engine has
/// one, for as long as it lives.
///
/// Once warm it allocates nothing but for the lists of the events it makes, and those neither while events are given
/// back with [`recycle`](Self::recycle).
pub struct EngineEventDecoder {
    block_size: BlockSize,
    groups: Groups,
    salted: SaltedBlocks,
    lists: EventLists,
    pub(super) counters: IntakeCounters,
    // Scratch space, kept for its memory.
    scratch: Lists,
    objects: Vec<u64>,
    seen: FxHashSet<u64>,
}

impl EngineEventDecoder {
    /// For a router whose blocks have `block_size` tokens.
    pub fn new(block_size: BlockSize) -> Self {
        Self {
            block_size,
            groups: Groups::new(),
            salted: SaltedBlocks::default(),
            lists: EventLists::default(),
            counters: IntakeCounters::default(),
            scratch: Lists::default(),
            objects: Vec::new(),
            seen: FxHashSet::default(),
        }
    }

    /// What became of the events so far.
    pub fn counters(&self) -> &IntakeCounters {
        &self.counters
    }

    /// Takes the memory of an event that is done with.
    pub fn recycle(&mut self, data: KvCacheEventData) {
        self.lists.recycle(data);
    }

    /// The engine started anew: its cache is empty.
    pub fn restarted(&mut self) {
        self.salted.clear();
        self.groups = Groups::new();
    }

    pub(super) fn shrink(&mut self) {
        self.scratch.hashes.shrink_to(KEPT_SCRATCH);
        self.scratch.tokens.shrink_to(KEPT_SCRATCH);
        self.seen.shrink_to(KEPT_SCRATCH);
    }

    /// The outer error says that the event could not be read.
    pub(super) fn event(
        &mut self,
        reader: &mut Reader<'_>,
        out: &mut Vec<EngineEvent>,
    ) -> Result<Result<(), FilterReason>, WireError> {
        let fields = Fields::read(reader, &mut self.scratch)?;
        let kind = fields.kind.ok_or(WireError::Missing)?;
        let converted = match kind {
            Kind::Stored | Kind::Removed => match self.tier(&fields) {
                Err(reason) => Err(reason),
                Ok(tier) if kind == Kind::Stored => {
                    self.stored(&fields)?.map(|data| EngineEvent { tier, data })
                }
                Ok(tier) => Ok(EngineEvent { tier, data: self.removed() }),
            },
            Kind::Cleared => {
                self.salted.clear();
                Ok(EngineEvent { tier: StorageTier::Device, data: KvCacheEventData::Cleared })
            }
            Kind::Ignored => Err(FilterReason::Ignored),
            Kind::Unknown => Err(FilterReason::UnknownKind),
        };
        Ok(converted.map(|event| out.push(event)))
    }

    /// What does not depend on the blocks.
    fn tier(&mut self, fields: &Fields<'_>) -> Result<StorageTier, FilterReason> {
        if fields.remote {
            return Err(FilterReason::Remote);
        }
        let tier = tier_of(fields.medium).ok_or(FilterReason::UnknownMedium)?;
        if !self.groups.admit(fields.group, fields.spec_kind) {
            return Err(FilterReason::AttentionGroup);
        }
        if self.scratch.hashes.is_empty() { Err(FilterReason::Empty) } else { Ok(tier) }
    }

    fn removed(&mut self) -> KvCacheEventData {
        self.salted.remove(&self.scratch.hashes);
        let mut block_hashes = self.lists.hashes();
        block_hashes.extend(self.scratch.hashes.iter().map(|&hash| ExternalBlockHash(hash)));
        KvCacheEventData::Removed { block_hashes }
    }

    fn stored(&mut self, fields: &Fields<'_>) -> Result<Result<KvCacheEventData, FilterReason>, WireError> {
        let size = self.block_size.get();
        let engine_size = fields.block_size.ok_or(WireError::Missing)?;
        if engine_size != size as u64 {
            self.counters.other_block_size = Some(engine_size);
            return Ok(Err(FilterReason::BlockSize));
        }
        // Pairs overlap by a token, and so do their blocks.
        let window = size + usize::from(fields.pairs);
        let tokens = &self.scratch.tokens;
        let whole = if tokens.len() < window { 0 } else { (tokens.len() - window) / size + 1 };
        let count = whole.min(self.scratch.hashes.len());
        if count == 0 {
            return Ok(Err(FilterReason::TooFewTokens));
        }
        if !is_unique(&self.scratch.hashes, fields.parent, &mut self.seen) {
            self.counters.not_unique += 1;
            return Ok(Ok(KvCacheEventData::Removed { block_hashes: self.lists.hashes() }));
        }
        let mut extra_keys = match fields.extra_keys {
            Some(reader) => ExtraKeys::read(reader)?,
            None => ExtraKeys::none(),
        };
        let marked = extra_keys.next_block(&mut self.objects)?;
        let hashes = &self.scratch.hashes[..count];
        let salt = fields.cache_salt.or(marked);
        let seed = match self.salted.store(fields.lora_name, salt, fields.parent, hashes) {
            Ok(seed) => seed,
            Err(reason) => return Ok(Err(reason)),
        };
        self.counters.cut_short += u64::from(count < self.scratch.hashes.len());
        let mut blocks = self.lists.blocks();
        blocks.reserve(count);
        for (number, &hash) in hashes.iter().enumerate() {
            if number > 0 {
                extra_keys.next_block(&mut self.objects)?;
            }
            let own = &self.scratch.tokens[number * size..number * size + window];
            let tokens_hash = if self.objects.is_empty() {
                LocalBlockHash::of(own, seed)
            } else {
                LocalBlockHash::with_objects(own, &self.objects, seed)
            };
            blocks.push(StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash });
        }
        Ok(Ok(KvCacheEventData::Stored { parent_hash: fields.parent.map(ExternalBlockHash), blocks }))
    }
}

/// Whether no hash comes twice, the parent's included.
fn is_unique(hashes: &[u64], parent: Option<u64>, seen: &mut FxHashSet<u64>) -> bool {
    if hashes.len() <= FEW_HASHES {
        let twice = |number: usize| hashes[..number].contains(&hashes[number]);
        return !parent.is_some_and(|parent| hashes.contains(&parent)) && !(1..hashes.len()).any(twice);
    }
    seen.clear();
    parent.into_iter().chain(hashes.iter().copied()).all(|hash| seen.insert(hash))
}
