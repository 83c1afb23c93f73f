//! How long blocks are on the way from one engine to another.

use std::time::Duration;

/// No transfer is simulated to take longer, so that times can be added without overflow.
pub(crate) const LONGEST_TRANSFER: Duration = Duration::from_secs(24 * 3600);

/// The time by the number of blocks. Transfers do not slow one another down.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransferTime {
    seconds_per_block: f64,
}

impl TransferTime {
    /// Blocks of so many bytes over a link of so many GB (10⁹ bytes) per second; 0 of either is no time.
    /// `speedup_ratio` divides all times; 0 makes them nothing.
    pub fn new(bytes_per_block: u64, gigabytes_per_second: f64, speedup_ratio: f64) -> Self {
        if gigabytes_per_second <= 0.0 || speedup_ratio <= 0.0 {
            return Self::default();
        }
        Self { seconds_per_block: bytes_per_block as f64 / (gigabytes_per_second * 1e9) / speedup_ratio }
    }

    /// From the first byte of the first of `blocks` to the last byte of the last.
    pub fn of(&self, blocks: usize) -> Duration {
        let seconds = self.seconds_per_block * blocks as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_TRANSFER).min(LONGEST_TRANSFER)
    }
}
