//! Mooncake traces: one JSON object a line with `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`
//! (one id per block of the prompt; equal ids are equal prefixes). A line may belong to a session (`session_id`): its turns
//! run one after the other, and each but the first may say how long after the one before (`delay`, ms) instead of when.
//! Other keys are ignored.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::Path,
};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Deserializer};

use crate::lines::{Line, Lines, MAX_LINE_BYTES};

/// Most requests of one trace, so that a wrong file cannot fill the memory.
pub(crate) const MAX_REQUESTS: usize = 10_000_000;

/// One request of a trace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TraceRequest {
    /// Milliseconds since the start of the trace. Turns of a session after the first may lack it.
    #[serde(default)]
    pub timestamp: Option<f64>,
    /// Tokens of the prompt.
    pub input_length: u32,
    /// Tokens of the answer.
    pub output_length: u32,
    /// The prompt's blocks.
    pub hash_ids: Vec<u64>,
    /// The conversation that it is a turn of.
    #[serde(default, deserialize_with = "text_or_number")]
    pub session_id: Option<String>,
    /// Milliseconds between the end of the turn before and this one.
    #[serde(default)]
    pub delay: Option<f64>,
}

impl TraceRequest {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        let request: Self = serde_json::from_slice(line).map_err(json_fault)?;
        for (name, value) in [("timestamp", request.timestamp), ("delay", request.delay)] {
            if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
                return Err(format!("the {name} is not a number of milliseconds from 0"));
            }
        }
        Ok(request)
    }

    /// Writes it as one line, with further keys (already JSON) at the end.
    pub(crate) fn write(&self, to: &mut impl Write, further: &[(&str, u64)]) -> io::Result<()> {
        to.write_all(b"{")?;
        if let Some(session) = &self.session_id {
            let session = serde_json::to_string(session).map_err(io::Error::other)?;
            write!(to, "\"session_id\": {session}, ")?;
        }
        for (name, value) in [("timestamp", self.timestamp), ("delay", self.delay)] {
            if let Some(value) = value {
                // Whole numbers are written without a fraction, and fractions to the microsecond.
                let value = (value * 1e3).round() / 1e3;
                write!(to, "\"{name}\": {value}, ")?;
            }
        }
        write!(
            to,
            "\"input_length\": {}, \"output_length\": {}, \"hash_ids\": [",
            self.input_length, self.output_length
        )?;
        for (place, id) in self.hash_ids.iter().enumerate() {
            write!(to, "{}{id}", if place == 0 { "" } else { ", " })?;
        }
        to.write_all(b"]")?;
        for (name, value) in further {
            write!(to, ", \"{name}\": {value}")?;
        }
        to.write_all(b"}\n")
    }
}

/// What serde says of one line, without the line number that is always 1.
pub(crate) fn json_fault(error: serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(i64),
    }
    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| match id {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    }))
}

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be opened or read.
    #[error("cannot read the trace {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is no request.
    #[error("line {line} of the trace {path} is no request in the mooncake format: {why}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing in it.
    #[error("the trace {0} has no request")]
    Empty(String),
}

/// Reads a trace and sorts it by time (the order of the file is kept among equal times). A turn without a time comes
/// `delay` after the one before it.
pub fn read_trace(path: &Path) -> Result<Vec<TraceRequest>, TraceError> {
    let name = path.display().to_string();
    let io = |source| TraceError::Io { path: name.clone(), source };
    let mut requests: Vec<(f64, TraceRequest)> = Vec::new();
    let mut sessions: FxHashMap<String, f64> = FxHashMap::default();
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(io)?));
    while let Some(line) = lines.next().map_err(io)? {
        let bad = |line, why: String| TraceError::Line { path: name.clone(), line, why };
        let (number, bytes) = match line {
            Line::Text { number, bytes, .. } => (number, bytes),
            Line::TooLong { number } => {
                return Err(bad(number, format!("it is over {MAX_LINE_BYTES} bytes")));
            }
        };
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        if requests.len() == MAX_REQUESTS {
            return Err(bad(number, format!("there are over {MAX_REQUESTS} requests")));
        }
        let request = TraceRequest::parse(bytes).map_err(|why| bad(number, why))?;
        let before = request.session_id.as_ref().and_then(|id| sessions.get(id).copied()).unwrap_or(0.0);
        let time = request.timestamp.unwrap_or(before + request.delay.unwrap_or(0.0)).max(before);
        if let Some(id) = &request.session_id {
            sessions.insert(id.clone(), time);
        }
        requests.push((time, request));
    }
    if requests.is_empty() {
        return Err(TraceError::Empty(name));
    }
    requests.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(requests.into_iter().map(|(_, request)| request).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &str) -> Result<Vec<TraceRequest>, TraceError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read_trace(file.path())
    }

    #[test]
    fn requests_come_in_the_order_of_time() {
        let trace = read(concat!(
            r#"{"timestamp": 20, "input_length": 10, "output_length": 2, "hash_ids": [1], "session_id": "x"}"#,
            "\n\n",
            r#"{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [0, 3]}"#,
        ))
        .unwrap();
        assert_eq!(trace.iter().map(|r| r.hash_ids.clone()).collect::<Vec<_>>(), [vec![0, 3], vec![1]]);
    }

    #[test]
    fn later_turns_come_after_earlier_ones() {
        let trace = read(concat!(
            r#"{"session_id": 7, "timestamp": 10, "input_length": 1, "output_length": 1, "hash_ids": [1]}"#,
            "\n",
            r#"{"session_id": 7, "delay": 500, "input_length": 1, "output_length": 1, "hash_ids": [2]}"#,
            "\n",
            r#"{"timestamp": 200, "input_length": 1, "output_length": 1, "hash_ids": [3]}"#,
        ))
        .unwrap();
        let ids: Vec<u64> = trace.iter().map(|request| request.hash_ids[0]).collect();
        assert_eq!(ids, [1, 3, 2]);
        assert_eq!(trace[2].session_id.as_deref(), Some("7"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read("{\"timestamp\": 1}\n").unwrap_err();
        assert!(error.to_string().contains("line 1 of"), "{error}");
        assert!(matches!(read("\n"), Err(TraceError::Empty(_))));
    }

    #[test]
    fn a_written_line_reads_the_same() {
        let request = TraceRequest {
            timestamp: Some(12.5),
            input_length: 70,
            output_length: 3,
            hash_ids: vec![9, 1 << 52],
            session_id: Some("a\"b".into()),
            delay: None,
        };
        let mut line = Vec::new();
        request.write(&mut line, &[("context_len", 64)]).unwrap();
        assert!(line.ends_with(b"\"context_len\": 64}\n"));
        assert_eq!(TraceRequest::parse(&line).unwrap(), request);
    }
}
