//! Credit that readers give back, and the budget for long messages.

use crate::{Connection, Message, StreamId};

impl<D> Connection<D> {
    /// A stream's reader took this much of small items, each its length and [`crate::ITEM_OVERHEAD`]. The
    /// connection's part is given back apart, with [`Connection::consumed_connection`].
    pub fn consumed(&mut self, id: StreamId, bytes: u32) {
        let window = self.config.stream_credit;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.recv_pending += bytes;
            // Announcing every quarter costs little, and never lets a sender run dry that waits for its reader alone.
            let more_may_come = stream.recv_open || stream.reassembly.is_some();
            if stream.recv_pending >= window / 4 && more_may_come && !stream.window_queued {
                stream.window_queued = true;
                self.windows.push_back(id);
            }
        }
    }

    /// Readers took this much on all streams together, whether these are still open or not.
    pub fn consumed_connection(&mut self, bytes: u64) {
        self.recv_pending += bytes;
    }

    /// A reader took a message, whether its stream is still open or not.
    pub fn take_message(&mut self, id: StreamId, message: &Message) {
        self.recv_pending += u64::from(message.owed);
        self.consumed(id, message.owed);
        if message.loaned {
            self.budget += message.bytes.len() as u64;
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.has_loan = false;
            }
            self.ask_for_loan(id);
            self.grant_loans();
        }
    }

    /// Whether the connection's window is due for announcement.
    pub(super) fn connection_window_due(&self) -> bool {
        self.recv_pending >= u64::from(self.config.connection_credit / 4)
    }

    /// Lets the stream's message in progress use the budget, now or when its turn comes.
    pub(super) fn ask_for_loan(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(reassembly) = &stream.reassembly else { return };
        let fits_window = reassembly.total as u64 <= u64::from(self.config.stream_credit / 2);
        if fits_window || reassembly.loaned || stream.has_loan || stream.awaits_loan {
            return;
        }
        stream.awaits_loan = true;
        self.loan_line.push_back(id);
        self.grant_loans();
    }

    /// Hands out budget in the order in which it was asked for.
    pub(super) fn grant_loans(&mut self) {
        while let Some(&id) = self.loan_line.front() {
            if let Some(stream) = self.streams.get_mut(&id)
                && let Some(reassembly) = &mut stream.reassembly
            {
                let total = reassembly.total as u64;
                if total > self.budget {
                    return;
                }
                self.budget -= total;
                reassembly.loaned = true;
                reassembly.bytes.reserve_exact(reassembly.total - reassembly.bytes.len());
                let owed = std::mem::take(&mut reassembly.owed);
                stream.has_loan = true;
                stream.awaits_loan = false;
                self.recv_pending += u64::from(owed);
                self.consumed(id, owed);
            }
            self.loan_line.pop_front();
        }
    }
}
