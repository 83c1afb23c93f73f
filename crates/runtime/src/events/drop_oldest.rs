use std::collections::VecDeque;

/// A queue bounded in items and in bytes. When full, the oldest items make room.
pub(super) struct DropOldest<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    max_items: usize,
    max_bytes: usize,
}

impl<T> DropOldest<T> {
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self { items: VecDeque::new(), bytes: 0, max_items, max_bytes }
    }

    /// Appends; returns how many were dropped for it. The newest always stays, whatever its size.
    pub(super) fn push(&mut self, item: T, size: usize) -> usize {
        self.items.push_back((item, size));
        self.bytes += size;
        let mut dropped = 0;
        while self.items.len() > 1 && (self.items.len() > self.max_items || self.bytes > self.max_bytes) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let (item, size) = self.items.pop_front()?;
        self.bytes -= size;
        // A burst's memory is given back once it has been served.
        if self.items.is_empty() && self.items.capacity() > 4096 {
            self.items = VecDeque::new();
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::DropOldest;

    #[test]
    fn the_oldest_make_room_by_count_and_by_bytes() {
        let mut queue = DropOldest::new(3, 100);
        assert_eq!((1..=5).map(|n| queue.push(n, 10)).sum::<usize>(), 2);
        assert_eq!(queue.push(6, 85), 2);
        assert_eq!(queue.push(7, 500), 2);
        assert_eq!((queue.pop(), queue.pop()), (Some(7), None));
        assert_eq!(queue.push(8, 100), 0);
    }
}
