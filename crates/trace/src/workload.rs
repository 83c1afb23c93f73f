//! What is asked: prompts made on the fly from a seed, and the tokens to answer with.

use std::time::Duration;

use crate::{
    mooncake::TraceRequest,
    rng::derive,
    turns::{TurnTime, Turns},
    words::{push_words, usual_tokens},
};

/// Streams of seeds, so that no two kinds of text are ever equal.
const SHARED: u64 = 1;
const OWN: u64 = 2;
const BLOCK: u64 = 3;

/// Prompts of equal length, with or without a shared start.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Names the texts.
    pub seed: u64,
    /// Words of a prompt.
    pub words: usize,
    /// How many of them, at the start, are shared within a group.
    pub shared_words: usize,
    /// Groups with a shared start of their own.
    pub groups: u64,
    /// Distinct prompts that take turns; 0 means that every request has its own.
    pub distinct: u64,
    /// Tokens to answer with.
    pub output_tokens: u32,
}

/// A trace, with a block of text for each hash id.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Names the texts.
    pub seed: u64,
    /// In order of time.
    pub requests: Vec<TraceRequest>,
    /// Which of them follow one another.
    pub turns: Turns,
    /// Words of a block.
    pub block_words: usize,
    /// Tokens of a block, where the model splits text as the tiny one does.
    pub block_tokens: usize,
    /// What output lengths are divided by.
    pub shrink: u32,
    /// What the schedule is divided by.
    pub speedup: f64,
    /// Takes the place of the trace's output lengths.
    pub output_tokens: Option<u32>,
}

/// What a run asks, request by request.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Made up.
    Synthetic(Synthetic),
    /// Recorded.
    Replay(Replay),
}

impl Workload {
    /// How many requests there are, if that is limited.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Synthetic(_) => None,
            Self::Replay(replay) => Some(replay.requests.len() as u64),
        }
    }

    /// Whether it holds no request at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Tokens to answer request `index` with, at least 1.
    #[must_use]
    pub fn output_tokens(&self, index: u64) -> u32 {
        match self {
            Self::Synthetic(synthetic) => synthetic.output_tokens,
            Self::Replay(replay) => replay
                .output_tokens
                .unwrap_or_else(|| replay.requests[index as usize].output_length / replay.shrink)
                .max(1),
        }
    }

    /// How many requests start by themselves (the others follow one of their session), if that is limited.
    #[must_use]
    pub fn starts(&self) -> Option<u64> {
        match self {
            Self::Synthetic(_) => None,
            Self::Replay(replay) => Some(replay.turns.starts().len() as u64),
        }
    }

    /// The request that starts as number `place`.
    #[must_use]
    pub fn start(&self, place: u64) -> u64 {
        match self {
            Self::Synthetic(_) => place,
            Self::Replay(replay) => u64::from(replay.turns.starts()[place as usize]),
        }
    }

    /// When request `index` is due by the recorded schedule, after the start.
    #[must_use]
    pub fn due(&self, index: u64) -> Option<Duration> {
        let Self::Replay(replay) = self else { return None };
        Some(replay.turns.due(replay.requests.get(index as usize)?).div_f64(replay.speedup))
    }

    /// The turn that follows request `index`, and when it is due.
    #[must_use]
    pub fn next_turn(&self, index: u64) -> Option<(u64, TurnTime)> {
        let Self::Replay(replay) = self else { return None };
        let (next, time) = replay.turns.after(&replay.requests, index as usize)?;
        let time = match time {
            TurnTime::AfterPrevious(delay) => TurnTime::AfterPrevious(delay.div_f64(replay.speedup)),
            TurnTime::FromStart(due) => TurnTime::FromStart(due.div_f64(replay.speedup)),
        };
        Some((next as u64, time))
    }

    /// Whether some requests wait for another one to end.
    #[must_use]
    pub fn has_turns(&self) -> bool {
        matches!(self, Self::Replay(replay) if replay.turns.any_follow())
    }

    /// Appends the prompt of request `index`: letters and spaces only, so that it needs no escaping in JSON.
    pub fn write_prompt(&self, index: u64, out: &mut Vec<u8>) {
        match self {
            Self::Synthetic(s) => {
                let index = if s.distinct == 0 { index } else { index % s.distinct };
                if s.shared_words > 0 {
                    let seed = derive(s.seed, SHARED, index % s.groups);
                    push_words(out, seed, s.shared_words, usual_tokens(s.shared_words));
                }
                let own = s.words - s.shared_words;
                push_words(out, derive(s.seed, OWN, index), own, usual_tokens(own));
            }
            Self::Replay(replay) => {
                for id in &replay.requests[index as usize].hash_ids {
                    push_words(out, derive(replay.seed, BLOCK, *id), replay.block_words, replay.block_tokens);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(workload: &Workload, index: u64) -> String {
        let mut out = Vec::new();
        workload.write_prompt(index, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn synthetic(shared_words: usize, distinct: u64) -> Workload {
        Workload::Synthetic(Synthetic {
            seed: 1,
            words: 40,
            shared_words,
            groups: 2,
            distinct,
            output_tokens: 8,
        })
    }

    #[test]
    fn prompts_are_distinct_unless_they_take_turns() {
        let own = synthetic(0, 0);
        assert_ne!(prompt(&own, 0), prompt(&own, 3));
        let turns = synthetic(0, 3);
        assert_eq!(prompt(&turns, 0), prompt(&turns, 3));
        assert_ne!(prompt(&turns, 0), prompt(&turns, 1));
    }

    #[test]
    fn a_group_shares_its_first_words_only() {
        let shared = synthetic(10, 0);
        let first_words =
            |index, n: usize| prompt(&shared, index).split(' ').take(n + 1).collect::<Vec<_>>().join(" ");
        assert_eq!(first_words(0, 10), first_words(2, 10));
        assert_ne!(first_words(0, 10), first_words(1, 10));
        assert_ne!(first_words(0, 14), first_words(2, 14));
        assert_eq!(prompt(&shared, 0).split_whitespace().count(), 40);
    }

    fn replay() -> Workload {
        let request = |timestamp, ids: &[u64]| TraceRequest {
            timestamp: Some(timestamp),
            output_length: 17,
            hash_ids: ids.to_vec(),
            ..TraceRequest::default()
        };
        let requests = vec![request(100.0, &[0, 1]), request(300.0, &[0, 2]), request(4100.0, &[0])];
        Workload::Replay(Replay {
            seed: 1,
            turns: Turns::of(&requests),
            requests,
            block_words: 18,
            block_tokens: 64,
            shrink: 8,
            speedup: 40.0,
            output_tokens: None,
        })
    }

    #[test]
    fn equal_ids_are_equal_prefixes() {
        let (first, second, head) = (prompt(&replay(), 0), prompt(&replay(), 1), prompt(&replay(), 2));
        assert!(first.starts_with(&head) && second.starts_with(&head));
        assert_ne!(first, second);
        assert_eq!(head.split_whitespace().count(), 18);
    }

    #[test]
    fn a_replay_keeps_the_schedule_and_shrinks_the_lengths() {
        let replay = replay();
        assert_eq!(replay.due(0), Some(Duration::ZERO));
        assert_eq!(replay.due(2), Some(Duration::from_millis(100)));
        assert_eq!(replay.due(3), None);
        assert_eq!(replay.output_tokens(0), 2);
    }
}
