//! How much of the oldest outstanding prompt of each rank is computed by now, as the rank's speed lets expect.

use std::time::Instant;

use super::prefill_speed::PrefillSpeed;

/// Until its first token comes at least this share of a prompt is outstanding, whatever was expected.
const REMAINDER: u64 = 16;

const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
    tokens: u64,
}

impl Link {
    const FREE: Self = Self { older: NOBODY, newer: NOBODY, tokens: 0 };
}

/// Where something is outstanding.
struct Line {
    oldest: u32,
    newest: u32,
    /// Of the oldest.
    tokens: u64,
    /// When it became the oldest.
    since: Instant,
    /// Of younger ones that were complete since then.
    overtaken: u64,
}

#[derive(Default)]
struct Rank {
    line: Option<Line>,
    speed: PrefillSpeed,
    /// Zero before there is an estimate.
    tokens_per_second: f64,
}

/// Outstanding prompts in the order in which they were sent, and how fast ranks compute them. Requests and ranks are named
/// by their places in the tracker.
#[derive(Default)]
pub(super) struct Prefills {
    /// By request; those that are not outstanding have no tokens.
    links: Vec<Link>,
    /// By slot index.
    ranks: Vec<Rank>,
}

impl Prefills {
    /// A prompt was sent to a rank, with so many tokens to compute.
    pub(super) fn begin(&mut self, slot: usize, request: usize, tokens: u64, now: Instant) {
        if tokens == 0 {
            return;
        }
        if slot >= self.ranks.len() {
            self.ranks.resize_with(slot + 1, Rank::default);
        }
        if request >= self.links.len() {
            self.links.resize(request + 1, Link::FREE);
        }
        let name = request as u32;
        let mut older = NOBODY;
        match &mut self.ranks[slot].line {
            Some(line) => {
                older = line.newest;
                self.links[older as usize].newer = name;
                line.newest = name;
            }
            line @ None => {
                *line = Some(Line { oldest: name, newest: name, tokens, since: now, overtaken: 0 })
            }
        }
        self.links[request] = Link { older, newer: NOBODY, tokens };
    }

    /// A prompt is outstanding no more: it is computed, or given up. One that never was is nothing to end.
    pub(super) fn end(&mut self, slot: usize, request: usize, is_computed: bool, now: Instant) {
        let (Some(link), Some(rank)) = (self.links.get_mut(request), self.ranks.get_mut(slot)) else {
            return;
        };
        let Link { older, newer, tokens } = std::mem::replace(link, Link::FREE);
        let Some(line) = rank.line.as_mut().filter(|_| tokens > 0) else { return };
        if let Some(newer) = self.links.get_mut(newer as usize) {
            newer.older = older;
        } else {
            line.newest = older;
        }
        if let Some(older) = self.links.get_mut(older as usize) {
            older.newer = newer;
            line.overtaken += if is_computed { tokens } else { 0 };
            return;
        }
        if is_computed {
            rank.speed.observe(tokens + line.overtaken, now.saturating_duration_since(line.since));
            rank.tokens_per_second = rank.speed.tokens_per_second();
        }
        match self.links.get(newer as usize) {
            Some(next) => {
                let newest = line.newest;
                *line = Line { oldest: newer, newest, tokens: next.tokens, since: now, overtaken: 0 };
            }
            None => rank.line = None,
        }
    }

    /// Tokens of the oldest outstanding prompt of a rank that are computed by now; none where nobody knows.
    pub(super) fn computed(&self, slot: usize, now: Instant) -> u64 {
        let Some(Rank { line: Some(line), tokens_per_second, .. }) = self.ranks.get(slot) else { return 0 };
        let passed = now.saturating_duration_since(line.since).as_secs_f64();
        let most = line.tokens - line.tokens.div_ceil(REMAINDER);
        ((passed * tokens_per_second + 0.5) as u64).min(most)
    }

    /// Prompt tokens that a rank computes in a second; none before that is known.
    pub(super) fn tokens_per_second(&self, slot: usize) -> Option<f64> {
        self.ranks.get(slot).map(|rank| rank.tokens_per_second).filter(|&speed| speed > 0.0)
    }

    /// A slot's worker is gone, with what was outstanding there.
    pub(super) fn forget(&mut self, slot: usize) {
        let Some(rank) = self.ranks.get_mut(slot) else { return };
        let mut next = std::mem::take(rank).line.map_or(NOBODY, |line| line.oldest);
        while let Some(link) = self.links.get_mut(next as usize) {
            next = std::mem::replace(link, Link::FREE).newer;
        }
    }

    /// Nothing is outstanding anywhere: gives memory back, and keeps what is known of speeds.
    pub(super) fn give_back(&mut self) {
        self.links = Vec::new();
    }

    /// Bytes on the heap, allocator overhead apart.
    pub(super) fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
            + self.ranks.capacity() * size_of::<Rank>()
            + self.ranks.iter().map(|rank| rank.speed.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
