//! The progress bar.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{args::ProgressMode, meter::Meter};

/// How often the bar is drawn: often enough to look alive, seldom enough not to be measured.
pub(crate) const PERIOD: Duration = Duration::from_millis(250);

/// How far a run is.
pub(crate) struct Progress {
    bar: ProgressBar,
    count: Option<u64>,
    window: Option<Duration>,
}

impl Progress {
    /// A bar towards `count` requests or the end of `window`; hidden unless standard error is a terminal.
    pub(crate) fn new(
        mode: ProgressMode,
        what: String,
        count: Option<u64>,
        window: Option<Duration>,
    ) -> Self {
        let shown = mode == ProgressMode::Auto && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let length = count.or_else(|| window.map(|window| window.as_millis() as u64));
        let bar = ProgressBar::with_draw_target(length, target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:32}] {percent:>3} % {elapsed} {msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Self { bar, count, window }
    }

    /// Draws where the run is.
    pub(crate) fn draw(&self, meter: &Meter) {
        if self.bar.is_hidden() {
            return;
        }
        let elapsed = meter.start.elapsed();
        let (done, failed, open, events) = meter.with(|counts| {
            let failed = counts.failed();
            let done = counts.ok + failed;
            (done, failed, counts.sent - done, counts.events)
        });
        match (self.count, self.window) {
            (Some(_), _) => self.bar.set_position(done),
            (None, window) => {
                let most = window.unwrap_or(elapsed);
                self.bar.set_position(elapsed.min(most).as_millis() as u64);
            }
        }
        let rate = events as f64 / elapsed.as_secs_f64().max(0.001);
        self.bar.set_message(format!("{done} done, {failed} failed, {open} in flight, {rate:.0} events/s"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
