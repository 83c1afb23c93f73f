//! Lines of a file of any size, in bounded memory.

use std::io::{self, BufRead};

/// Longest accepted line: a prompt of a million 16-token blocks stays below it.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 20;

/// One line.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    /// Its bytes, without the line end.
    Text {
        /// Counted from 1.
        number: u64,
        /// What is on it.
        bytes: &'a [u8],
        /// Whether a line end followed; only the last line of a file may lack it.
        whole: bool,
    },
    /// Longer than [`MAX_LINE_BYTES`]; it was skipped.
    TooLong {
        /// Counted from 1.
        number: u64,
    },
}

/// Reads line after line into one buffer.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0 }
    }

    /// The next line; `None` at the end. Not an iterator, because the bytes are lent.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let (mut too_long, mut whole, mut any) = (false, false, false);
        while !whole {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = memchr::memchr(b'\n', chunk);
            let text = &chunk[..end.unwrap_or(chunk.len())];
            too_long |= self.buffer.len() + text.len() > MAX_LINE_BYTES;
            if !too_long {
                self.buffer.extend_from_slice(text);
            }
            whole = end.is_some();
            let used = text.len() + usize::from(whole);
            self.reader.consume(used);
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        let number = self.number;
        if too_long {
            return Ok(Some(Line::TooLong { number }));
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        Ok(Some(Line::Text { number, bytes: &self.buffer, whole }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn all(text: &[u8], chunk: usize) -> Vec<(u64, Option<Vec<u8>>, bool)> {
        let mut lines = Lines::new(BufReader::with_capacity(chunk, text));
        let mut out = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            out.push(match line {
                Line::Text { number, bytes, whole } => (number, Some(bytes.to_vec()), whole),
                Line::TooLong { number } => (number, None, true),
            });
        }
        out
    }

    #[test]
    fn lines_come_out_the_same_however_the_file_is_cut() {
        for chunk in [1, 3, 64] {
            let lines = all(b"one\r\n\ntwo\nthr", chunk);
            let expected = [(1, "one", true), (2, "", true), (3, "two", true), (4, "thr", false)];
            let expected = expected.map(|(n, text, whole)| (n, Some(text.as_bytes().to_vec()), whole));
            assert_eq!(lines, expected);
        }
        assert_eq!(all(b"", 8), []);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut text = vec![b'x'; MAX_LINE_BYTES + 1];
        text.extend_from_slice(b"\nnext\n");
        let lines = all(&text, 1 << 16);
        assert_eq!(lines, [(1, None, true), (2, Some(b"next".to_vec()), true)]);
    }
}
