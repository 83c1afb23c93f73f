//! A page, part by part.

use std::fmt::Write;

use super::Chart;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;max-width:1300px;color:#222;background:#fff}\
h1{font-size:1.4em}h2{font-size:1.1em;margin:1.2em 0 .3em}\
pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px}\
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}\
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}figcaption{font-weight:600;margin-bottom:.2em}\
svg text{font-size:11px;fill:#444}";

/// An HTML page under way.
#[derive(Clone, Debug)]
pub struct Page(String);

impl Page {
    /// An empty page.
    #[must_use]
    pub fn new(title: &str) -> Self {
        let title = escape(title);
        Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        ))
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.0, "<h2>{}</h2>", escape(text));
    }

    /// Text as it is, in a fixed font.
    pub fn preformatted(&mut self, text: &str) {
        let _ = writeln!(self.0, "<pre>{}</pre>", escape(text));
    }

    /// A table.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        self.0.push_str("<table><tr>");
        for cell in head {
            let _ = write!(self.0, "<th>{}</th>", escape(cell));
        }
        for row in rows {
            self.0.push_str("</tr>\n<tr>");
            for cell in row {
                let _ = write!(self.0, "<td>{}</td>", escape(cell));
            }
        }
        self.0.push_str("</tr></table>\n");
    }

    /// A plot, beside the one before it where there is room.
    pub fn chart(&mut self, chart: &Chart) {
        chart.write(&mut self.0);
    }

    /// The whole page.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.0.push_str("</body></html>\n");
        self.0
    }
}

/// Text as it may stand in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
