//! Mooncake traces: one JSON object a line with `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`
//! (one id per block of the prompt; equal ids are equal prefixes). Other keys are ignored.

use std::{fs::File, io::BufRead, io::BufReader, path::Path};

use serde::Deserialize;

/// Longest accepted line: a prompt of a million 16-token blocks stays below it.
const MAX_LINE_BYTES: usize = 16 << 20;
/// Most requests of one trace, so that a wrong file cannot fill the memory.
const MAX_REQUESTS: usize = 10_000_000;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TraceRequest {
    /// Milliseconds since the start of the trace.
    pub timestamp: f64,
    /// Tokens of the prompt.
    pub input_length: u32,
    /// Tokens of the answer.
    pub output_length: u32,
    /// The prompt's blocks.
    pub hash_ids: Vec<u64>,
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
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing in it.
    #[error("the trace {0} has no request")]
    Empty(String),
}

/// Reads a trace and sorts it by time (the order of the file is kept among equal times).
pub fn read_trace(path: &Path) -> Result<Vec<TraceRequest>, TraceError> {
    let name = path.display().to_string();
    let io = |source| TraceError::Io { path: name.clone(), source };
    let mut requests: Vec<TraceRequest> = Vec::new();
    for (number, line) in BufReader::new(File::open(path).map_err(io)?).lines().enumerate() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        let bad = |why: String| TraceError::Line { path: name.clone(), line: number + 1, why };
        if line.len() > MAX_LINE_BYTES || requests.len() == MAX_REQUESTS {
            return Err(bad(format!("over {MAX_LINE_BYTES} bytes a line or {MAX_REQUESTS} requests")));
        }
        let request: TraceRequest = serde_json::from_str(&line).map_err(|e| bad(e.to_string()))?;
        if !request.timestamp.is_finite() || request.timestamp < 0.0 {
            return Err(bad("the timestamp is not a positive number".into()));
        }
        requests.push(request);
    }
    if requests.is_empty() {
        return Err(TraceError::Empty(name));
    }
    requests.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
    Ok(requests)
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
    fn a_bad_line_is_named() {
        let error = read("{\"timestamp\": 1}\n").unwrap_err();
        assert!(error.to_string().contains("line 1 of"), "{error}");
        assert!(matches!(read("\n"), Err(TraceError::Empty(_))));
    }
}
