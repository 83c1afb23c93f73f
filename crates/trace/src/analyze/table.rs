//! An analysis for people.

use std::fmt::Write;

use super::Analysis;
use crate::summary::Summary;

/// As text.
#[must_use]
pub(crate) fn table(analysis: &Analysis) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<24}{text}");
    };
    let sessions = match analysis.sessions {
        0 => String::new(),
        sessions => format!(" in {sessions} sessions"),
    };
    line(
        "requests",
        format!(
            "{}{sessions} over {:.1} s, {:.2} a second",
            analysis.requests, analysis.seconds, analysis.requests_per_second
        ),
    );
    line("tokens", format!("{} of prompts, {} of answers", analysis.input_tokens, analysis.output_tokens));
    line(
        "blocks",
        format!(
            "{} of {} tokens, {} different, {} of them in more than one prompt",
            analysis.blocks, analysis.block_size, analysis.distinct_blocks, analysis.shared_blocks
        ),
    );
    let first: Vec<String> =
        analysis.first_blocks.iter().map(|(id, share)| format!("{id} ({:.1} %)", share * 100.0)).collect();
    line("first blocks", first.join(", "));
    line("cached share", format!("{:.4} of the prompt blocks in an unbounded cache", analysis.cached_share));
    for (blocks, share) in &analysis.cached_share_by_blocks {
        line("", format!("{share:.4} in a cache of {blocks} blocks"));
    }
    let _ = write!(out, "\n{:<24}", "");
    for column in ["mean", "std", "min", "p25", "median", "p75", "p99", "max"] {
        let _ = write!(out, "{column:>11}");
    }
    out.push('\n');
    row(&mut out, "input length", &analysis.input_length, 1);
    row(&mut out, "context length", &analysis.context_length, 1);
    row(&mut out, "unique prompt length", &analysis.unique_prompt_length, 1);
    row(&mut out, "output length", &analysis.output_length, 1);
    row(&mut out, "theoretical hit rate", &analysis.hit_rate, 4);
    out
}

fn row(out: &mut String, name: &str, summary: &Summary, digits: usize) {
    let Summary { mean, std, min, p25, p50, p75, p99, max, .. } = *summary;
    let _ = write!(out, "{name:<24}");
    for value in [mean, std, min, p25, p50, p75, p99, max] {
        let _ = write!(out, "{value:>11.digits$}");
    }
    out.push('\n');
}
