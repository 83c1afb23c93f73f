//! Lets tests mix threads up where an index holds no lock.

#[cfg(not(test))]
#[inline(always)]
pub(super) fn jolt() {}

/// Now and then gives its core away, on threads that [`enable`]d it.
#[cfg(test)]
pub(super) fn jolt() {
    if STATE.get() != 0 {
        // Any sequence does that is not in step with anything.
        let next = STATE.get().wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491);
        STATE.set(next | 1);
        match next >> 60 {
            0 | 1 => std::thread::yield_now(),
            2..6 => (0..next >> 50 & 0x3FF).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }
}

#[cfg(test)]
thread_local! {
    static STATE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
pub(super) fn enable(seed: u64) {
    STATE.set(seed | 1);
}
