//! Which requests of a trace start by themselves, and which follow another one of their session.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::mooncake::TraceRequest;

const NONE: u32 = u32::MAX;

/// When a later turn is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TurnTime {
    /// So long after the turn before it ended.
    AfterPrevious(Duration),
    /// So long after the start, but not before the turn before it ended.
    FromStart(Duration),
}

/// The order of turns. Requests are named by their place in the trace.
#[derive(Clone, Debug)]
pub struct Turns {
    starts: Vec<u32>,
    next: Vec<u32>,
    /// Milliseconds: the time of the first request that has one.
    origin: f64,
}

impl Turns {
    /// Of requests in order of time, as [`read_trace`](crate::read_trace) gives them.
    #[must_use]
    pub fn of(requests: &[TraceRequest]) -> Self {
        let mut last: FxHashMap<&str, usize> = FxHashMap::default();
        let mut turns = Self {
            starts: Vec::new(),
            next: vec![NONE; requests.len()],
            origin: requests.iter().filter_map(|request| request.timestamp).fold(f64::INFINITY, f64::min),
        };
        if !turns.origin.is_finite() {
            turns.origin = 0.0;
        }
        for (index, request) in requests.iter().enumerate() {
            let previous = request.session_id.as_deref().and_then(|session| last.insert(session, index));
            match previous {
                Some(previous) => turns.next[previous] = index as u32,
                None => turns.starts.push(index as u32),
            }
        }
        turns
    }

    /// The requests that follow no other, in order.
    #[must_use]
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Whether some requests follow another one.
    #[must_use]
    pub fn any_follow(&self) -> bool {
        self.starts.len() < self.next.len()
    }

    /// When a request is due by its own timestamp, after the start of the trace; at once if it has none.
    #[must_use]
    pub fn due(&self, request: &TraceRequest) -> Duration {
        let millis = request.timestamp.unwrap_or(self.origin) - self.origin;
        Duration::from_secs_f64(millis.max(0.0) / 1e3)
    }

    /// The turn that follows a request, and when it is due.
    #[must_use]
    pub fn after(&self, requests: &[TraceRequest], index: usize) -> Option<(usize, TurnTime)> {
        let next = *self.next.get(index).filter(|next| **next != NONE)? as usize;
        let request = requests.get(next)?;
        let time = match (request.delay, request.timestamp) {
            (None, Some(_)) => TurnTime::FromStart(self.due(request)),
            (delay, _) => TurnTime::AfterPrevious(Duration::from_secs_f64(delay.unwrap_or(0.0) / 1e3)),
        };
        Some((next, time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(session: Option<&str>, timestamp: Option<f64>, delay: Option<f64>) -> TraceRequest {
        let session_id = session.map(str::to_owned);
        TraceRequest { timestamp, session_id, delay, ..TraceRequest::default() }
    }

    #[test]
    fn turns_of_a_session_follow_one_another() {
        let requests = [
            request(Some("a"), Some(100.0), None),
            request(None, Some(150.0), None),
            request(Some("a"), None, Some(500.0)),
            request(Some("b"), Some(200.0), None),
            request(Some("a"), Some(1100.0), None),
        ];
        let turns = Turns::of(&requests);
        assert_eq!(turns.starts(), [0, 1, 3]);
        assert!(turns.any_follow());
        let after = |index| turns.after(&requests, index);
        assert_eq!(after(0), Some((2, TurnTime::AfterPrevious(Duration::from_millis(500)))));
        assert_eq!(after(2), Some((4, TurnTime::FromStart(Duration::from_secs(1)))));
        assert_eq!((after(1), after(4)), (None, None));
        assert_eq!(turns.due(&requests[1]), Duration::from_millis(50));
    }
}
