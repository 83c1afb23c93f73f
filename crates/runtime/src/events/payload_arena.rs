use bytes::{Bytes, BytesMut};

/// Small payloads share allocations of this size. One that a consumer keeps holds on to its neighbours; consumers take
/// events in order, so what waits lies close together.
const CHUNK: usize = 64 << 10;

/// Payloads of more bytes than this get an allocation of their own.
const SMALL: usize = CHUNK / 8;

/// Copies payloads off the wire. Once warm, and while consumers keep up, small ones allocate nothing: a chunk whose
/// payloads are all gone is filled again.
#[derive(Default)]
pub(super) struct PayloadArena {
    chunk: BytesMut,
}

impl PayloadArena {
    pub(super) fn copy(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() > SMALL {
            return Bytes::copy_from_slice(payload);
        }
        if self.chunk.capacity() < payload.len() && !self.chunk.try_reclaim(CHUNK) {
            self.chunk = BytesMut::with_capacity(CHUNK);
        }
        self.chunk.extend_from_slice(payload);
        self.chunk.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_what_was_copied_whatever_lies_beside_them() {
        let mut arena = PayloadArena::default();
        let payloads: Vec<Vec<u8>> =
            (0..300usize).map(|number| vec![number as u8; number * 131 % (SMALL + 500)]).collect();
        let copies: Vec<Bytes> = payloads.iter().map(|payload| arena.copy(payload)).collect();
        assert!(copies.iter().zip(&payloads).all(|(copy, payload)| copy[..] == payload[..]));
    }

    #[test]
    fn a_chunk_is_filled_again_once_its_payloads_are_gone() {
        let mut arena = PayloadArena::default();
        let first = arena.copy(&[1; 1000]).as_ptr();
        let mut again = 0;
        for _ in 0..10 * CHUNK / 1000 {
            again += usize::from(arena.copy(&[2; 1000]).as_ptr() == first);
        }
        assert!(again >= 9, "{again}");
        let kept = arena.copy(&[7; 1000]);
        for _ in 0..10 * CHUNK / 1000 {
            arena.copy(&[8; 1000]);
        }
        assert!(kept.iter().all(|&byte| byte == 7));
    }
}
