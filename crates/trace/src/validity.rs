//! When a point counts: at least 98 % of the offered load was served, and the generator was not the limit.

use crate::report::{LoopKind, Report};

/// The share of the offered load that must be served.
const SERVED: f64 = 0.98;
/// Above this share of its threads' time the generator is taken to be the limit.
const OWN_CPU: f64 = 0.9;
/// In a shorter run, setting up is most of the generator's time and says nothing about its limit.
pub(crate) const JUDGED_SECONDS: f64 = 0.1;

/// Why the point does not count; empty if it does.
pub(crate) fn reasons(report: &Report, max_lateness_ms: f64, ignore_eos: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let requests = &report.requests;
    if requests.offered == 0 {
        reasons.push("no request was offered".into());
        return reasons;
    }
    if requests.served_share < SERVED {
        let how = match report.loop_kind {
            LoopKind::Closed => "of the requests were answered",
            _ => "of the offered requests were answered within the window and the usual time of an answer",
        };
        reasons.push(format!("only {:.1} % {how}; 98 % are needed", requests.served_share * 100.0));
    }
    let tokens = &report.tokens;
    if ignore_eos && (tokens.completion as f64) < SERVED * tokens.asked as f64 {
        reasons.push(format!("{} tokens were asked for and {} came", tokens.asked, tokens.completion));
    }
    let own = &report.generator;
    if own.cpu_share > OWN_CPU && report.wall_seconds >= JUDGED_SECONDS {
        reasons.push(format!(
            "the generator was the limit: it took {:.0} % of its {} thread(s)",
            own.cpu_share * 100.0,
            own.threads
        ));
    }
    if report.loop_kind != LoopKind::Closed && own.lateness.p99_ms > max_lateness_ms {
        reasons.push(format!(
            "the generator was late: one in a hundred requests went out more than {:.1} ms after it was due, \
             {max_lateness_ms} ms are allowed",
            own.lateness.p99_ms
        ));
    }
    if let Some(open) = &report.open_streams
        && (open.open_at_end as f64) < SERVED * f64::from(open.asked)
    {
        reasons.push(format!(
            "of {} streams to hold open, {} were open at the end",
            open.asked, open.open_at_end
        ));
    }
    for server in report.servers.iter().filter(|server| server.gone) {
        reasons.push(format!("a process of {} ended during the run", server.name));
    }
    reasons
}

#[cfg(test)]
mod tests;
