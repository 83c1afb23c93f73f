//! From bytes to frames.

use std::time::Instant;

use super::Events;
use crate::{
    CancelKind, CancelReason, Connection, ConnectionError, HEADER_LEN, StreamId,
    frame::{self, Header},
    hello,
};

impl<D> Connection<D> {
    /// Reads bytes from the peer, cut anywhere. After an error the connection is of no more use.
    pub fn handle_input(
        &mut self,
        now: Instant,
        mut bytes: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        self.last_input = now;
        self.ping_sent = None;
        if !self.partial.is_empty() {
            let mut partial = std::mem::take(&mut self.partial);
            let whole = self.complete(&mut partial, &mut bytes)?;
            if let Some(header) = whole {
                self.handle_frame(now, header, &partial[HEADER_LEN..], events)?;
                partial.clear();
            }
            self.partial = partial;
            if whole.is_none() {
                return Ok(());
            }
        }
        while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
            let header = self.check_header(head)?;
            let Some((payload, rest)) = rest.split_at_checked(header.len) else { break };
            self.handle_frame(now, header, payload, events)?;
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Moves bytes until `partial` is one whole frame, if there are enough.
    fn complete(&self, partial: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<Option<Header>, ConnectionError> {
        let mut fill = |partial: &mut Vec<u8>, len: usize| {
            let (moved, rest) = bytes.split_at(bytes.len().min(len.saturating_sub(partial.len())));
            partial.extend_from_slice(moved);
            *bytes = rest;
        };
        fill(partial, HEADER_LEN);
        let Some(head) = partial.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = self.check_header(head)?;
        let len = HEADER_LEN + header.len;
        fill(partial, len);
        Ok((partial.len() == len).then_some(header))
    }

    fn check_header(&self, bytes: &[u8; HEADER_LEN]) -> Result<Header, ConnectionError> {
        if self.peer.is_none() && bytes[0] != frame::HELLO {
            return Err(ConnectionError::BadMagic);
        }
        Header::parse(bytes)
    }

    fn handle_frame(
        &mut self,
        now: Instant,
        header: Header,
        payload: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let id = StreamId(header.stream);
        match header.kind {
            frame::ITEMS => self.handle_items(payload, events),
            frame::REQUEST => self.handle_request(now, id, header.flags, payload, events),
            frame::PART => self.handle_part(id, header.flags, payload, events),
            frame::WINDOW => self.handle_window(id, fixed(payload, "window")?),
            frame::CANCEL => self.handle_cancel(id, header.flags, fixed(payload, "cancel")?, events),
            frame::PING => {
                self.pong = Some(fixed(payload, "ping")?);
                Ok(())
            }
            // That it came is what counts.
            frame::PONG => Ok(()),
            frame::GO_AWAY => {
                let path = std::str::from_utf8(payload).map_err(|_| ConnectionError::Malformed("go-away"))?;
                events.go_away((!path.is_empty()).then_some(path), header.flags & frame::FLAG_BACK != 0);
                Ok(())
            }
            frame::HELLO if self.peer.is_none() => {
                let peer = hello::decode(payload, &self.config)?;
                self.send_credit = u64::from(peer.connection_credit);
                self.peer = Some(peer);
                Ok(())
            }
            frame::HELLO => Err(ConnectionError::Malformed("second hello")),
            // A later release's frame.
            _ => Ok(()),
        }
    }

    fn handle_window(&mut self, id: StreamId, amount: [u8; 4]) -> Result<(), ConnectionError> {
        let amount = u64::from(u32::from_le_bytes(amount));
        // Far beyond what a peer can have taken, far below overflow.
        const MOST: u64 = 1 << 40;
        if id.0 == 0 {
            self.send_credit += amount;
            self.credit_blocked = false;
            return if self.send_credit > MOST { Err(ConnectionError::CreditOverflow) } else { Ok(()) };
        }
        let Some(stream) = self.streams.get_mut(&id) else { return self.check_closed(id) };
        stream.send_credit += amount;
        if stream.send_credit > MOST {
            return Err(ConnectionError::CreditOverflow);
        }
        if let Some(at) = stream.stalls_at.take() {
            self.timers.clear(at, id, crate::timers::TimerKind::Stall);
            self.mark_ready(id);
        }
        Ok(())
    }

    fn handle_cancel(
        &mut self,
        id: StreamId,
        flags: u8,
        reason: [u8; 2],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let reason = CancelReason::from_wire(u16::from_le_bytes(reason));
        let Some(stream) = self.streams.get_mut(&id) else { return self.check_closed(id) };
        if stream.ours {
            return Err(ConnectionError::BadStream(id.0));
        }
        if flags & frame::FLAG_KILL == 0 {
            match &mut stream.data {
                Some(data) => events.cancelled(data, id, CancelKind::Stop, reason),
                // Its request is not here yet: nothing has started that could stop early.
                None => {
                    let failure = crate::Failure {
                        code: crate::FailureCode::Cancelled,
                        detail: reason.to_wire(),
                        text: "stopped before it started".to_owned(),
                    };
                    self.remove(id);
                    self.put_failure(id, &failure);
                }
            }
        } else if let Some(stream) = self.remove(id)
            && let Some(mut data) = stream.data
        {
            events.cancelled(&mut data, id, CancelKind::Kill, reason);
        }
        Ok(())
    }

    /// Frames for a stream that has just been closed here are fine; for one that never was are not.
    pub(super) fn check_closed(&self, id: StreamId) -> Result<(), ConnectionError> {
        let known = if id.0 % 2 == self.parity { id.0 < self.next_id } else { id.0 <= self.last_peer_id };
        if known && id.0 != 0 { Ok(()) } else { Err(ConnectionError::BadStream(id.0)) }
    }
}

fn fixed<const N: usize>(payload: &[u8], what: &'static str) -> Result<[u8; N], ConnectionError> {
    payload.first_chunk::<N>().copied().ok_or(ConnectionError::Malformed(what))
}
