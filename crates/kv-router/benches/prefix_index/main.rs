//! Indexes on a trace: one JSON row an index and phase.
//!
//! ```text
//! cargo bench -p dynamo-kv-router --bench prefix_index -- TRACE [BLOCK_TOKENS [WORKERS [BLOCKS [INDEX,... [PHASE,...]]]]]
//! cargo bench -p dynamo-kv-router --bench prefix_index -- --wide [WORKERS [BLOCKS [INDEX,...]]]
//! ```
//!
//! Indexes: `run`, `radix`, `concurrent`, `positional`. Default: blocks of 64 tokens, 32 workers with 50,000 blocks each, all indexes
//! and phases (`read`, `mixed`, `one-block`, `cycles`; writing is always one). Writes go
//! through a router's queue to one lane, and count until it is drained; `direct` ones are plain calls. Rates count
//! stored and removed blocks, and the blocks of all queries. Bytes are those that are allocated, and `page_bytes` those
//! of resident pages, for each (block, worker) pair held.

mod memory;
mod phases;
mod queued;
mod wide;
mod workload;

use dynamo_kv_router::{
    ConcurrentRadixTree, IndexerKind, PositionalIndexer, PrefixIndex, RadixTree, RunIndex, SharedIndex,
};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// An index under test.
trait Subject: PrefixIndex + Sized {
    /// As it is chosen for a router.
    const KIND: IndexerKind;
    fn make() -> Self;
    /// A reader for another thread, if it needs no lock.
    fn reader(&self) -> Option<Box<dyn SharedIndex>> {
        None
    }
}

impl Subject for RunIndex {
    const KIND: IndexerKind = IndexerKind::Run;
    fn make() -> Self {
        Self::new()
    }
    fn reader(&self) -> Option<Box<dyn SharedIndex>> {
        Some(Box::new(Self::reader(self)))
    }
}

impl Subject for RadixTree {
    const KIND: IndexerKind = IndexerKind::Radix;
    fn make() -> Self {
        Self::new()
    }
}

impl Subject for ConcurrentRadixTree {
    const KIND: IndexerKind = IndexerKind::ConcurrentRadix;
    fn make() -> Self {
        Self::new()
    }
    fn reader(&self) -> Option<Box<dyn SharedIndex>> {
        Some(Box::new(self.clone()))
    }
}

impl Subject for PositionalIndexer {
    const KIND: IndexerKind = IndexerKind::Positional;
    fn make() -> Self {
        Self::default()
    }
    fn reader(&self) -> Option<Box<dyn SharedIndex>> {
        Some(Box::new(self.clone()))
    }
}

fn main() {
    let mut arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is_wide = arguments.first().is_some_and(|first| first == "--wide");
    if is_wide {
        arguments.remove(0);
    }
    let trace = if is_wide { None } else { Some(arguments.first().cloned()) };
    if trace == Some(None) {
        println!(
            "no trace given: `-- TRACE [BLOCK_TOKENS [WORKERS [BLOCKS [INDEX,... [PHASE,...]]]]]`, or `-- --wide`"
        );
        return;
    }
    let number = |at: usize, default: u64| -> u64 {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{text} is not a number")))
    };
    if let Some(Some(path)) = trace {
        let (block_tokens, workers, capacity) = (number(1, 64), number(2, 32), number(3, 50_000));
        let wanted = arguments.get(4).map_or("", String::as_str);
        let phases = arguments.get(5).map_or("", String::as_str);
        let load = workload::load(&path, block_tokens, workers as u32, capacity as usize);
        eprintln!(
            "{} events, {} queries, {} pairs held",
            load.events.len(),
            load.queries.len(),
            load.held_pairs()
        );
        let is_wanted = |name| wanted.is_empty() || wanted.split(',').any(|other| other == name);
        if is_wanted("run") {
            phases::all::<RunIndex>("run", &load, phases);
        }
        if is_wanted("radix") {
            phases::all::<RadixTree>("radix", &load, phases);
        }
        if is_wanted("concurrent") {
            phases::all::<ConcurrentRadixTree>("concurrent", &load, phases);
        }
        if is_wanted("positional") {
            phases::all::<PositionalIndexer>("positional", &load, phases);
        }
    } else {
        let (workers, capacity) = (number(0, 1000), number(1, 100_000));
        match arguments.get(2).map_or("run", String::as_str) {
            "run" => wide::run::<RunIndex>("run", workers as u32, capacity),
            "radix" => wide::run::<RadixTree>("radix", workers as u32, capacity),
            other => panic!("no index is called {other}"),
        }
    }
}
