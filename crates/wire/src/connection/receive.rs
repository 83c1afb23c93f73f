//! Requests, items and messages as they come in.

use std::time::Instant;

use bytes::Bytes;

use super::Events;
use crate::{
    Connection, ConnectionError, Failure, FailureCode, Message, Request, StreamId,
    frame::{self, Reader, take_varint},
    item_queue::ITEM_OVERHEAD,
    stream::{Reassembly, Stream},
    timers::TimerKind,
};

impl<D> Connection<D> {
    #[inline]
    pub(super) fn handle_items(
        &mut self,
        mut payload: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        while !payload.is_empty() {
            let id = StreamId(take_varint(&mut payload)?);
            let head = take_varint(&mut payload)?;
            let (data, rest) = payload
                .split_at_checked((head >> frame::ENTRY_KIND_BITS) as usize)
                .ok_or(ConnectionError::Malformed("entry"))?;
            payload = rest;
            match head & ((1 << frame::ENTRY_KIND_BITS) - 1) {
                frame::ENTRY_ITEM => self.handle_item(id, data, events)?,
                frame::ENTRY_END => self.handle_end(id, events)?,
                frame::ENTRY_FAIL => self.handle_fail(id, data, events)?,
                frame::ENTRY_ACCEPTED => self.handle_accepted(id, events)?,
                // A later release's entry.
                _ => {}
            }
        }
        Ok(())
    }

