//! Whether every line of a trace can be replayed and means what the format says.

use std::{
    hash::{BuildHasher, BuildHasherDefault},
    io::{self, BufRead, Write},
};

use rustc_hash::{FxHashSet, FxHasher};
use serde::Serialize;

use crate::{
    faults::Faults,
    lines::{Line, Lines, MAX_LINE_BYTES},
    mooncake::{MAX_REQUESTS, TraceRequest},
};

/// Block sizes that are worth proposing where the given one does not fit.
const USUAL_BLOCK_SIZES: [u32; 9] = [512, 256, 128, 64, 32, 16, 1024, 2048, 1];

/// What was found in a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Validity {
    /// Lines that are not empty.
    pub lines: u64,
    /// Those without a fault.
    pub requests: u64,
    /// Sessions among them.
    pub sessions: u64,
    /// Whether the last line is incomplete: the file was cut off.
    pub truncated: bool,
    /// A block size that the lengths and hash ids of all lines fit, where the given one does not.
    pub fitting_block_size: Option<u32>,
    /// What is wrong.
    pub faults: Faults,
}

/// Checks line after line, in memory that grows with the number of sessions only.
struct Validator {
    block_size: u32,
    /// The highest timestamp so far.
    time: f64,
    /// Whether the first line has a timestamp.
    timed: Option<bool>,
    /// Hashes of the session ids.
    sessions: FxHashSet<u64>,
    /// Block sizes, least and most, that all lines so far fit.
    fits: (u32, u32),
}

impl Validator {
    /// What is wrong with a request.
    fn check(&mut self, request: &TraceRequest) -> Result<(), String> {
        if request.input_length == 0 || request.output_length == 0 {
            return Err("input_length and output_length must be at least 1".into());
        }
        let blocks = u32::try_from(request.hash_ids.len()).unwrap_or(u32::MAX);
        if blocks > 0 {
            // ceil(input / block) = blocks, solved for the block.
            let least = request.input_length.div_ceil(blocks);
            let most = if blocks == 1 { u32::MAX } else { (request.input_length - 1) / (blocks - 1) };
            self.fits = (self.fits.0.max(least), self.fits.1.min(most));
        }
        let expected = request.input_length.div_ceil(self.block_size);
        if blocks != expected {
            return Err(format!(
                "{blocks} hash_ids for {} tokens: blocks of {} tokens make {expected}",
                request.input_length, self.block_size
            ));
        }
        let timed = *self.timed.get_or_insert(request.timestamp.is_some());
        let hash =
            request.session_id.as_ref().map(|id| BuildHasherDefault::<FxHasher>::default().hash_one(id));
        let follows = hash.is_some_and(|hash| self.sessions.contains(&hash));
        match request.timestamp {
            Some(time) if time < self.time => {
                return Err(format!("the timestamp {time} is before an earlier line's {}", self.time));
            }
            Some(time) => self.time = time,
            None if timed && !follows => {
                return Err("no timestamp, and it is not a later turn of a session".into());
            }
            None => {}
        }
        if let Some(hash) = hash {
            self.sessions.insert(hash);
        }
        Ok(())
    }
}

