//! Prometheus text, as far as tests need it.

/// Samples of one scrape.
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over all series of a family whose labels hold every one of `labels` (`name="value"`); zero where there
    /// is none.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                let (name, rest) = series.split_once('{').unwrap_or((series, ""));
                name == family && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Whether the family has a series.
    pub fn has(&self, family: &str) -> bool {
        self.0.iter().any(|(series, _)| series.split('{').next() == Some(family))
    }
}
