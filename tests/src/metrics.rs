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

    /// The values of a family's series whose labels hold every one of `labels` (`name="value"`).
    fn of<'a>(&'a self, family: &'a str, labels: &'a [&'a str]) -> impl Iterator<Item = f64> + 'a {
        let fits = move |series: &str| {
            let (name, rest) = series.split_once('{').unwrap_or((series, ""));
            name == family && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(move |(series, _)| fits(series)).map(|(_, value)| *value)
    }

    /// The sum over those series; zero where there is none.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        self.of(family, labels).sum()
    }

    /// How many of those series there are.
    pub fn count(&self, family: &str, labels: &[&str]) -> usize {
        self.of(family, labels).count()
    }

    /// Whether the family has a series.
    pub fn has(&self, family: &str) -> bool {
        self.0.iter().any(|(series, _)| series.split('{').next() == Some(family))
    }
}
