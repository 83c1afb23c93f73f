//! What an index is asked and answers between processes: hashes of blocks in, ranks of workers out.
//!
//! Both are MessagePack maps of packed columns, so that reading one is a walk over bytes; fields that a reader does not
//! know are passed over.

use dynamo_tokens::{BlockSize, LocalBlockHash};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::WorkerRank;

/// Blocks of a prompt that an index elsewhere is asked for at most: two million tokens in blocks of 16, a megabyte on the
/// wire. Of a longer prompt the rest counts as not cached.
pub const MAX_QUERY_BLOCKS: usize = 1 << 17;

/// Which ranks have how much of a prompt?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexQuery {
    /// Tokens per block; only an index of such blocks can answer.
    pub block_size: u32,
    /// Local hashes of the prompt's blocks, first to last, each in 8 bytes, the lowest first.
    blocks: ByteBuf,
}

/// A question or an answer that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedMatches {
    /// Hashes have 8 bytes each.
    #[error("the hashes of blocks take {0} bytes, which is no multiple of 8")]
    Hashes(usize),
    /// More than [`MAX_QUERY_BLOCKS`].
    #[error("{0} blocks are asked for, and {MAX_QUERY_BLOCKS} are answered: ask for the leading ones")]
    TooManyBlocks(usize),
    /// Columns of different lengths.
    #[error("the columns of an answer have different lengths")]
    Columns,
}

impl IndexQuery {
    /// A question for the leading blocks of a prompt, [`MAX_QUERY_BLOCKS`] at most.
    pub fn new(block_size: BlockSize, blocks: &[LocalBlockHash]) -> Self {
        let blocks = &blocks[..blocks.len().min(MAX_QUERY_BLOCKS)];
        let mut bytes = Vec::with_capacity(blocks.len() * 8);
        blocks.iter().for_each(|block| bytes.extend_from_slice(&block.0.to_le_bytes()));
        Self { block_size: u32::try_from(block_size.get()).unwrap_or(u32::MAX), blocks: bytes.into() }
    }

    /// Replaces `out` by the blocks that are asked for.
    pub fn read_blocks(&self, out: &mut Vec<LocalBlockHash>) -> Result<(), MalformedMatches> {
        out.clear();
        let (blocks, rest) = self.blocks.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(MalformedMatches::Hashes(self.blocks.len()));
        }
        if blocks.len() > MAX_QUERY_BLOCKS {
            return Err(MalformedMatches::TooManyBlocks(blocks.len()));
        }
        out.extend(blocks.iter().map(|&block| LocalBlockHash(u64::from_le_bytes(block))));
        Ok(())
    }
}

/// What one rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMatch {
    /// The rank.
    pub worker: WorkerRank,
    /// The incarnation of its worker.
    pub epoch: u64,
    /// Blocks that it holds on its device in all.
    pub held_blocks: u32,
    /// Leading blocks of the prompt on its device.
    pub device_blocks: u32,
    /// Leading blocks on its device or host; at least `device_blocks`.
    pub host_blocks: u32,
    /// Leading blocks on any of its tiers; at least `host_blocks`.
    pub any_blocks: u32,
}

/// What each rank that an index knows has of a prompt, in no order: those without any are there for what they hold in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RankMatches {
    worker_ids: ByteBuf,
    epochs: ByteBuf,
    dp_ranks: ByteBuf,
    held_blocks: ByteBuf,
    device_blocks: ByteBuf,
    /// Of the ranks up to the last one that has more on lower tiers than on its device; the others have what is there.
    host_blocks: ByteBuf,
    any_blocks: ByteBuf,
    /// Leading blocks in storage that all ranks share, whoever put them there.
    shared_blocks: u32,
}

impl RankMatches {
    /// Adds a rank.
    pub fn push(&mut self, found: &RankMatch) {
        let before = self.len();
        self.worker_ids.extend_from_slice(&found.worker.worker_id.to_le_bytes());
        self.epochs.extend_from_slice(&found.epoch.to_le_bytes());
        self.dp_ranks.extend_from_slice(&found.worker.dp_rank.to_le_bytes());
        self.held_blocks.extend_from_slice(&found.held_blocks.to_le_bytes());
        self.device_blocks.extend_from_slice(&found.device_blocks.to_le_bytes());
        if found.any_blocks > found.device_blocks {
            // Those before have nothing below: what they have there is what they have on the device.
            for column in [&mut self.host_blocks, &mut self.any_blocks] {
                let from = column.len();
                column.extend_from_slice(&self.device_blocks[from..before * 4]);
            }
            self.host_blocks.extend_from_slice(&found.host_blocks.to_le_bytes());
            self.any_blocks.extend_from_slice(&found.any_blocks.to_le_bytes());
        }
    }

    /// Says how many leading blocks are in storage that all ranks share; of two words the larger counts.
    pub fn raise_shared_blocks(&mut self, blocks: u32) {
        self.shared_blocks = self.shared_blocks.max(blocks);
    }

    /// Leading blocks in storage that all ranks share.
    pub fn shared_blocks(&self) -> u32 {
        self.shared_blocks
    }

    /// Ranks.
    pub fn len(&self) -> usize {
        self.worker_ids.len() / 8
    }

    /// Whether no rank is known.
    pub fn is_empty(&self) -> bool {
        self.worker_ids.is_empty()
    }

