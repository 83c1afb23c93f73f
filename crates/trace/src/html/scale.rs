//! From values to places on an axis, with round ticks.

/// One axis: values from `from` to `to` lie from `start` to `end`, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) from: f64,
    pub(super) to: f64,
    start: f64,
    end: f64,
    log: bool,
}

impl Scale {
    /// Covers the values; a linear axis is widened to round ends, and a logarithmic one starts at a positive value.
    pub(super) fn covering(
        values: impl Iterator<Item = f64>,
        start: f64,
        end: f64,
        log: bool,
        zero: bool,
    ) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!log || *value > 0.0)) {
            (from, to) = (from.min(value), to.max(value));
        }
        if from > to {
            (from, to) = (if log { 1.0 } else { 0.0 }, if log { 10.0 } else { 1.0 });
        }
        if zero && !log {
            from = from.min(0.0);
        }
        if from == to {
            to = if to == 0.0 { 1.0 } else { to + to.abs() };
        }
        Self { from, to, start, end, log }
    }

    /// Where a value lies.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.from).ln() - self.from.ln()) / (self.to.ln() - self.from.ln())
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// About five round values on the axis.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.log {
            let steps: &[f64] = if self.to / self.from > 1e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let mut decade = 10f64.powf(self.from.log10().floor());
            let mut ticks = Vec::new();
            while decade <= self.to {
                let here = steps.iter().map(|step| step * decade);
                ticks.extend(here.filter(|tick| (self.from..=self.to).contains(tick)));
                decade *= 10.0;
            }
            return ticks;
        }
        let rough = (self.to - self.from) / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.from / step).ceil();
        (0..=12).map(|n| (first + f64::from(n)) * step).take_while(|t| *t <= self.to * (1.0 + 1e-9)).collect()
    }
}

/// A tick's label: three digits, with k, M or G for large ones.
pub(super) fn label(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let text = if text.is_empty() || text == "-0" { "0" } else { text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let scale = Scale::covering([0.0, 87.0].into_iter(), 0.0, 100.0, false, true);
        assert_eq!(scale.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(scale.place(43.5), 50.0);
        let log = Scale::covering([3.0, 500.0].into_iter(), 0.0, 100.0, true, false);
        assert_eq!(log.ticks(), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!((log.place(3.0), log.place(500.0)), (0.0, 100.0));
    }

    #[test]
    fn no_values_and_equal_values_make_an_axis_too() {
        assert_eq!(Scale::covering(std::iter::empty(), 0.0, 10.0, false, true).place(0.5), 5.0);
        assert!(Scale::covering([4.0].into_iter(), 0.0, 10.0, true, false).place(4.0).is_finite());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(
            ["0", "0.25", "1500", "12k", "3.5M"].map(str::to_owned),
            [0.0, 0.25, 1500.0, 12e3, 3.5e6].map(label)
        );
    }
}
