//! Reports as one HTML file: text, tables and plots (inline SVG), no scripts and nothing from outside.

mod chart;
mod page;
mod scale;

pub use chart::{Chart, Series, Shape};
pub use page::Page;
