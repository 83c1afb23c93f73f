//! What goes to the peer, and in which order.

use std::time::Instant;

use bytes::{Buf, Bytes};

use crate::{
    Connection, Item, MAX_FRAME_PAYLOAD, StreamId,
    frame::{self, ItemsFrames},
    hello,
    item_queue::ITEM_OVERHEAD,
    stream::{Ending, Stream},
    timers::TimerKind,
};

/// Output taken at once, roughly: what a small item may find before it in this process. Two frames, so that a write
/// is worth its call.
const OUTPUT_TARGET: usize = 64 * 1024;
/// Output that may wait before input is no longer accepted. What credit does not cover (ends, failures, cancels) stays
/// below it with a peer that reads; another one blocks itself.
const OUTPUT_LIMIT: usize = 4 * 1024 * 1024;
/// The length before a long item.
const TOTAL_LEN: usize = 4;

/// How a stream's turn ended.
enum Turn {
    Again,
    Idle,
    NoStreamCredit,
    NoConnectionCredit,
    Ended,
}

impl<D> Connection<D> {
    /// Whether [`Connection::take_output`] would give anything.
    pub fn has_output(&self) -> bool {
        !self.hello_sent
            || self.peer.is_some()
                && (!self.items.is_empty()
                    || !self.control.is_empty()
                    || self.pong.is_some()
                    || !self.windows.is_empty()
                    || self.connection_window_due()
                    || !self.ready.is_empty() && !self.credit_blocked)
    }

    /// Whether there is room to react to more input. If not, the caller writes first.
    pub fn accepts_input(&self) -> bool {
        self.control.len() + self.items.len() < OUTPUT_LIMIT
    }

    /// Replaces `out` by the next bytes for the peer: control frames, then the items of the step, then long messages
    /// and whatever waited, in turn by stream, about 64 KiB at a time. Empty if there is nothing.
    pub fn take_output(&mut self, now: Instant, out: &mut Vec<u8>) {
        out.clear();
        if !self.hello_sent {
            self.hello_sent = true;
            hello::encode(&self.config, out);
        }
        if self.peer.is_none() {
            return;
        }
        if let Some(token) = self.pong.take() {
            frame::put(out, frame::PONG, 0, 0, &token);
        }
        out.append(&mut self.control);
        self.put_windows(out);
        self.items_frames.close(&mut self.items);
        if out.is_empty() {
            std::mem::swap(out, &mut self.items);
        } else {
            out.append(&mut self.items);
        }
        if !self.credit_blocked {
            self.take_turns(now, out);
        }
    }

    fn put_windows(&mut self, out: &mut Vec<u8>) {
        if self.connection_window_due() {
            let amount = u32::try_from(self.recv_pending).unwrap_or(u32::MAX);
            self.recv_pending -= u64::from(amount);
            self.recv_credit += u64::from(amount);
            frame::put(out, frame::WINDOW, 0, 0, &amount.to_le_bytes());
        }
        while let Some(id) = self.windows.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.window_queued = false;
                let amount = std::mem::take(&mut stream.recv_pending);
                stream.recv_credit += u64::from(amount);
                frame::put(out, frame::WINDOW, 0, id.0, &amount.to_le_bytes());
            }
        }
    }

    fn take_turns(&mut self, now: Instant, out: &mut Vec<u8>) {
        // At least one turn, so that a flood of small items does not starve the long ones.
        let enough = (out.len() + 1).max(OUTPUT_TARGET);
        while out.len() < enough {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let before = stream.waiting();
            let mut frames = ItemsFrames::default();
            let turn = take_turn(stream, id, &mut self.send_credit, &mut self.spent, &mut frames, out);
            frames.close(out);
            self.waiting -= before - stream.waiting();
            if stream.wants_room && stream.queue.is_empty() {
                stream.wants_room = false;
                self.roomy.push(id);
            }
            match turn {
                Turn::Again => self.ready.push_back(id),
                Turn::Idle => stream.in_ready = false,
                Turn::NoStreamCredit => {
                    stream.in_ready = false;
                    let at = now + self.config.stall_limit;
                    stream.stalls_at = Some(at);
                    self.timers.set(at, id, TimerKind::Stall);
                }
                Turn::NoConnectionCredit => {
                    self.ready.push_front(id);
                    self.credit_blocked = true;
                    return;
                }
                Turn::Ended => {
                    self.remove(id);
                }
            }
        }
    }
}

