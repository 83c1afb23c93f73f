//! Waking up on time: the runtime's own timer ticks once a millisecond, which would be part of every measured time.

use std::time::Instant;

/// A timer with the precision of the system.
pub(crate) struct Alarm {
    #[cfg(target_os = "linux")]
    precise: Option<precise::Timer>,
}

impl Alarm {
    /// The precise timer where there is one, else the runtime's.
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            precise: precise::Timer::new().ok(),
        }
    }

    /// Waits until `due`; at once if that is past.
    pub(crate) async fn until(&self, due: Instant) {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.precise
            && timer.wait(left).await.is_ok()
        {
            return;
        }
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(target_os = "linux")]
mod precise {
    use std::{
        io,
        os::fd::{AsFd, AsRawFd, RawFd},
        time::Duration,
    };

    use nix::sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    };
    use tokio::io::unix::AsyncFd;

    pub(super) struct Timer(AsyncFd<Descriptor>);

    struct Descriptor(TimerFd);

    impl AsRawFd for Descriptor {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            let timer =
                TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
            // Deprecated because a type may hand out a descriptor that is not its own; this one owns it, and the
            // replacement is an unsafe function.
            #[allow(deprecated)]
            let registered = AsyncFd::new(Descriptor(timer))?;
            Ok(Self(registered))
        }

        /// `left` is not zero: a zero would disarm the timer.
        pub(super) async fn wait(&self, left: Duration) -> io::Result<()> {
            let timer = &self.0.get_ref().0;
            timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
            loop {
                let mut ready = self.0.readable().await?;
                // Readiness may be left over from an earlier wait: only a read that succeeds counts.
                if let Ok(read) = ready.try_io(|fd| fd.get_ref().0.wait().map_err(io::Error::from)) {
                    return read;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_never_rings_early_also_after_a_wait_that_was_given_up() {
        let alarm = Alarm::new();
        alarm.until(Instant::now()).await;
        for _ in 0..3 {
            let given_up = alarm.until(Instant::now() + Duration::from_millis(1));
            let _ = tokio::time::timeout(Duration::from_micros(100), given_up).await;
            let due = Instant::now() + Duration::from_millis(5);
            alarm.until(due).await;
            assert!(Instant::now() >= due);
        }
    }
}
