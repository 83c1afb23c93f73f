//! The allocator: jemalloc, which gives memory back to the system, with a count of allocations.
//!
//! The count is what proves that the stream path does not allocate per token: `/metrics` shows it as
//! `dynamo_process_allocations_total`. It is kept in a few padded counters, so that threads do not share a cache line.
//! A binary installs it with `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;`

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tikv_jemallocator::Jemalloc;

/// Read by jemalloc when it starts. A thread of its own gives back what has lain idle for a second, whether or not anybody
/// allocates; a few arenas are enough for as many threads as there are cores, and waste less.
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: &[u8; 80] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4,thp:never\0";

/// Counters; threads are dealt out to them in turn.
const LANES: usize = 16;

#[repr(align(128))]
struct Lane(AtomicU64);

static COUNTS: [Lane; LANES] = [const { Lane(AtomicU64::new(0)) }; LANES];
static NEXT_LANE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    // A const-initialised Cell without a destructor: it may be touched at any time in a thread's life.
    static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn count() {
    let lane = LANE.try_with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT_LANE.fetch_add(1, Ordering::Relaxed) % LANES);
        }
        lane.get()
    });
    COUNTS[lane.unwrap_or(0)].0.fetch_add(1, Ordering::Relaxed);
}

/// Allocations since the process started, growing reallocations included.
pub fn allocations() -> u64 {
    COUNTS.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum()
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

// SAFETY: every call is passed on to jemalloc unchanged; counting touches no memory that it manages.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { Jemalloc.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { Jemalloc.realloc(pointer, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn allocations_are_counted() {
        let before = allocations();
        let boxes: Vec<Box<u64>> = (0..100).map(Box::new).collect();
        assert!(allocations() - before >= 100);
        assert_eq!(boxes.iter().map(|number| **number).sum::<u64>(), 4950);
    }
}
