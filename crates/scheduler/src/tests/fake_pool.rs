//! A pool with several groups, a remote store that loads come from, and bad luck.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use dynamo_tokens::{BlockSize, SequenceHash};

use crate::{
    BlockChange, BlockId, BlockPool, BlockTable, FullBlock, LoadState, LoadTicket, PendingLoad, PrefixMatch,
    PrefixQuery, RequestId,
};

/// Small numbers from a seed.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What a position's KV is while nobody may rely on it.
pub(super) const POISON: u64 = 0xdead_dead_dead_dead;

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) window: Option<usize>,
    pub(super) capacity: usize,
    free: Vec<u32>,
    pub(super) refs: Vec<u32>,
    pub(super) cached: BTreeMap<SequenceHash, u32>,
    identity: BTreeMap<u32, SequenceHash>,
    /// Cached and unused, next victim first.
    idle: Vec<u32>,
    /// A transfer writes into them until the tick.
    writing: BTreeMap<u32, u64>,
    /// One value per position: the hash of all tokens up to it.
    pub(super) kv: Vec<u64>,
}

struct Load {
    blocks: Vec<Vec<BlockId>>,
    contents: Vec<FullBlock>,
    arrive: usize,
    done_at: u64,
}

pub(super) struct FakePool {
    size: usize,
    pub(super) groups: Vec<Group>,
    /// Contents that a load can bring, with the hashes of every position.
    pub(super) remote: BTreeMap<SequenceHash, (FullBlock, Vec<u64>)>,
    /// The only request that loads, if there is one.
    pub(super) remote_for: Option<RequestId>,
    loads: BTreeMap<u64, Load>,
    tickets: u64,
    pub(super) tick: u64,
    pub(super) dice: Dice,
    /// Chances in percent.
    pub(super) lose: u64,
    pub(super) fail: u64,
    changes: Vec<BlockChange>,
}

impl FakePool {
    pub(super) fn new(size: usize, capacity: usize, windows: &[Option<usize>], seed: u64) -> Self {
        let group = |&window: &Option<usize>| Group {
            window,
            capacity,
            free: (0..capacity as u32).rev().collect(),
            refs: vec![0; capacity],
            kv: vec![POISON; capacity * size],
            ..Group::default()
        };
        Self {
            size,
            groups: windows.iter().map(group).collect(),
            remote: BTreeMap::new(),
            remote_for: None,
            loads: BTreeMap::new(),
            tickets: 0,
            tick: 0,
            dice: Dice::new(seed),
            lose: 0,
            fail: 0,
            changes: Vec::new(),
        }
    }

    /// Time passes: transfers that nobody waits for any more end, after having written garbage to the last.
    pub(super) fn advance(&mut self) {
        self.tick += 1;
        let (tick, size) = (self.tick, self.size);
        for group in &mut self.groups {
            let writing = std::mem::take(&mut group.writing);
            for (id, until) in writing {
                let at = id as usize * size;
                group.kv[at..at + size].fill(POISON);
                if until > tick {
                    group.writing.insert(id, until);
                } else if group.refs[id as usize] == 0 {
                    group.free.push(id);
                }
            }
        }
    }

    /// Panics unless every block is in exactly one place, and all references are gone.
    pub(super) fn assert_empty(&self) {
        assert!(self.loads.is_empty(), "a load was never settled");
        for group in &self.groups {
            assert!(group.refs.iter().all(|&refs| refs == 0), "references are left: {:?}", group.refs);
            assert!(group.writing.is_empty());
            let places: BTreeSet<u32> = group.free.iter().chain(&group.idle).copied().collect();
            assert_eq!(places.len(), group.free.len() + group.idle.len(), "a block is free twice");
            assert_eq!(places.len(), group.capacity, "blocks were lost");
            assert_eq!(group.idle.len(), group.cached.len());
        }
    }

    fn reference(&mut self, group: usize, id: u32) {
        let group = &mut self.groups[group];
        if group.refs[id as usize] == 0 {
            group.idle.retain(|&other| other != id);
        }
        group.refs[id as usize] += 1;
    }

    fn evict(&mut self, group: usize) -> Option<u32> {
        let target = &mut self.groups[group];
        if let Some(id) = target.free.pop() {
            return Some(id);
        }
        if target.idle.is_empty() {
            return None;
        }
        let id = target.idle.remove(0);
        let hash = target.identity.remove(&id).unwrap();
        target.cached.remove(&hash);
        if group == 0 {
            self.changes.push(BlockChange::Removed(hash));
        }
        Some(id)
    }

    fn settle(&mut self, load: Load, arrived: usize) {
        for (group, blocks) in load.blocks.iter().enumerate() {
            for (block, contents) in blocks.iter().zip(&load.contents).take(arrived) {
                let values = self.remote[&contents.sequence_hash].1.clone();
                let at = block.0 as usize * self.size;
                let target = &mut self.groups[group];
                target.kv[at..at + self.size].copy_from_slice(&values);
                if let Entry::Vacant(entry) = target.cached.entry(contents.sequence_hash) {
                    entry.insert(block.0);
                    target.identity.insert(block.0, contents.sequence_hash);
                    if group == 0 {
                        self.changes.push(BlockChange::Stored(*contents));
                    }
                }
            }
        }
    }
}

