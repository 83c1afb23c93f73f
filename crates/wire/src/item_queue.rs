//! Items that wait: for credit at the sender, for their reader at the receiver.

use std::collections::VecDeque;

use bytes::Bytes;

/// What an item costs beside its bytes: the length before it in a queue, so that credit covers memory exactly.
pub const ITEM_OVERHEAD: usize = 4;
/// Stands in the place of an item that lies in `messages`.
const MESSAGE_MARK: u32 = u32::MAX;
/// Room that an emptied queue keeps; more was a burst.
const KEEP: usize = 16 * 1024;

/// A long item that came in parts, and what it holds of the connection's bounds until it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The item.
    pub bytes: Bytes,
    /// Credit to return when it is taken.
    pub owed: u32,
    /// Whether it holds reassembly budget.
    pub loaned: bool,
}

/// The first item of a queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Lies in the queue itself.
    Small(&'a [u8]),
    /// Lies apart.
    Message(&'a Message),
}

/// A queue of items, the small ones in one buffer.
#[derive(Debug, Default)]
pub struct ItemQueue {
    bytes: Vec<u8>,
    head: usize,
    messages: VecDeque<Message>,
    message_bytes: usize,
}

impl ItemQueue {
    /// Appends a small item.
    #[inline]
    pub fn push(&mut self, item: &[u8]) {
        self.make_room(ITEM_OVERHEAD + item.len());
        self.bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(item);
    }

    /// Appends a long item.
    pub fn push_message(&mut self, message: Message) {
        self.make_room(ITEM_OVERHEAD);
        self.bytes.extend_from_slice(&MESSAGE_MARK.to_le_bytes());
        self.message_bytes += message.bytes.len();
        self.messages.push_back(message);
    }

    /// The first item.
    #[inline]
    pub fn front(&self) -> Option<Item<'_>> {
        let (&mark, rest) = self.bytes.get(self.head..)?.split_first_chunk::<ITEM_OVERHEAD>()?;
        match u32::from_le_bytes(mark) {
            MESSAGE_MARK => self.messages.front().map(Item::Message),
            len => rest.get(..len as usize).map(Item::Small),
        }
    }

    /// Removes the first item, which the caller has used through [`ItemQueue::front`].
    #[inline]
    pub fn pop(&mut self) -> Option<Message> {
        let mut message = None;
        match self.front()? {
            Item::Small(item) => self.head += ITEM_OVERHEAD + item.len(),
            Item::Message(_) => {
                self.head += ITEM_OVERHEAD;
                message = self.messages.pop_front();
                self.message_bytes -= message.as_ref().map_or(0, |message| message.bytes.len());
            }
        }
        if self.head == self.bytes.len() {
            self.reset();
        }
        message
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.message_bytes = 0;
        self.reset();
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that wait in the queue itself, overhead included: the credit that small items hold.
    pub fn small_bytes(&self) -> usize {
        self.bytes.len() - self.head - self.messages.len() * ITEM_OVERHEAD
    }

    /// Bytes held, long items included.
    #[inline]
    pub fn held(&self) -> usize {
        self.bytes.len() - self.head + self.message_bytes
    }

    /// The long items that wait.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter()
    }

    fn reset(&mut self) {
        self.head = 0;
        if self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
        if self.messages.capacity() > 64 {
            self.messages = VecDeque::new();
        }
    }

    #[inline]
    fn make_room(&mut self, len: usize) {
        if self.head > 0
            && self.bytes.len() + len > self.bytes.capacity()
            && self.head >= self.bytes.len() / 2
        {
            self.bytes.copy_within(self.head.., 0);
            self.bytes.truncate(self.bytes.len() - self.head);
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_across_sizes() {
        let mut queue = ItemQueue::default();
        for round in 0..100u8 {
            queue.push(&[round; 7]);
            queue.push_message(Message { bytes: vec![round; 100].into(), owed: 3, loaned: true });
            queue.push(&[]);
            if round >= 10 {
                let old = round - 10;
                assert_eq!(queue.front(), Some(Item::Small(&[old; 7])));
                assert_eq!(queue.pop(), None);
                assert_eq!(queue.pop().unwrap().bytes, vec![old; 100]);
                assert_eq!(queue.front(), Some(Item::Small(&[])));
                queue.pop();
            }
        }
        assert_eq!(queue.held(), 10 * (4 + 7 + 4 + 100 + 4));
        assert_eq!(queue.small_bytes(), 10 * (4 + 7 + 4));
        queue.clear();
        assert!(queue.is_empty() && queue.held() == 0 && queue.front().is_none() && queue.pop().is_none());
    }

    #[test]
    fn a_burst_does_not_stay_in_memory() {
        let mut queue = ItemQueue::default();
        for _ in 0..1000 {
            queue.push(&[0; 1000]);
        }
        while !queue.is_empty() {
            queue.pop();
        }
        assert!(queue.bytes.capacity() <= KEEP);
    }
}
