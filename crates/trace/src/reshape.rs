//! Traces slower or faster, longer, or several times over. Every key of a line that is not concerned stays as it is.

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value};

use crate::lines::{Line, Lines, MAX_LINE_BYTES};
use crate::mooncake::json_fault;

/// Why a trace could not be reshaped.
#[derive(Debug, thiserror::Error)]
pub enum ReshapeError {
    /// It could not be read, or the result not written.
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
    /// A line does not have what it takes.
    #[error("line {line}: {why}; `dynamo trace validate` tells all that is wrong")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// All requests come at one time.
    #[error("all requests have the same timestamp, or none: there is no duration to stretch")]
    NoDuration,
}

type Object = Map<String, Value>;

fn each_line(
    trace: impl BufRead,
    mut with: impl FnMut(Object) -> Result<Result<(), String>, io::Error>,
) -> Result<(), ReshapeError> {
    let mut lines = Lines::new(trace);
    while let Some(line) = lines.next()? {
        let (line, parsed) = match line {
            Line::Text { bytes, .. } if bytes.trim_ascii().is_empty() => continue,
            Line::Text { number, bytes, .. } => (number, serde_json::from_slice(bytes).map_err(json_fault)),
            Line::TooLong { number } => (number, Err(format!("it is over {MAX_LINE_BYTES} bytes"))),
        };
        let why = match parsed {
            Ok(object) => with(object)?,
            Err(why) => Err(why),
        };
        why.map_err(|why| ReshapeError::Line { line, why })?;
    }
    Ok(())
}

fn write(object: &Object, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object)?;
    out.write_all(b"\n")
}

fn number(object: &Object, key: &str) -> Result<Option<f64>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("the {key} is not a number")),
    }
}

