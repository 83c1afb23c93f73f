use super::super::inbox::Inbox;
use super::super::tracker::Members;
use super::handle::Connections;
use crate::discovery::{Change, EventChannelRecord, EventScope, Record, RecordKey, Watch};
use crate::identity::{Epoch, WorkerId};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// The publishers of a scope and topic.
#[derive(Debug, Default)]
struct Channels(BTreeMap<WorkerId, (Epoch, String)>);

/// Keeps a subscription connected to the publishers that discovery knows, until `until` resolves.
pub(super) async fn follow(
    mut watch: Watch,
    scope: EventScope,
    inbox: Arc<Inbox>,
    connections: Connections,
    until: impl Future<Output = ()>,
) {
    let mut channels = Channels::default();
    tokio::pin!(until);
    loop {
        let change = tokio::select! {
            () = &mut until => break,
            change = watch.next() => change,
        };
        let Some(change) = change else { break };
        channels.apply(change, &scope, &inbox.topic);
        // Members first: an event from a publisher that is not one would be discarded.
        inbox.set_members(channels.0.iter().map(|(&id, &(epoch, _))| (id, epoch)).collect::<Members>());
        connections.set(channels.0.values().map(|(_, address)| address.clone()).collect());
    }
    inbox.close();
}

impl Channels {
    fn apply(&mut self, change: Change, scope: &EventScope, topic: &str) {
        match change {
            Change::Snapshot(records) => {
                self.0.clear();
                for record in records {
                    self.put(record, scope, topic);
                }
            }
            Change::Put(record) => self.put(record, scope, topic),
            Change::Removed(RecordKey::EventChannel(of, on, worker_id)) if of == *scope && on == topic => {
                self.0.remove(&worker_id);
            }
            Change::Removed(_) => {}
        }
    }

    /// Scopes are exact, and the later incarnation wins.
    fn put(&mut self, record: Record, scope: &EventScope, topic: &str) {
        let Record::EventChannel(EventChannelRecord { scope: of, topic: on, incarnation, address }) = record
        else {
            return;
        };
        let newer = self.0.get(&incarnation.worker_id).is_none_or(|(epoch, _)| *epoch <= incarnation.epoch);
        if of == *scope && on == topic && newer {
            self.0.insert(incarnation.worker_id, (incarnation.epoch, address));
        }
    }
}
