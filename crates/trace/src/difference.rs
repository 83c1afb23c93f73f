//! What a token and a request cost, each by itself: by the difference of runs with few and with many tokens.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::Report;

/// The runs and what they come to.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Whether every run counts.
    pub valid: bool,
    /// Why some do not.
    pub reasons: Vec<String>,
    /// Output tokens of the short and of the long runs.
    pub output_tokens: (u32, u32),
    /// Tokens a second in the short runs, median.
    pub few_tokens_per_second: f64,
    /// Tokens a second in the long runs, median.
    pub many_tokens_per_second: f64,
    /// By process name, `generator` for this one; medians over the rounds.
    pub costs: BTreeMap<String, Cost>,
    /// All points in order: short, long, short, long.
    pub points: Vec<Report>,
}

/// The cost of a token and of a request, in core time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Core-microseconds for one more token.
    pub us_per_token: f64,
    /// Core-milliseconds for a request without its tokens.
    pub ms_per_request: f64,
    /// Each round's core-microseconds for one more token.
    pub us_per_token_rounds: Vec<f64>,
    /// Each round's core-milliseconds for a request.
    pub ms_per_request_rounds: Vec<f64>,
    /// Resident bytes at the end of the last run.
    pub rss_bytes: u64,
}

/// Core seconds of one process name in one run, with the run's requests and tokens.
#[derive(Clone, Copy, Debug)]
struct Spent {
    seconds: f64,
    requests: f64,
    tokens: f64,
}

impl Difference {
    pub(crate) fn of(output_tokens: (u32, u32), points: Vec<Report>) -> Self {
        let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
        for round in points.chunks_exact(2) {
            let (few, many) = (spent(&round[0]), spent(&round[1]));
            for (name, few) in &few {
                let Some((token, request)) = many.get(name).and_then(|many| solve(*few, *many)) else {
                    continue;
                };
                let cost = costs.entry(name.clone()).or_default();
                cost.us_per_token_rounds.push(token * 1e6);
                cost.ms_per_request_rounds.push(request * 1e3);
            }
        }
        for (name, cost) in &mut costs {
            cost.us_per_token = median(&cost.us_per_token_rounds);
            cost.ms_per_request = median(&cost.ms_per_request_rounds);
            let last =
                points.last().and_then(|point| point.servers.iter().find(|server| server.name == *name));
            cost.rss_bytes = last.map_or(0, |server| server.rss_end_bytes);
        }
        let rates = |from: usize| -> Vec<f64> {
            points.iter().skip(from).step_by(2).map(|point| point.tokens.per_second).collect()
        };
        let mut reasons = Vec::new();
        for (at, point) in points.iter().enumerate() {
            let tokens = if at % 2 == 0 { output_tokens.0 } else { output_tokens.1 };
            let named = |why: &String| format!("round {}, {tokens} tokens: {why}", at / 2 + 1);
            reasons.extend(point.reasons.iter().map(named));
        }
        Self {
            valid: points.iter().all(|point| point.valid),
            reasons,
            output_tokens,
            few_tokens_per_second: median(&rates(0)),
            many_tokens_per_second: median(&rates(1)),
            costs,
            points,
        }
    }
}

fn spent(point: &Report) -> BTreeMap<String, Spent> {
    let (requests, tokens) = (point.requests.ok as f64, point.tokens.completion as f64);
    let one = |name: &str, seconds: f64| (name.to_owned(), Spent { seconds, requests, tokens });
    let mut all: BTreeMap<_, _> =
        point.servers.iter().map(|server| one(&server.name, server.cpu_seconds)).collect();
    let own = point.generator.user_seconds + point.generator.system_seconds;
    all.extend([one("generator", own)]);
    all
}

/// Seconds for one more token and for a request without tokens, if the runs differ in tokens a request.
fn solve(few: Spent, many: Spent) -> Option<(f64, f64)> {
    let per_request = |spent: Spent| (spent.tokens / spent.requests, spent.seconds / spent.requests);
    let ((few_tokens, few_seconds), (many_tokens, many_seconds)) = (per_request(few), per_request(many));
    let token = (many_seconds - few_seconds) / (many_tokens - few_tokens);
    let request = few_seconds - token * few_tokens;
    (token.is_finite() && request.is_finite()).then_some((token, request))
}

/// The middle value; of an even number, the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_and_a_request_are_told_apart() {
        // 4 µs a token and 1 ms a request.
        let spent = |requests: f64, each: f64| Spent {
            seconds: requests * (1e-3 + each * 4e-6),
            requests,
            tokens: requests * each,
        };
        let (token, request) = solve(spent(100.0, 64.0), spent(50.0, 512.0)).unwrap();
        assert!((token - 4e-6).abs() < 1e-12 && (request - 1e-3).abs() < 1e-9, "{token} {request}");
    }

    #[test]
    fn runs_without_answers_tell_nothing() {
        let none = Spent { seconds: 1.0, requests: 0.0, tokens: 0.0 };
        assert!(solve(none, none).is_none());
    }

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 100.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