    /// The ranks, as they were added.
    pub fn iter(&self) -> Result<impl Iterator<Item = RankMatch> + '_, MalformedMatches> {
        let count = self.len();
        let long = [&self.worker_ids, &self.epochs].iter().all(|column| column.len() == count * 8);
        let short = [&self.dp_ranks, &self.held_blocks, &self.device_blocks]
            .iter()
            .all(|column| column.len() == count * 4);
        let lower = self.host_blocks.len() == self.any_blocks.len()
            && self.host_blocks.len().is_multiple_of(4)
            && self.host_blocks.len() <= count * 4;
        if !(long && short && lower) {
            return Err(MalformedMatches::Columns);
        }
        Ok((0..count).map(|place| {
            let device_blocks = number(&self.device_blocks, place).unwrap_or(0);
            let host_blocks = number(&self.host_blocks, place).unwrap_or(0).max(device_blocks);
            RankMatch {
                worker: WorkerRank {
                    worker_id: long_number(&self.worker_ids, place).unwrap_or(0),
                    dp_rank: number(&self.dp_ranks, place).unwrap_or(0),
                },
                epoch: long_number(&self.epochs, place).unwrap_or(0),
                held_blocks: number(&self.held_blocks, place).unwrap_or(0),
                device_blocks,
                host_blocks,
                any_blocks: number(&self.any_blocks, place).unwrap_or(0).max(host_blocks),
            }
        }))
    }
}

fn number(column: &[u8], place: usize) -> Option<u32> {
    column.as_chunks::<4>().0.get(place).map(|&bytes| u32::from_le_bytes(bytes))
}

fn long_number(column: &[u8], place: usize) -> Option<u64> {
    column.as_chunks::<8>().0.get(place).map(|&bytes| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(worker_id: u64, device_blocks: u32, host_blocks: u32, any_blocks: u32) -> RankMatch {
        let worker = WorkerRank { worker_id, dp_rank: 3 };
        RankMatch { worker, epoch: worker_id << 40, held_blocks: 9, device_blocks, host_blocks, any_blocks }
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let blocks: Vec<_> =
            (0..100).map(|block: u64| LocalBlockHash(block.wrapping_mul(u64::MAX / 7))).collect();
        let query = IndexQuery::new(BlockSize::new(16).unwrap(), &blocks);
        let packed = rmp_serde::to_vec_named(&query).unwrap();
        assert!(packed.len() < 100 * 8 + 40, "{}", packed.len());
        let read: IndexQuery = rmp_serde::from_slice(&packed).unwrap();
        let mut found = vec![LocalBlockHash(1)];
        read.read_blocks(&mut found).unwrap();
        assert_eq!((read.block_size, found), (16, blocks));
    }

    #[test]
    fn a_question_has_a_bound_and_whole_hashes() {
        let long = vec![LocalBlockHash(7); MAX_QUERY_BLOCKS + 1];
        let mut found = Vec::new();
        let mut query = IndexQuery::new(BlockSize::new(16).unwrap(), &long);
        query.read_blocks(&mut found).unwrap();
        assert_eq!(found.len(), MAX_QUERY_BLOCKS);
        query.blocks.extend_from_slice(&[0; 8]);
        assert_eq!(query.read_blocks(&mut found), Err(MalformedMatches::TooManyBlocks(long.len())));
        query.blocks.truncate(9);
        assert_eq!(query.read_blocks(&mut found), Err(MalformedMatches::Hashes(9)));
    }

    #[test]
    fn an_answer_is_read_as_it_was_given_with_lower_tiers_or_without() {
        let plain = [rank(1, 0, 0, 0), rank(u64::MAX, 4, 4, 4)];
        let tiered =
            [rank(1, 2, 2, 2), rank(2, 0, 3, 5), rank(3, 1, 1, 1), rank(4, 2, 2, 8), rank(5, 7, 7, 7)];
        for ranks in [&plain[..], &tiered, &[]] {
            let mut answer = RankMatches::default();
            ranks.iter().for_each(|found| answer.push(found));
            [3, 2].into_iter().for_each(|blocks| answer.raise_shared_blocks(blocks));
            let packed = rmp_serde::to_vec_named(&answer).unwrap();
            let read: RankMatches = rmp_serde::from_slice(&packed).unwrap();
            assert_eq!(read.iter().unwrap().collect::<Vec<_>>(), ranks);
            assert_eq!(read.shared_blocks(), 3);
        }
    }

    #[test]
    fn an_answer_whose_columns_do_not_fit_is_none_and_unknown_fields_are_passed_over() {
        let mut answer = RankMatches::default();
        answer.push(&rank(1, 1, 1, 1));
        answer.push(&rank(2, 1, 1, 2));
        let broken = [
            RankMatches { dp_ranks: vec![0; 4].into(), ..answer.clone() },
            RankMatches { epochs: ByteBuf::new(), ..answer.clone() },
            RankMatches { any_blocks: vec![0; 4].into(), ..answer.clone() },
            RankMatches { worker_ids: vec![0; 17].into(), ..answer.clone() },
        ];
        for broken in broken {
            assert!(matches!(broken.iter().map(|ranks| ranks.count()), Err(MalformedMatches::Columns)));
        }
        let packed = rmp_serde::to_vec_named(&serde_json::json!({"news": [1, 2]})).unwrap();
        assert!(rmp_serde::from_slice::<RankMatches>(&packed).unwrap().is_empty());
    }
}
