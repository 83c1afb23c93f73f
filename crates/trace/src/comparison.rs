//! Two servers in turn: medians of every figure, and their ratios.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    difference::{Difference, median},
    report::Report,
};

/// Two servers, measured in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Whether every point of both counts.
    pub valid: bool,
    /// Why some do not.
    pub reasons: Vec<String>,
    /// The server of `--url`.
    pub first: Side,
    /// The server of `--versus`.
    pub second: Side,
    /// The first's figure over the second's, for figures that both have.
    pub ratios: BTreeMap<String, f64>,
}

/// One server's part.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its address.
    pub url: String,
    /// The model that was asked.
    pub model: String,
    /// Medians over the rounds; the names say the unit.
    pub medians: BTreeMap<String, f64>,
    /// With `--difference`: the costs and their points.
    pub difference: Option<Difference>,
    /// Without: the points.
    pub points: Vec<Report>,
}

impl Side {
    /// From the points in order; with `few_and_many` they are short and long in turn.
    pub(crate) fn of(
        url: String,
        model: String,
        few_and_many: Option<(u32, u32)>,
        points: Vec<Report>,
    ) -> Self {
        match few_and_many {
            None => Self { url, model, medians: of_points(&points), difference: None, points },
            Some(tokens) => {
                let difference = Difference::of(tokens, points);
                let medians = of_difference(&difference);
                Self { url, model, medians, difference: Some(difference), points: Vec::new() }
            }
        }
    }

    fn reasons(&self) -> Vec<String> {
        let named = |reason: &String| format!("{}: {reason}", self.url);
        match &self.difference {
            Some(difference) => difference.reasons.iter().map(named).collect(),
            None => self.points.iter().flat_map(|point| &point.reasons).map(named).collect(),
        }
    }
}

impl Comparison {
    pub(crate) fn of(first: Side, second: Side) -> Self {
        let reasons = [first.reasons(), second.reasons()].concat();
        let ratio = |(name, value): (&String, &f64)| {
            let other = second.medians.get(name)?;
            (*other != 0.0).then(|| (name.clone(), value / other))
        };
        let ratios = first.medians.iter().filter_map(ratio).collect();
        Self { valid: reasons.is_empty(), reasons, first, second, ratios }
    }
}

fn of_points(points: &[Report]) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for point in points {
        let mut add = |name: String, value: f64| values.entry(name).or_default().push(value);
        add("requests/s".into(), point.requests.per_second);
        add("tokens/s".into(), point.tokens.per_second);
        add("cached share".into(), point.cache.share);
        add("first token p50 ms".into(), point.first_token.p50_ms);
        add("first token p99 ms".into(), point.first_token.p99_ms);
        add("between tokens mean ms".into(), point.between_tokens.mean_ms);
        add("whole p50 ms".into(), point.whole.p50_ms);
        add("whole p99 ms".into(), point.whole.p99_ms);
        for server in &point.servers {
            let name = &server.name;
            add(format!("{name} core-s"), server.cpu_seconds);
            add(format!("{name} core-µs/token"), server.us_per_token.unwrap_or_default());
            add(format!("{name} core-ms/request"), server.ms_per_request.unwrap_or_default());
            add(format!("{name} RSS MB"), server.rss_end_bytes as f64 / 1e6);
        }
    }
    values.into_iter().map(|(name, values)| (name, median(&values))).collect()
}

fn of_difference(difference: &Difference) -> BTreeMap<String, f64> {
    let (few, many) = difference.output_tokens;
    let mut medians = BTreeMap::from([
        (format!("tokens/s at {few}"), difference.few_tokens_per_second),
        (format!("tokens/s at {many}"), difference.many_tokens_per_second),
    ]);
    for (name, cost) in difference.costs.iter().filter(|(name, _)| *name != "generator") {
        medians.insert(format!("{name} core-µs/token"), cost.us_per_token);
        medians.insert(format!("{name} core-ms/request"), cost.ms_per_request);
        medians.insert(format!("{name} RSS MB"), cost.rss_bytes as f64 / 1e6);
    }
    medians
}
