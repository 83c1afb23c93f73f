//! What the changes of discovery add up to. No tasks, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Breaker;
use super::instance::{Instance, InstanceState};
use crate::discovery::{Change, EndpointRecord, Record, RecordState};
use crate::identity::{Incarnation, WorkerId};
use crate::request_plane::Target;

#[cfg(test)]
mod tests;

/// How long a worker whose record vanished may still be used.
pub(super) const DOUBT: Duration = Duration::from_secs(60);

/// Instances by id. Bounded by discovery's own bound, and those in doubt by their time.
#[derive(Default)]
pub(super) struct Follower {
    known: BTreeMap<WorkerId, Known>,
}

struct Known {
    instance: Instance,
    /// When an instance in doubt is given up.
    until: Option<Instant>,
}

impl Follower {
    /// Takes a change in; whether anything is different now.
    pub(super) fn apply(&mut self, change: Change, now: Instant) -> bool {
        match change {
            Change::Snapshot(records) => {
                let mut missing: Vec<WorkerId> = self.known.keys().copied().collect();
                let mut changed = false;
                for record in records {
                    missing.retain(|id| *id != record.incarnation().worker_id);
                    changed |= self.put(record);
                }
                for id in missing {
                    changed |= self.vanished(id, now);
                }
                changed
            }
            Change::Put(record) => self.put(record),
            Change::Removed(key) => self.vanished(key.worker_id(), now),
        }
    }

    /// Gives up whom nobody has heard of for too long.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.known.len();
        self.known.retain(|_, known| known.until.is_none_or(|until| now < until));
        self.known.len() != before
    }

    /// When [`expire`](Self::expire) will have something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.until).min()
    }

    /// Gives up an instance in doubt, of which it is now known that it does not answer.
    pub(super) fn give_up(&mut self, incarnation: Incarnation) -> bool {
        let doubtful = self
            .known
            .get(&incarnation.worker_id)
            .is_some_and(|known| known.until.is_some() && known.instance.incarnation == incarnation);
        doubtful && self.known.remove(&incarnation.worker_id).is_some()
    }

    /// All instances, by id.
    pub(super) fn snapshot(&self) -> Arc<[Instance]> {
        self.known.values().map(|known| known.instance.clone()).collect()
    }

    pub(super) fn in_doubt(&self) -> usize {
        self.known.values().filter(|known| known.until.is_some()).count()
    }

    fn put(&mut self, record: Record) -> bool {
        let Record::Endpoint(record) = record else { return false };
        let Some(target) = Target::parse(&record.address) else {
            tracing::warn!(
                address = record.address,
                "skipped an endpoint whose address is not host:port/path"
            );
            return false;
        };
        let known = self.known.get(&record.incarnation.worker_id).map(|known| &known.instance);
        if known.is_some_and(|known| known.incarnation.epoch > record.incarnation.epoch) {
            return false;
        }
        let same = known.filter(|known| known.incarnation == record.incarnation && known.target == target);
        let breaker = same.map_or_else(|| Arc::new(Breaker::new()), |known| known.breaker.clone());
        let instance = instance(record, target, breaker);
        self.known.insert(instance.worker_id(), Known { instance, until: None });
        true
    }

    fn vanished(&mut self, id: WorkerId, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(&id) else { return false };
        match known.instance.state {
            InstanceState::Draining => {
                self.known.remove(&id);
                true
            }
            InstanceState::Ready => {
                tracing::warn!(
                    worker = known.instance.worker_name(),
                    "the record of a worker vanished; it is in doubt"
                );
                known.instance.state = InstanceState::InDoubt;
                known.until = Some(now + DOUBT);
                true
            }
            InstanceState::InDoubt => false,
        }
    }
}

fn instance(record: EndpointRecord, target: Target, breaker: Arc<Breaker>) -> Instance {
    Instance {
        incarnation: record.incarnation,
        worker_name: record.worker_name.into(),
        target,
        state: match record.state {
            RecordState::Ready => InstanceState::Ready,
            RecordState::Draining => InstanceState::Draining,
        },
        breaker,
    }
}