/// Sends up to a frame's worth of what the stream has waiting.
fn take_turn<D>(
    stream: &mut Stream<D>,
    id: StreamId,
    credit: &mut u64,
    spent: &mut Vec<Bytes>,
    frames: &mut ItemsFrames,
    out: &mut Vec<u8>,
) -> Turn {
    let start = out.len();
    loop {
        let Some(room) = MAX_FRAME_PAYLOAD.checked_sub(out.len() - start).filter(|&room| room > 0) else {
            return Turn::Again;
        };
        let may_send = |overhead: usize, credit: u64, stream_credit: u64, len: usize| {
            let granted = credit.min(stream_credit).saturating_sub(overhead as u64);
            len.min(MAX_FRAME_PAYLOAD - overhead).min(usize::try_from(granted).unwrap_or(usize::MAX))
        };
        let blocked = |stream_credit: u64, needed: usize| {
            if stream_credit < needed as u64 { Turn::NoStreamCredit } else { Turn::NoConnectionCredit }
        };
        if let Some(request) = &mut stream.request {
            let sent = if let Some(head) = &request.head {
                if *credit < head.len() as u64 {
                    return Turn::NoConnectionCredit;
                }
                let sent = may_send(head.len(), *credit, stream.send_credit, request.payload.len());
                let flags = if request.more { frame::FLAG_MORE } else { 0 };
                let frame = frame::begin(out, frame::REQUEST, flags, id.0);
                out.extend_from_slice(head);
                out.extend_from_slice(&request.payload[..sent]);
                frame::end(out, frame);
                let cost = (head.len() + sent) as u64;
                *credit -= cost;
                stream.send_credit -= cost;
                request.head = None;
                sent
            } else {
                let sent = may_send(0, *credit, stream.send_credit, request.payload.len().min(room));
                if sent == 0 && !request.payload.is_empty() {
                    return blocked(stream.send_credit, 1);
                }
                if sent > 0 {
                    frame::put(out, frame::PART, 0, id.0, &request.payload[..sent]);
                    *credit -= sent as u64;
                    stream.send_credit -= sent as u64;
                }
                sent
            };
            if sent == request.payload.len() && request.long {
                spent.push(std::mem::take(&mut request.payload));
            } else {
                request.payload.advance(sent);
            }
            if let Some(reason) = request.stop.take() {
                frame::put(out, frame::CANCEL, 0, id.0, &reason.to_wire().to_le_bytes());
            }
            if request.payload.is_empty() {
                stream.request = None;
            }
            continue;
        }
        match stream.queue.front() {
            Some(Item::Small(item)) => {
                let cost = item.len() + ITEM_OVERHEAD;
                if (*credit).min(stream.send_credit) < cost as u64 {
                    return blocked(stream.send_credit, cost);
                }
                frames.put(out, id, frame::ENTRY_ITEM, item);
                *credit -= cost as u64;
                stream.send_credit -= cost as u64;
                stream.queue.pop();
            }
            Some(Item::Message(message)) => {
                frames.close(out);
                let left = &message.bytes[stream.front_sent..];
                let first = stream.front_sent == 0;
                let overhead = if first { TOTAL_LEN } else { 0 };
                let sent = may_send(overhead, *credit, stream.send_credit, left.len().min(room));
                if sent == 0 {
                    return blocked(stream.send_credit, overhead + 1);
                }
                let frame = frame::begin(out, frame::PART, if first { frame::FLAG_FIRST } else { 0 }, id.0);
                if first {
                    out.extend_from_slice(&(message.bytes.len() as u32).to_le_bytes());
                }
                out.extend_from_slice(&left[..sent]);
                frame::end(out, frame);
                *credit -= (overhead + sent) as u64;
                stream.send_credit -= (overhead + sent) as u64;
                stream.front_sent += sent;
                if stream.front_sent == message.bytes.len() {
                    stream.front_sent = 0;
                    if let Some(message) = stream.queue.pop() {
                        super::keep_long(spent, message.bytes);
                    }
                }
            }
            None => {
                return match stream.ending.take() {
                    None => Turn::Idle,
                    Some(ending) => {
                        put_ending(frames, out, id, &ending);
                        if stream.ours { Turn::Idle } else { Turn::Ended }
                    }
                };
            }
        }
    }
}

pub(super) fn put_ending(frames: &mut ItemsFrames, out: &mut Vec<u8>, id: StreamId, ending: &Ending) {
    match ending {
        Ending::End => frames.put(out, id, frame::ENTRY_END, &[]),
        Ending::Fail(failure) => {
            let mut data = Vec::with_capacity(64);
            failure.encode(&mut data);
            frames.put(out, id, frame::ENTRY_FAIL, &data);
        }
    }
}
