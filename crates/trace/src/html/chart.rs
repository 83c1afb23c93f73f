//! Plots as inline SVG.

use std::fmt::Write;

use super::{
    page::escape,
    scale::{Scale, label},
};

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// Points of one series that are drawn: more than there are pixels show nothing.
const MAX_POINTS: usize = 1200;
/// Told apart by people who do not see all colours (Okabe and Ito, 2008).
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Points joined by lines.
    Line,
    /// A bar that ends at each x.
    Bars,
}

/// Points with a name.
#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    shape: Shape,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// Points in order of x.
    #[must_use]
    pub fn new(name: &str, shape: Shape, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), shape, points }
    }

    /// The cumulative distribution of sorted values.
    #[must_use]
    pub fn cumulative(name: &str, sorted: &[f64]) -> Self {
        let count = sorted.len().max(1) as f64;
        let points =
            sorted.iter().enumerate().map(|(rank, value)| (*value, (rank + 1) as f64 / count)).collect();
        Self::new(name, Shape::Line, points)
    }
}

/// One plot.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    x: String,
    y: String,
    log_x: bool,
    series: Vec<Series>,
}

impl Chart {
    /// An empty plot with names for its axes.
    #[must_use]
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self { title: title.into(), x: x.into(), y: y.into(), log_x: false, series: Vec::new() }
    }

    /// With a logarithmic x axis.
    #[must_use]
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// With one more series.
    #[must_use]
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    pub(super) fn write(&self, out: &mut String) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Scale::covering(points().map(|p| p.0), LEFT, WIDTH - RIGHT, self.log_x, !self.log_x);
        let y = Scale::covering(points().map(|p| p.1), HEIGHT - BOTTOM, TOP, false, true);
        let _ = writeln!(
            out,
            "<figure><figcaption>{}</figcaption><svg width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">",
            escape(&self.title)
        );
        self.axes(out, &x, &y);
        for (place, series) in self.series.iter().enumerate() {
            let color = COLORS[place % COLORS.len()];
            match series.shape {
                Shape::Line => line(out, series, &x, &y, color),
                Shape::Bars => bars(out, series, &x, &y, color),
            }
        }
        if self.series.len() > 1 {
            self.legend(out);
        }
        out.push_str("</svg></figure>\n");
    }

    fn axes(&self, out: &mut String, x: &Scale, y: &Scale) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 5.0,
                at + 4.0,
                label(tick)
            );
        }
        for tick in x.ticks() {
            let at = x.place(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.0}\" stroke=\"#888\"/>\
                 <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                bottom + 4.0,
                bottom + 16.0,
                label(tick)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(12 {:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x),
            (TOP + bottom) / 2.0,
            escape(&self.y)
        );
    }

    fn legend(&self, out: &mut String) {
        for (place, series) in self.series.iter().enumerate() {
            let at = TOP + 8.0 + 14.0 * place as f64;
            let _ = writeln!(
                out,
                "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"10\" height=\"3\" fill=\"{}\"/>\
                 <text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
                LEFT + 10.0,
                at - 4.0,
                COLORS[place % COLORS.len()],
                LEFT + 25.0,
                at,
                escape(&series.name)
            );
        }
    }
}

fn line(out: &mut String, series: &Series, x: &Scale, y: &Scale, color: &str) {
    let _ = write!(out, "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.4\" points=\"");
    let every = series.points.len().div_ceil(MAX_POINTS).max(1);
    let last = series.points.len().saturating_sub(1);
    for (place, point) in series.points.iter().enumerate() {
        if place % every == 0 || place == last {
            let _ = write!(out, "{:.1},{:.1} ", x.place(point.0), y.place(point.1));
        }
    }
    out.push_str("\"/>\n");
}

fn bars(out: &mut String, series: &Series, x: &Scale, y: &Scale, color: &str) {
    let mut from = x.place(x.from);
    for point in &series.points {
        let (to, top) = (x.place(point.0), y.place(point.1));
        let _ = write!(
            out,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
            (to - from - 1.0).max(0.5),
            y.place(0.0) - top
        );
        from = to;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_names_and_all_its_series() {
        let chart = Chart::new("Time <1>", "ms", "share")
            .series(Series::cumulative("kv", &[1.0, 2.0, 4.0]))
            .series(Series::new("bars", Shape::Bars, vec![(1.0, 3.0), (2.0, 5.0)]));
        let mut out = String::new();
        chart.write(&mut out);
        assert!(out.contains("Time &lt;1&gt;") && out.contains(">kv<") && out.contains(">bars<"));
        assert_eq!((out.matches("<polyline").count(), out.matches("<svg").count()), (1, 1));
        assert!(!out.contains("NaN") && !out.contains("inf"));
    }

    #[test]
    fn an_empty_plot_is_still_one() {
        let mut out = String::new();
        Chart::new("nothing", "x", "y").series(Series::cumulative("none", &[])).write(&mut out);
        assert!(out.contains("</svg>") && !out.contains("NaN"));
    }

    #[test]
    fn no_more_points_are_drawn_than_can_be_seen() {
        let many: Vec<f64> = (0..100_000).map(f64::from).collect();
        let mut out = String::new();
        Chart::new("many", "x", "y").series(Series::cumulative("many", &many)).write(&mut out);
        assert!(out.len() < 40_000, "{}", out.len());
    }
}