/// Rounded to the microsecond, and whole numbers without a fraction.
fn millis(value: f64) -> Value {
    let value = (value * 1e3).round() / 1e3;
    if value.fract() == 0.0 && value.abs() < 9e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// The first and the last timestamp of a trace.
///
/// # Errors
/// If it cannot be read, or has no two different ones.
pub fn time_span(trace: impl BufRead) -> Result<(f64, f64), ReshapeError> {
    let (mut first, mut last) = (f64::INFINITY, f64::NEG_INFINITY);
    each_line(trace, |object| {
        Ok(number(&object, "timestamp").map(|time| {
            if let Some(time) = time {
                (first, last) = (first.min(time), last.max(time));
            }
        }))
    })?;
    if first < last { Ok((first, last)) } else { Err(ReshapeError::NoDuration) }
}

/// Multiplies all times, which then count from `origin` (ms): timestamps, and the delays between turns.
///
/// # Errors
/// If the trace cannot be read or the result not written.
pub fn stretch(
    trace: impl BufRead,
    factor: f64,
    origin: f64,
    out: &mut impl Write,
) -> Result<(), ReshapeError> {
    each_line(trace, |mut object| {
        for (key, origin) in [("timestamp", origin), ("delay", 0.0)] {
            match number(&object, key) {
                Ok(None) => {}
                Ok(Some(value)) => {
                    object.insert(key.into(), millis(((value - origin) * factor).max(0.0)));
                }
                Err(why) => return Ok(Err(why)),
            }
        }
        write(&object, out).map(Ok)
    })
}

fn ids(object: &Object) -> Result<Vec<u64>, String> {
    let list = object.get("hash_ids").and_then(Value::as_array).ok_or("there is no list hash_ids")?;
    let id = |id: &Value| id.as_u64().ok_or_else(|| format!("{id} is no hash id"));
    list.iter().map(id).collect()
}

/// The highest hash id of a trace; 0 if there is none.
///
/// # Errors
/// If it cannot be read.
pub fn highest_id(trace: impl BufRead) -> Result<u64, ReshapeError> {
    let mut highest = 0;
    each_line(trace, |object| Ok(ids(&object).map(|ids| highest = ids.into_iter().fold(highest, u64::max))))?;
    Ok(highest)
}

/// Makes every prompt `length_factor` times as long (each block becomes so many), and every request `copies` of it at the
/// same time that share blocks with no other copy. `highest_id` is that of the trace.
///
/// # Errors
/// If the trace cannot be read or the result not written.
pub fn duplicate(
    trace: impl BufRead,
    length_factor: u32,
    copies: u32,
    highest_id: u64,
    out: &mut impl Write,
) -> Result<(), ReshapeError> {
    let factor = u64::from(length_factor.max(1));
    let shift = highest_id.saturating_add(1).saturating_mul(factor);
    each_line(trace, |mut object| {
        let ids = match ids(&object) {
            Ok(ids) => ids,
            Err(why) => return Ok(Err(why)),
        };
        if shift.checked_mul(u64::from(copies)).is_none() {
            return Ok(Err("the hash ids are too large to be multiplied".into()));
        }
        if factor > 1 {
            match object.get("input_length").and_then(Value::as_u64) {
                None => return Ok(Err("there is no input_length".into())),
                Some(tokens) => object.insert("input_length".into(), Value::from(tokens * factor)),
            };
        }
        let session = object.get("session_id").cloned();
        for copy in 0..u64::from(copies.max(1)) {
            let own =
                ids.iter().flat_map(|id| (0..factor).map(move |part| id * factor + part + shift * copy));
            object.insert("hash_ids".into(), own.map(Value::from).collect::<Vec<_>>().into());
            if let (Some(session), true) = (&session, copy > 0) {
                let name = session.as_str().map_or_else(|| session.to_string(), str::to_owned);
                object.insert("session_id".into(), Value::from(format!("{name}#{copy}")));
            }
            write(&object, out)?;
        }
        Ok(Ok(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "{\"timestamp\": 100, \"input_length\": 9, \"output_length\": 2, \"hash_ids\": [0, 2], \"session_id\": \"s\", \"mine\": {\"a\": 1}}\n\
        {\"timestamp\": 300, \"delay\": 50.5, \"input_length\": 5, \"output_length\": 2, \"hash_ids\": [0]}\n";

    fn text(run: impl FnOnce(&mut Vec<u8>) -> Result<(), ReshapeError>) -> String {
        let mut out = Vec::new();
        run(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_multiplied_and_all_else_stays() {
        let slow = text(|out| stretch(TRACE.as_bytes(), 2.5, 0.0, out));
        let expected = TRACE.replace("100", "250").replace("300", "750").replace("50.5", "126.25");
        assert_eq!(slow.replace(' ', ""), expected.replace(' ', ""));
        let (first, last) = time_span(TRACE.as_bytes()).unwrap();
        let window = text(|out| stretch(TRACE.as_bytes(), 1000.0 / (last - first), first, out));
        assert!(window.contains("\"timestamp\":0,") && window.contains("\"timestamp\":1000,"));
    }

    #[test]
    fn copies_share_no_blocks_and_longer_prompts_keep_their_prefixes() {
        let twice = text(|out| duplicate(TRACE.as_bytes(), 2, 2, highest_id(TRACE.as_bytes()).unwrap(), out));
        let lines: Vec<Value> = twice.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<Vec<u64>> = lines.iter().map(|line| ids(line.as_object().unwrap()).unwrap()).collect();
        assert_eq!(ids, [vec![0, 1, 4, 5], vec![6, 7, 10, 11], vec![0, 1], vec![6, 7]]);
        assert_eq!((&lines[0]["session_id"], &lines[1]["session_id"]), (&"s".into(), &"s#1".into()));
        assert_eq!((lines[1]["input_length"].as_u64(), &lines[1]["mine"]["a"]), (Some(18), &1.into()));
    }

    #[test]
    fn a_line_that_does_not_fit_is_named() {
        let broken = format!("{TRACE}\n{{\"timestamp\": \"soon\"}}\n");
        let error = stretch(broken.as_bytes(), 2.0, 0.0, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("line 4: the timestamp is not a number"), "{error}");
        let error = duplicate("{}".as_bytes(), 1, 2, 0, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("line 1: there is no list"), "{error}");
        assert!(matches!(time_span("{}".as_bytes()), Err(ReshapeError::NoDuration)));
    }
}