impl BlockPool for FakePool {
    fn block_size(&self) -> BlockSize {
        BlockSize::new(self.size as u32).unwrap()
    }

    fn groups(&self) -> usize {
        self.groups.len()
    }

    fn window(&self, group: usize) -> Option<usize> {
        self.groups[group].window
    }

    fn capacity(&self, group: usize) -> usize {
        self.groups[group].capacity
    }

    fn available(&self, group: usize) -> usize {
        self.groups[group].free.len() + self.groups[group].idle.len()
    }

    fn match_prefix(&mut self, query: PrefixQuery<'_>, tables: &mut [BlockTable]) -> PrefixMatch {
        // A group with a window needs only the last blocks, but having all of them is a hit as well.
        let known = |hash: &&SequenceHash| self.groups.iter().all(|group| group.cached.contains_key(hash));
        let ready = query.hashes.iter().take_while(known).count();
        for (group, table) in tables.iter_mut().enumerate() {
            for hash in &query.hashes[..ready] {
                let id = self.groups[group].cached[hash];
                self.reference(group, id);
                table.blocks_mut().push(BlockId(id));
            }
        }
        assert_eq!(query.local_hashes.len(), query.hashes.len());
        assert_eq!(query.tokens.len(), query.hashes.len() * self.size);
        let rest = &query.hashes[ready..];
        for (hash, local_hash) in rest.iter().zip(&query.local_hashes[ready..]) {
            assert!(self.remote.get(hash).is_none_or(|(block, _)| block.local_hash == *local_hash));
        }
        let remote = rest.iter().take_while(|hash| self.remote.contains_key(hash)).count();
        let room = (0..self.groups.len()).map(|group| self.available(group)).min().unwrap();
        let count = remote.min(room);
        let others = self.remote_for.is_some_and(|only| only != query.request);
        if !query.may_load || count == 0 || others {
            return PrefixMatch { ready, pending: None };
        }
        let mut blocks = Vec::new();
        for (group, table) in tables.iter_mut().enumerate() {
            let mut ids = Vec::new();
            for _ in 0..count {
                let id = self.evict(group).unwrap();
                self.reference(group, id);
                let at = id as usize * self.size;
                self.groups[group].kv[at..at + self.size].fill(POISON);
                ids.push(BlockId(id));
            }
            table.blocks_mut().extend(&ids);
            blocks.push(ids);
        }
        let arrive =
            if self.dice.percent(self.lose) { self.dice.below(count as u64) as usize } else { count };
        let done_at = self.tick + if self.dice.percent(self.lose) { 1_000_000 } else { self.dice.below(8) };
        self.tickets += 1;
        let contents = rest[..count].iter().map(|hash| self.remote[hash].0).collect();
        self.loads.insert(self.tickets, Load { blocks, contents, arrive, done_at });
        PrefixMatch { ready, pending: Some(PendingLoad { ticket: LoadTicket(self.tickets), blocks: count }) }
    }

    fn poll_load(&mut self, ticket: LoadTicket) -> LoadState {
        if self.loads[&ticket.0].done_at > self.tick {
            return LoadState::Pending;
        }
        let load = self.loads.remove(&ticket.0).unwrap();
        let arrived = load.arrive;
        self.settle(load, arrived);
        LoadState::Done { arrived }
    }

    fn cancel_load(&mut self, ticket: LoadTicket) -> usize {
        let load = self.loads.remove(&ticket.0).unwrap();
        let arrived = load.arrive / 2;
        let until = self.tick + 3;
        for (group, blocks) in load.blocks.iter().enumerate() {
            for block in &blocks[arrived..] {
                self.groups[group].writing.insert(block.0, until);
            }
        }
        self.settle(load, arrived);
        arrived
    }

    fn allocate(&mut self, group: usize, count: usize, out: &mut Vec<BlockId>) -> bool {
        if self.available(group) < count || self.dice.percent(self.fail) {
            return false;
        }
        for _ in 0..count {
            let id = self.evict(group).unwrap();
            self.reference(group, id);
            let at = id as usize * self.size;
            self.groups[group].kv[at..at + self.size].fill(POISON);
            out.push(BlockId(id));
        }
        true
    }

    fn register(&mut self, group: usize, block: BlockId, contents: FullBlock) -> BlockId {
        assert!(self.groups[group].refs[block.0 as usize] > 0, "registered without a reference");
        if let Some(&id) = self.groups[group].cached.get(&contents.sequence_hash) {
            if id != block.0 {
                self.reference(group, id);
            }
            return BlockId(id);
        }
        let target = &mut self.groups[group];
        target.cached.insert(contents.sequence_hash, block.0);
        target.identity.insert(block.0, contents.sequence_hash);
        if group == 0 {
            self.changes.push(BlockChange::Stored(contents));
        }
        block
    }

    fn release(&mut self, group: usize, blocks: &[BlockId]) {
        let group = &mut self.groups[group];
        for block in blocks.iter().rev() {
            let refs = &mut group.refs[block.0 as usize];
            *refs = refs.checked_sub(1).expect("released more often than referenced");
            if *refs > 0 {
            } else if group.identity.contains_key(&block.0) {
                group.idle.push(block.0);
            } else if !group.writing.contains_key(&block.0) {
                group.free.push(block.0);
            }
        }
    }

    fn take_changes(&mut self, out: &mut Vec<BlockChange>) {
        out.append(&mut self.changes);
    }
}
