//! The task of a connection: reads, waits for the socket, keeps time.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use dynamo_wire::{CancelReason, ConnectionError};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::tcp::OwnedReadHalf,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{inlet::Inlet, link::Link};

/// One read fills at most this; it holds the frames of a step of thousands of streams.
const READ_BUFFER: usize = 128 * 1024;
/// Times that a connection writes and reads before other tasks get their turn: a long message takes milliseconds, and
/// each round a tenth of one.
const ROUNDS: usize = 2;
/// For the last output of a connection that is closed by this end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

enum End {
    Shutdown,
    Lost(String),
}

/// Runs a connection to its end.
pub(super) async fn drive(link: Arc<Link>, mut read: OwnedReadHalf) {
    let scope = link.shared.scope.clone();
    let mut cancelled = pin!(scope.cancelled());
    let mut sleep = pin!(sleep_until(Instant::from_std(link.core().armed)));
    let mut inlet = Inlet::new(link.clone());
    let mut buffer = vec![0; READ_BUFFER];

    let end = poll_fn(|cx| {
        link.kick.register(cx.waker());
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Shutdown);
        }
        for _ in 0..ROUNDS {
            let mut idle = true;
            match link.poll_write(cx) {
                Poll::Ready(Ok(more)) => idle = !more,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(format!("writing failed: {error}"))),
                Poll::Pending => {}
            }
            let (broken, accepts_input) = {
                let core = link.core();
                (core.broken, core.wire.accepts_input())
            };
            if let Some(why) = broken {
                return Poll::Ready(End::Lost(why.to_owned()));
            }
            if accepts_input {
                let mut bytes = ReadBuf::new(&mut buffer);
                match Pin::new(&mut read).poll_read(cx, &mut bytes) {
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(End::Lost(format!("reading failed: {error}")));
                    }
                    Poll::Ready(Ok(())) if bytes.filled().is_empty() => {
                        return Poll::Ready(End::Lost("closed by the peer".to_owned()));
                    }
                    Poll::Ready(Ok(())) => {
                        if let Err(error) = inlet.input(bytes.filled()) {
                            return Poll::Ready(End::Lost(error.to_string()));
                        }
                        idle = false;
                    }
                    Poll::Pending => {}
                }
            }
            if idle {
                match poll_timers(&link, &mut inlet, sleep.as_mut(), cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(error.to_string())),
                }
            }
        }
        // There is more; the readers that were woken come first.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;

    let reason = match end {
        End::Shutdown => {
            // What is finished should arrive; a peer that does not read is not waited for long.
            let _ = timeout(LAST_OUTPUT, last_output(&link)).await;
            CancelReason::Shutdown
        }
        End::Lost(why) => {
            let streams = link.core().wire.streams();
            if streams > 0 || why != "closed by the peer" {
                link.shared.metrics.errors.inc();
                tracing::warn!(connection = link.number, streams, "request plane connection lost: {why}");
            }
            CancelReason::Disconnected
        }
    };
    link.close(reason);
}

/// Ready when there was something to do. Input that waits has been read before, so that a process that was stopped for
/// a while does not take its peer for dead.
fn poll_timers(
    link: &Link,
    inlet: &mut Inlet,
    mut sleep: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), ConnectionError>> {
    {
        let mut core = link.core();
        if !core.overflowed.is_empty() {
            drop(core);
            return Poll::Ready(inlet.timeout());
        }
        let next = core.wire.next_timeout();
        // An alarm that goes off early costs less than setting it anew at every input.
        if next < core.armed || sleep.is_elapsed() {
            core.armed = next;
            sleep.as_mut().reset(Instant::from_std(next));
        }
    }
    sleep.poll(cx).map(|()| inlet.timeout())
}

async fn last_output(link: &Link) -> std::io::Result<()> {
    while poll_fn(|cx| link.poll_write(cx)).await? {
        link.writable().await?;
    }
    Ok(())
}
