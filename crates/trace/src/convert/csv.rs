//! Comma-separated values (RFC 4180): fields may be quoted and then span lines. One record is in memory at a time.

use std::io::{self, BufRead};

/// Longest record: a prompt of millions of tokens fits. A quote that is never closed ends here.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// What comes next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A record, which starts at this line.
    Record(u64),
    /// A record that the file's end cut off: inside of quotes, or without a line end.
    Cut(u64),
    /// A record, from this line on, that is longer than 64 MiB; there is nothing to go on from.
    TooLong(u64),
    /// Nothing more.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside of quotes: the end of the field, or the first of two that stand for one.
    QuoteInQuoted,
}

pub(super) struct CsvReader<R> {
    reader: R,
    line: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl<R: BufRead> CsvReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: 1, bytes: Vec::new(), ends: Vec::new() }
    }

    /// Reads the next record that is not an empty line.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        loop {
            let next = self.record()?;
            let empty = self.ends.len() == 1 && self.bytes.is_empty();
            if !(matches!(next, Next::Record(_)) && empty) {
                return Ok(next);
            }
        }
    }

    /// A field of the record read last; empty if it has fewer.
    pub(super) fn field(&self, place: usize) -> &[u8] {
        let Some(&end) = self.ends.get(place) else { return &[] };
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.bytes[start..end]
    }

    /// How many fields the record has.
    pub(super) fn fields(&self) -> usize {
        self.ends.len()
    }

    fn record(&mut self) -> io::Result<Next> {
        self.bytes.clear();
        self.ends.clear();
        let from = self.line;
        let mut state = State::FieldStart;
        let mut any = false;
        loop {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                self.ends.push(self.bytes.len());
                return Ok(if any { Next::Cut(from) } else { Next::End });
            }
            any = true;
            let mut used = 0;
            let mut done = false;
            while used < chunk.len() && !done {
                let byte = chunk[used];
                used += 1;
                if byte == b'\n' {
                    self.line += 1;
                }
                state = match (state, byte) {
                    (State::Quoted, b'"') => State::QuoteInQuoted,
                    (State::Quoted, byte) => {
                        // Long texts are copied in one go.
                        let rest = &chunk[used..];
                        let run = memchr::memchr2(b'"', b'\n', rest).unwrap_or(rest.len());
                        self.bytes.push(byte);
                        self.bytes.extend_from_slice(&rest[..run]);
                        used += run;
                        State::Quoted
                    }
                    (State::QuoteInQuoted, b'"') => {
                        self.bytes.push(b'"');
                        State::Quoted
                    }
                    (State::FieldStart, b'"') => State::Quoted,
                    (_, b',') => {
                        self.ends.push(self.bytes.len());
                        State::FieldStart
                    }
                    (state, b'\n') => {
                        if state == State::Plain && self.bytes.last() == Some(&b'\r') {
                            self.bytes.pop();
                        }
                        self.ends.push(self.bytes.len());
                        done = true;
                        state
                    }
                    (State::QuoteInQuoted, b'\r') => State::QuoteInQuoted,
                    (_, byte) => {
                        self.bytes.push(byte);
                        State::Plain
                    }
                };
            }
            self.reader.consume(used);
            if done {
                return Ok(Next::Record(from));
            }
            if self.bytes.len() > MAX_RECORD_BYTES {
                return Ok(Next::TooLong(from));
            }
        }
    }
}

/// The places of named columns.
#[derive(Debug)]
pub(super) struct Header(Vec<String>);

impl Header {
    /// From the record read last.
    pub(super) fn of<R: BufRead>(csv: &CsvReader<R>) -> Self {
        let name = |place| {
            String::from_utf8_lossy(csv.field(place)).trim_start_matches('\u{feff}').trim().to_lowercase()
        };
        Self((0..csv.fields()).map(name).collect())
    }

    /// Where a column is, whatever its capitals.
    pub(super) fn place(&self, name: &'static str) -> Option<usize> {
        self.0.iter().position(|column| *column == name.to_lowercase())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A field as a number from 0.
pub(super) fn number(field: &[u8], name: &str) -> Result<f64, String> {
    let text = String::from_utf8_lossy(field);
    let value: Option<f64> = text.trim().parse().ok();
    value
        .filter(|value| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| format!("the {name} {text:?} is not a number from 0"))
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn all(text: &[u8], chunk: usize) -> Vec<(Next, Vec<String>)> {
        let mut csv = CsvReader::new(BufReader::with_capacity(chunk, text));
        let mut out = Vec::new();
        loop {
            let next = csv.next().unwrap();
            if next == Next::End {
                return out;
            }
            let field = |place| String::from_utf8(csv.field(place).to_vec()).unwrap();
            out.push((next, (0..csv.fields()).map(field).collect()));
        }
    }

    #[test]
    fn quotes_commas_and_line_ends_within_fields_are_text() {
        let text = b"a,b,c\r\n1,\"x, \"\"y\"\"\nz\",\r\n\n,\"\",3\nlast,\"op";
        let expected = [
            (Next::Record(1), vec!["a", "b", "c"]),
            (Next::Record(2), vec!["1", "x, \"y\"\nz", ""]),
            (Next::Record(5), vec!["", "", "3"]),
            (Next::Cut(6), vec!["last", "op"]),
        ];
        for chunk in [1, 2, 5, 1000] {
            let got = all(text, chunk);
            let got: Vec<(Next, Vec<&str>)> = got
                .iter()
                .map(|(next, fields)| (*next, fields.iter().map(String::as_str).collect()))
                .collect();
            assert_eq!(got, expected, "in chunks of {chunk}");
        }
        assert_eq!(all(b"", 10), []);
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_fill_the_memory() {
        let mut text = b"a,b\n\"".to_vec();
        text.resize(MAX_RECORD_BYTES + (1 << 20), b'x');
        let got = all_until_too_long(&text);
        assert_eq!(got, Next::TooLong(2));
    }

    fn all_until_too_long(text: &[u8]) -> Next {
        let mut csv = CsvReader::new(BufReader::with_capacity(1 << 16, text));
        loop {
            match csv.next().unwrap() {
                Next::Record(_) => {}
                other => return other,
            }
        }
    }

    #[test]
    fn columns_are_found_by_name() {
        let mut csv = CsvReader::new("\u{feff}Timestamp,Log Type\n".as_bytes());
        csv.next().unwrap();
        let header = Header::of(&csv);
        assert_eq!(
            (header.place("timestamp"), header.place("Log type"), header.place("model")),
            (Some(0), Some(1), None)
        );
    }
}
