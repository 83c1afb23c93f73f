//! Events within one process: a publisher leaves its event in every subscriber's inbox.

use super::PublishError;
use super::envelope::Arrival;
use super::inbox::Inbox;
use super::publisher::Outlet;
use super::tracker::Members;
use crate::discovery::EventScope;
use crate::identity::Incarnation;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

type ChannelKey = (EventScope, Arc<str>);

/// What the event planes of one process share when they are in-process. Clones are the same hub.
#[derive(Clone, Default)]
pub struct EventHub {
    /// Channels with a publisher or a subscriber.
    channels: Arc<Mutex<HashMap<ChannelKey, Arc<Channel>>>>,
}

#[derive(Default)]
struct Channel(Mutex<Ends>);

#[derive(Default)]
struct Ends {
    publishers: Members,
    subscribers: Vec<Arc<Inbox>>,
}

impl EventHub {
    /// A hub without channels.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn publish(
        &self,
        scope: EventScope,
        topic: Arc<str>,
        incarnation: Incarnation,
    ) -> impl Outlet + use<> {
        let Incarnation { worker_id, epoch } = incarnation;
        let change = |ends: &mut Ends| {
            let known = ends.publishers.entry(worker_id).or_insert(epoch);
            *known = epoch.max(*known);
            ends.announce();
        };
        HubOutlet { seat: self.join((scope, topic), change), incarnation }
    }

    pub(super) fn subscribe(&self, scope: EventScope, inbox: Arc<Inbox>) -> Box<dyn Send + Sync> {
        let change = |ends: &mut Ends| {
            inbox.set_members(ends.publishers.clone());
            ends.subscribers.push(inbox.clone());
        };
        let seat = self.join((scope, inbox.topic.clone()), change);
        Box::new(HubSubscription { seat, inbox })
    }

    fn join(&self, key: ChannelKey, change: impl FnOnce(&mut Ends)) -> Seat {
        let mut channels = self.channels.lock();
        let channel = channels.entry(key.clone()).or_default().clone();
        change(&mut channel.0.lock());
        Seat { hub: self.clone(), key, channel }
    }

    #[cfg(test)]
    pub(super) fn channels(&self) -> usize {
        self.channels.lock().len()
    }
}

impl Ends {
    fn announce(&self) {
        for inbox in &self.subscribers {
            inbox.set_members(self.publishers.clone());
        }
    }
}

/// A place at a channel.
struct Seat {
    hub: EventHub,
    key: ChannelKey,
    channel: Arc<Channel>,
}

impl Seat {
    fn leave(&self, change: impl FnOnce(&mut Ends)) {
        let mut channels = self.hub.channels.lock();
        let mut ends = self.channel.0.lock();
        change(&mut ends);
        if ends.publishers.is_empty() && ends.subscribers.is_empty() {
            channels.remove(&self.key);
        }
    }
}

struct HubOutlet {
    seat: Seat,
    incarnation: Incarnation,
}

impl Outlet for HubOutlet {
    fn send(&self, arrival: Arrival) -> Result<(), PublishError> {
        for inbox in &self.seat.channel.0.lock().subscribers {
            inbox.push(arrival.clone());
        }
        Ok(())
    }
}

impl Drop for HubOutlet {
    fn drop(&mut self) {
        let Incarnation { worker_id, epoch } = self.incarnation;
        self.seat.leave(|ends| {
            // A later incarnation may hold the place by now.
            if ends.publishers.get(&worker_id) == Some(&epoch) {
                ends.publishers.remove(&worker_id);
                ends.announce();
            }
        });
    }
}

struct HubSubscription {
    seat: Seat,
    inbox: Arc<Inbox>,
}

impl Drop for HubSubscription {
    fn drop(&mut self) {
        self.seat.leave(|ends| ends.subscribers.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox)));
    }
}
