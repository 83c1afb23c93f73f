//! An analysis as a page of plots.

use super::Analysis;
use crate::html::{Chart, Page, Series, Shape};

/// As HTML that needs nothing else.
#[must_use]
pub(crate) fn page(analysis: &Analysis, name: &str) -> String {
    let mut page = Page::new(&format!("Trace {name}"));
    page.preformatted(&super::table(analysis));
    let histogram =
        |bins: &[(f64, u64)]| bins.iter().map(|&(end, count)| (end, count as f64)).collect::<Vec<_>>();
    let over_time = |pick: fn(&(f64, f64, f64)) -> f64| {
        analysis.over_time.iter().map(|point| (point.0, pick(point))).collect::<Vec<_>>()
    };
    page.chart(&Chart::new("Prompt lengths", "tokens", "requests").series(Series::new(
        "prompts",
        Shape::Bars,
        histogram(&analysis.input_histogram),
    )));
    page.chart(&Chart::new("Answer lengths", "tokens", "requests").series(Series::new(
        "answers",
        Shape::Bars,
        histogram(&analysis.output_histogram),
    )));
    page.chart(&Chart::new("Requests over time", "s", "requests/s").series(Series::new(
        "requests",
        Shape::Line,
        over_time(|point| point.1),
    )));
    page.chart(
        &Chart::new("Blocks seen before, over time", "s", "share of the prompt blocks").series(Series::new(
            "unbounded cache",
            Shape::Line,
            over_time(|point| point.2),
        )),
    );
    let sizes = analysis.cached_share_by_blocks.iter();
    let sizes: Vec<(f64, f64)> = sizes.map(|&(blocks, share)| (blocks as f64, share)).collect();
    let unbounded = sizes.iter().map(|point| (point.0, analysis.cached_share)).collect();
    page.chart(
        &Chart::new("What a cache can serve", "blocks of cache", "share of the prompt blocks")
            .log_x()
            .series(Series::new("least recently used", Shape::Line, sizes))
            .series(Series::new("unbounded", Shape::Line, unbounded)),
    );
    page.finish()
}
