//! Taking blocks away, and nodes that are of no use any more.

use dynamo_engine_api::ExternalBlockHash;

use super::{
    AHEAD, ApplyError, BLOCKS_PER_LOCK, Shared, Writer, jolt,
    nodes::{NodeId, ROOT, Write, chunk_of, is_behind, place_of},
    slot_names::SlotNames,
};

/// A node to look at again, to be dropped if it is still of no use.
struct Useless {
    id: NodeId,
    generation: u32,
    parent: NodeId,
    local: u64,
}

impl Shared {
    pub(super) fn remove(
        &self,
        writer: &mut Writer<'_>,
        hashes: &[ExternalBlockHash],
    ) -> Result<(), ApplyError> {
        let mut result = Ok(());
        let mut ids = smallvec::SmallVec::<[NodeId; BLOCKS_PER_LOCK]>::new();
        for piece in hashes.chunks(BLOCKS_PER_LOCK) {
            for ahead in piece.chunks(AHEAD) {
                writer.names.warm(ahead.iter().map(|hash| hash.0));
                for hash in ahead {
                    match writer.names.remove(hash.0) {
                        Some((id, true)) => ids.push(id),
                        Some(_) => {}
                        None => result = Err(ApplyError::BlockNotFound),
                    }
                }
            }
            self.release(writer, &mut ids.drain(..));
        }
        writer.counters.removed();
        writer.names.shrink_if_sparse();
        result
    }

    pub(super) fn clear(&self, writer: &mut Writer<'_>) {
        if writer.counters.blocks() > 0 {
            let mut ids: Vec<_> = writer.names.iter().map(|(_, id)| id).collect();
            *writer.names = SlotNames::default();
            // Children mostly have higher numbers than their parents, and go first.
            ids.sort_unstable_by(|a, b| b.cmp(a));
            ids.dedup();
            self.release(writer, &mut ids.into_iter());
            writer.counters.removed();
        }
    }

    /// Lets the slot hold these nodes no longer, which it does.
    pub(super) fn release(&self, writer: &mut Writer<'_>, ids: &mut dyn Iterator<Item = NodeId>) {
        let mut useless = smallvec::SmallVec::<[Useless; 8]>::new();
        let mut next = ids.next();
        while let Some(first) = next {
            jolt();
            let number = chunk_of(first);
            let mut cell = self.nodes.write(first);
            let mut blocks = 0;
            while let Some(id) = next.filter(|&id| chunk_of(id) == number && blocks < BLOCKS_PER_LOCK) {
                blocks += 1;
                let at = place_of(id);
                let chunk = cell.chunk_mut();
                writer.remove.remove(&self.sets, &mut chunk.sets[at], writer.index);
                if chunk.is_useless(at) {
                    useless.extend(self.drop_here(&mut cell, id));
                }
                next = ids.next();
                if cell.chunk().is_none() {
                    break;
                }
            }
            writer.counters.set_blocks(writer.counters.blocks() - blocks as u32);
            drop(cell);
            for id in useless.drain(..) {
                self.drop_useless(id);
            }
        }
    }

    /// Drops a useless node and its ancestors, as far as they lie one behind the other. Returns the first that does
    /// not, if it is useless too.
    fn drop_here(&self, cell: &mut Write<'_>, mut id: NodeId) -> Option<Useless> {
        loop {
            let at = place_of(id);
            let chunk = cell.chunk_mut();
            let (parent, local) = (chunk.parent[at], chunk.local[at]);
            if !is_behind(parent, id) {
                return Some(Useless { id, generation: chunk.generation[at], parent, local });
            }
            chunk.children[at - 1] -= 1;
            let go_on = chunk.is_useless(at - 1);
            self.nodes.free(chunk_of(id), cell, at);
            if !go_on {
                return None;
            }
            id = parent;
        }
    }

    /// Drops a node that a table lists, if it is still useless, and its ancestors as far as they are.
    fn drop_useless(&self, mut node: Useless) {
        loop {
            let Useless { id, generation, parent, local } = node;
            let (hash, shard) = self.child_shard(parent, local);
            let mut table = shard.write();
            let mut cell = self.nodes.write(id);
            let at = place_of(id);
            let is_there = cell.chunk().is_some_and(|chunk| {
                chunk.is_used(at) && chunk.generation[at] == generation && chunk.is_useless(at)
            });
            if !is_there {
                return;
            }
            self.nodes.free(chunk_of(id), &mut cell, at);
            drop(cell);
            table.remove(hash, id);
            table.shrink_if_sparse();
            drop(table);
            if parent == ROOT {
                return;
            }
            // It still counts its child, and is there.
            let mut cell = self.nodes.write(parent);
            let at = place_of(parent);
            let chunk = cell.chunk_mut();
            chunk.children[at] -= 1;
            if !chunk.is_useless(at) {
                return;
            }
            match self.drop_here(&mut cell, parent) {
                Some(next) => node = next,
                None => return,
            }
        }
    }
}
