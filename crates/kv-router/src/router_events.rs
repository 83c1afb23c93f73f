//! The payload of KV events on the event plane, decoded into memory that is used again.

use dynamo_engine_api::{
    ExternalBlockHash, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier, StoredBlock,
};
use dynamo_tokens::LocalBlockHash;

use crate::{
    event_lists::EventLists,
    msgpack::{Reader, WireError},
};

/// What a list is made for at first whatever a message claims; more comes as elements do.
const CLAIM: usize = 1024;

/// Decodes messages of the topic `kv-events`: an array of [`RouterEvent`]s as MessagePack maps with named fields, as
/// `rmp_serde::to_vec_named` writes them. One event without an array around it is taken too; unknown fields are
/// passed over.
///
/// Lists of blocks come from messages before, given back with [`recycle`](Self::recycle): once warm, decoding
/// allocates nothing.
#[derive(Default)]
pub struct RouterEventDecoder {
    lists: EventLists,
}

impl RouterEventDecoder {
    /// Nothing is kept yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the events of a message. After an error those before the defect are there.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<RouterEvent>) -> Result<(), WireError> {
        let mut reader = Reader::new(payload);
        let count = if reader.is_at_array() { reader.array()? } else { 1 };
        for _ in 0..count {
            let event = self.router_event(&mut reader)?;
            out.push(event);
        }
        reader.end()
    }

    /// Takes the memory of an event that is done with.
    pub fn recycle(&mut self, data: KvCacheEventData) {
        self.lists.recycle(data);
    }

    fn router_event(&mut self, reader: &mut Reader<'_>) -> Result<RouterEvent, WireError> {
        let (mut worker_id, mut event, mut storage_tier) = (None, None, StorageTier::Device);
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"worker_id" => worker_id = Some(reader.u64()?),
                b"event" => event = Some(self.event(reader)?),
                b"storage_tier" => storage_tier = tier(reader)?,
                _ => reader.skip()?,
            }
        }
        let (worker_id, event) = (worker_id.ok_or(WireError::Missing)?, event.ok_or(WireError::Missing)?);
        Ok(RouterEvent { worker_id, event, storage_tier })
    }

    fn event(&mut self, reader: &mut Reader<'_>) -> Result<KvCacheEvent, WireError> {
        let (mut event_id, mut data, mut dp_rank) = (None, None, 0);
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"event_id" => event_id = Some(reader.u64()?),
                b"data" => data = Some(self.data(reader)?),
                b"dp_rank" => dp_rank = reader.u32()?,
                _ => reader.skip()?,
            }
        }
        let (event_id, data) = (event_id.ok_or(WireError::Missing)?, data.ok_or(WireError::Missing)?);
        Ok(KvCacheEvent { event_id, data, dp_rank })
    }

    fn data(&mut self, reader: &mut Reader<'_>) -> Result<KvCacheEventData, WireError> {
        if !reader.is_at_map() {
            return if reader.bytes()? == b"cleared" {
                Ok(KvCacheEventData::Cleared)
            } else {
                Err(WireError::Name)
            };
        }
        if reader.map()? != 1 {
            return Err(WireError::Type);
        }
        match reader.bytes()? {
            b"stored" => self.stored(reader),
            b"removed" => self.removed(reader),
            b"cleared" => reader.skip().map(|()| KvCacheEventData::Cleared),
            _ => Err(WireError::Name),
        }
    }

    fn stored(&mut self, reader: &mut Reader<'_>) -> Result<KvCacheEventData, WireError> {
        let (mut parent_hash, mut found) = (None, false);
        let mut blocks = self.lists.blocks();
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"parent_hash" if reader.take_nil() => {}
                b"parent_hash" => parent_hash = Some(ExternalBlockHash(reader.bits()?)),
                b"blocks" => {
                    found = true;
                    let count = reader.array()?;
                    blocks.clear();
                    blocks.reserve(count.min(CLAIM));
                    for _ in 0..count {
                        blocks.push(block(reader)?);
                    }
                }
                _ => reader.skip()?,
            }
        }
        if found { Ok(KvCacheEventData::Stored { parent_hash, blocks }) } else { Err(WireError::Missing) }
    }

    fn removed(&mut self, reader: &mut Reader<'_>) -> Result<KvCacheEventData, WireError> {
        let (mut block_hashes, mut found) = (self.lists.hashes(), false);
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"block_hashes" => {
                    found = true;
                    let count = reader.array()?;
                    block_hashes.clear();
                    block_hashes.reserve(count.min(CLAIM));
                    for _ in 0..count {
                        block_hashes.push(ExternalBlockHash(reader.bits()?));
                    }
                }
                _ => reader.skip()?,
            }
        }
        if found { Ok(KvCacheEventData::Removed { block_hashes }) } else { Err(WireError::Missing) }
    }
}

fn block(reader: &mut Reader<'_>) -> Result<StoredBlock, WireError> {
    let (mut block_hash, mut tokens_hash) = (None, None);
    for _ in 0..reader.map()? {
        match reader.bytes()? {
            b"block_hash" => block_hash = Some(reader.bits()?),
            b"tokens_hash" => tokens_hash = Some(reader.bits()?),
            _ => reader.skip()?,
        }
    }
    let (block_hash, tokens_hash) =
        (block_hash.ok_or(WireError::Missing)?, tokens_hash.ok_or(WireError::Missing)?);
    Ok(StoredBlock { block_hash: ExternalBlockHash(block_hash), tokens_hash: LocalBlockHash(tokens_hash) })
}

fn tier(reader: &mut Reader<'_>) -> Result<StorageTier, WireError> {
    match reader.bytes()? {
        b"device" => Ok(StorageTier::Device),
        b"host_pinned" => Ok(StorageTier::HostPinned),
        b"disk" => Ok(StorageTier::Disk),
        b"external" => Ok(StorageTier::External),
        _ => Err(WireError::Name),
    }
}

#[cfg(test)]
mod tests;