/// Checks a trace, and writes the lines without a fault to `salvage`.
///
/// # Errors
/// If the trace cannot be read, or what is salvaged cannot be written.
pub fn validate(
    trace: impl BufRead,
    block_size: u32,
    mut salvage: Option<&mut dyn Write>,
) -> io::Result<Validity> {
    let mut validator = Validator {
        block_size: block_size.max(1),
        time: 0.0,
        timed: None,
        sessions: FxHashSet::default(),
        fits: (1, u32::MAX),
    };
    let mut found = Validity::default();
    let mut lines = Lines::new(trace);
    while let Some(line) = lines.next()? {
        let (number, bytes, whole) = match line {
            Line::Text { bytes, .. } if bytes.trim_ascii().is_empty() => continue,
            Line::Text { number, bytes, whole } => (number, bytes, whole),
            Line::TooLong { number } => {
                found.lines += 1;
                found.faults.add(number, format!("over {MAX_LINE_BYTES} bytes"));
                continue;
            }
        };
        found.lines += 1;
        let checked = match TraceRequest::parse(bytes) {
            Err(_) if !whole => {
                found.truncated = true;
                Err("the file ends in the middle of it".to_owned())
            }
            Err(why) => Err(why),
            Ok(_) if found.requests == MAX_REQUESTS as u64 => {
                Err(format!("over {MAX_REQUESTS} requests: split the trace"))
            }
            Ok(request) => validator.check(&request),
        };
        match checked {
            Err(why) => found.faults.add(number, why),
            Ok(()) => {
                found.requests += 1;
                if let Some(out) = &mut salvage {
                    out.write_all(bytes)?;
                    out.write_all(b"\n")?;
                }
            }
        }
    }
    found.sessions = validator.sessions.len() as u64;
    let (least, most) = validator.fits;
    let fits = |size: &u32| (least..=most).contains(size);
    if !fits(&validator.block_size) {
        found.fitting_block_size = USUAL_BLOCK_SIZES.into_iter().find(fits);
    }
    if found.lines == 0 {
        found.faults.add(1, "the trace has no request");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (Validity, String) {
        let mut kept = Vec::new();
        let found = validate(text.as_bytes(), 512, Some(&mut kept)).unwrap();
        (found, String::from_utf8(kept).unwrap())
    }

    fn line(time: u32, input: u32, blocks: usize) -> String {
        let ids: Vec<usize> = (0..blocks).collect();
        format!(
            "{{\"timestamp\": {time}, \"input_length\": {input}, \"output_length\": 5, \"hash_ids\": {ids:?}}}\n"
        )
    }

    #[test]
    fn a_right_trace_has_no_faults() {
        let text = [line(0, 512, 1), line(0, 513, 2), line(7, 1, 1)].concat();
        let (found, kept) = check(&text);
        assert!(found.faults.is_empty(), "{}", found.faults);
        assert_eq!((found.lines, found.requests, found.fitting_block_size), (3, 3, None));
        assert_eq!(kept, text);
    }

    #[test]
    fn each_fault_is_named_with_its_line_and_the_rest_is_kept() {
        let good = line(10, 600, 2);
        let text = [
            good.as_str(),
            "{\"timestamp\": 11, \"input_length\": \"x\"}\n",
            "\n",
            &line(9, 600, 2),
            &line(12, 600, 3),
            "{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}\n",
            "{\"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}\n",
            &line(12, 600, 2),
        ]
        .concat();
        let (found, kept) = check(&text);
        let named: Vec<(u64, &str)> = found.faults.named.iter().map(|f| (f.line, f.why.as_str())).collect();
        assert_eq!(named.iter().map(|f| f.0).collect::<Vec<_>>(), [2, 4, 5, 6, 7]);
        assert!(named[0].1.starts_with("invalid type"), "{}", named[0].1);
        assert!(named[1].1.contains("before an earlier"));
        assert!(named[2].1.contains("3 hash_ids for 600 tokens: blocks of 512 tokens make 2"));
        assert!(named[4].1.contains("no timestamp"));
        assert_eq!(kept, [good, line(12, 600, 2)].concat());
    }

    #[test]
    fn a_cut_off_file_is_told_apart_and_the_fitting_block_size_found() {
        let text = [line(0, 120, 2), line(1, 300, 5)].concat();
        let (found, kept) = check(&text[..text.len() - 20]);
        assert!(found.truncated && kept.is_empty());
        let (found, _) = check(&text);
        assert!(!found.truncated);
        assert_eq!((found.faults.count, found.fitting_block_size), (2, Some(64)));
    }

    #[test]
    fn later_turns_need_no_timestamp() {
        let turn = |session: &str| {
            format!(
                "{{\"session_id\": \"{session}\", \"delay\": 5, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1]}}\n"
            )
        };
        let first = turn("a").replace("\"delay\"", "\"timestamp\"");
        let (found, _) = check(&[first, turn("a"), turn("b")].concat());
        assert_eq!((found.requests, found.sessions, found.faults.named[0].line), (2, 1, 3));
        // A trace without any timestamp is for closed loops.
        assert!(check(&[turn("a"), turn("b")].concat()).0.faults.is_empty());
    }
}