    #[inline]
    fn handle_item(
        &mut self,
        id: StreamId,
        item: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let cost = (item.len() + ITEM_OVERHEAD) as u64;
        self.recv_credit = self.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            self.recv_pending += cost;
            return self.check_closed(id);
        };
        match &mut stream.data {
            Some(data) if stream.recv_open && stream.reassembly.is_none() => {
                stream.recv_credit =
                    stream.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
                events.item(data, id, item);
                Ok(())
            }
            _ => Err(ConnectionError::BadStream(id.0)),
        }
    }

    fn handle_end(&mut self, id: StreamId, events: &mut impl Events<D>) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.get_mut(&id) else { return self.check_closed(id) };
        if !stream.recv_open || stream.reassembly.is_some() {
            return Err(ConnectionError::BadStream(id.0));
        }
        if !stream.ours {
            stream.recv_open = false;
            if let Some(data) = &mut stream.data {
                events.ended(data, id);
            }
        } else if let Some(mut data) = self.remove(id).and_then(|stream| stream.data) {
            events.ended(&mut data, id);
        }
        Ok(())
    }

    fn handle_fail(
        &mut self,
        id: StreamId,
        data: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let failure = Failure::decode(data)?;
        match self.streams.get(&id) {
            None => self.check_closed(id),
            Some(stream) if !stream.ours => Err(ConnectionError::BadStream(id.0)),
            Some(_) => {
                if let Some(mut data) = self.remove(id).and_then(|stream| stream.data) {
                    events.failed(&mut data, id, failure);
                }
                Ok(())
            }
        }
    }

    fn handle_accepted(&mut self, id: StreamId, events: &mut impl Events<D>) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.get_mut(&id) else { return self.check_closed(id) };
        if !stream.ours || stream.accepted {
            return Err(ConnectionError::BadStream(id.0));
        }
        stream.accepted = true;
        if let Some(data) = &mut stream.data {
            events.accepted(data, id);
        }
        Ok(())
    }

    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        id: StreamId,
        flags: u8,
        payload: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        if id.0 == 0 || id.0 % 2 == self.parity || id.0 <= self.last_peer_id {
            return Err(ConnectionError::BadStream(id.0));
        }
        self.last_peer_id = id.0;
        let cost = payload.len() as u64;
        self.recv_credit = self.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
        let (request, total, inline) = Request::decode_head(payload)?;
        let refusal = if self.theirs_open >= self.config.max_streams {
            Some(Failure::new(FailureCode::Overloaded, "too many streams on the connection"))
        } else if total > self.config.max_message {
            Some(Failure::new(
                FailureCode::TooLarge,
                format!("payloads have {} bytes at most", self.config.max_message),
            ))
        } else {
            None
        };
        if let Some(failure) = refusal {
            self.recv_pending += cost;
            self.put_failure(id, &failure);
            return Ok(());
        }
        let peer_credit = self.peer.as_ref().map_or(0, |peer| peer.stream_credit);
        let mut stream = Stream::new(false, peer_credit, self.config.stream_credit);
        stream.recv_credit = stream.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
        stream.recv_open = flags & frame::FLAG_MORE != 0;
        stream.deadline = request.time_left.and_then(|left| now.checked_add(left));
        if let Some(at) = stream.deadline {
            self.timers.set(at, id, TimerKind::Deadline);
        }
        stream.reassembly = Some(Box::new(Reassembly {
            total: total as usize,
            bytes: inline.to_vec(),
            owed: cost as u32,
            loaned: false,
            request: Some(Box::new(request)),
        }));
        self.theirs_open += 1;
        self.streams.insert(id, stream);
        self.advance_reassembly(id, events)
    }

    pub(super) fn handle_part(
        &mut self,
        id: StreamId,
        flags: u8,
        payload: &[u8],
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let cost = payload.len() as u64;
        self.recv_credit = self.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            self.recv_pending += cost;
            return self.check_closed(id);
        };
        stream.recv_credit = stream.recv_credit.checked_sub(cost).ok_or(ConnectionError::CreditExceeded)?;
        let mut bytes = payload;
        if flags & frame::FLAG_FIRST != 0 {
            let mut reader = Reader::new(payload, "message");
            let total = reader.u32()?;
            bytes = reader.rest();
            if total > self.config.max_message {
                return Err(ConnectionError::MessageTooLarge(u64::from(total)));
            }
            if !stream.recv_open || stream.data.is_none() || stream.reassembly.is_some() || bytes.is_empty() {
                return Err(ConnectionError::BadStream(id.0));
            }
            stream.reassembly = Some(Box::new(Reassembly {
                total: total as usize,
                bytes: Vec::new(),
                owed: 0,
                loaned: false,
                request: None,
            }));
        }
        let Some(reassembly) = &mut stream.reassembly else { return Err(ConnectionError::BadStream(id.0)) };
        if bytes.len() > reassembly.total - reassembly.bytes.len() {
            return Err(ConnectionError::Malformed("message"));
        }
        reassembly.bytes.extend_from_slice(bytes);
        reassembly.owed += cost as u32;
        self.advance_reassembly(id, events)
    }

    /// Hands over a message that is complete; otherwise lets more of it come.
    fn advance_reassembly(
        &mut self,
        id: StreamId,
        events: &mut impl Events<D>,
    ) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Some(reassembly) = &mut stream.reassembly else { return Ok(()) };
        if reassembly.bytes.len() < reassembly.total {
            if reassembly.loaned {
                let owed = std::mem::take(&mut reassembly.owed);
                self.recv_pending += u64::from(owed);
                self.consumed(id, owed);
            } else {
                self.ask_for_loan(id);
            }
            return Ok(());
        }
        let Some(reassembly) = stream.reassembly.take() else { return Ok(()) };
        stream.awaits_loan = false;
        let message = Message {
            bytes: Bytes::from(reassembly.bytes),
            owed: reassembly.owed,
            loaned: reassembly.loaned,
        };
        let Some(request) = reassembly.request else {
            if let Some(data) = &mut stream.data {
                events.message(data, id, message);
            }
            return Ok(());
        };
        let more = stream.recv_open;
        // A request is taken as it is handed over.
        self.take_message(id, &message);
        match events.request(id, Request { payload: message.bytes, ..*request }, more) {
            Ok(data) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.data = Some(data);
                }
            }
            Err(failure) => {
                self.remove(id);
                self.put_failure(id, &failure);
            }
        }
        Ok(())
    }
}
