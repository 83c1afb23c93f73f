//! What happens when nothing happens.

use std::time::Instant;

use super::{Events, slow_reader};
use crate::{
    CancelKind, CancelReason, Connection, ConnectionError, Failure, FailureCode, frame, timers::TimerKind,
};

impl<D> Connection<D> {
    /// When [`Connection::handle_timeout`] is due next.
    pub fn next_timeout(&self) -> Instant {
        let alive = if self.peer.is_none() {
            self.created + self.config.hello_timeout
        } else {
            match self.ping_sent {
                Some(sent) => sent + self.config.pong_timeout,
                None => self.last_input + self.config.ping_interval,
            }
        };
        self.timers.next().map_or(alive, |timer| timer.min(alive))
    }

    /// Ends what ran out of time. Input that is waiting must have been handled first: a process that was stopped for
    /// a while would otherwise take its peer for dead.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        if self.peer.is_none() {
            if now >= self.created + self.config.hello_timeout {
                return Err(ConnectionError::HelloTimeout);
            }
        } else if let Some(sent) = self.ping_sent {
            if now >= sent + self.config.pong_timeout {
                return Err(ConnectionError::PeerSilent);
            }
        } else if now >= self.last_input + self.config.ping_interval {
            self.ping_sent = Some(now);
            frame::put(&mut self.control, frame::PING, 0, 0, &0u64.to_le_bytes());
        }
        while let Some((id, kind)) = self.timers.pop_due(now) {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            match kind {
                TimerKind::Deadline => {
                    stream.deadline = None;
                    self.expire(id, events);
                }
                TimerKind::Stall => {
                    stream.stalls_at = None;
                    if let Some(stream) = self.end_slow(id)
                        && let Some(mut data) = stream.data
                    {
                        if stream.ours {
                            events.failed(&mut data, id, slow_reader());
                        } else {
                            events.cancelled(&mut data, id, CancelKind::Kill, CancelReason::SlowReader);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn expire(&mut self, id: crate::StreamId, events: &mut impl Events<D>) {
        let failure = Failure::new(FailureCode::DeadlineExceeded, "the request's time ran out");
        if self.streams.get(&id).is_some_and(|stream| stream.ours) {
            if let Some(mut data) = self.cancel(id, CancelKind::Kill, CancelReason::DeadlineExceeded) {
                events.failed(&mut data, id, failure);
            }
        } else if let Some(stream) = self.remove(id) {
            self.put_failure(id, &failure);
            if let Some(mut data) = stream.data {
                events.cancelled(&mut data, id, CancelKind::Kill, CancelReason::DeadlineExceeded);
            }
        }
    }
}
