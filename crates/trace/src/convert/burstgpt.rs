//! BurstGPT (Wang et al., 2024): a CSV of when requests came and how long prompts and answers were, without their texts.

use std::io::{BufRead, Write};

use serde::Serialize;

use super::{
    Conversion, ConvertError,
    csv::{CsvReader, Header, Next, number},
};
use crate::{
    mooncake::TraceRequest,
    rng::{SplitMix, derive},
};

const ROW: u64 = 31;

/// Which rows to take, and how to fill in what the format does not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BurstGpt {
    /// Only this model's rows (`ChatGPT`, `GPT-4`).
    pub model: Option<String>,
    /// Only rows of this kind (`Conversation log`, `API log`).
    pub log_type: Option<String>,
    /// At most so many requests.
    pub num_prompt: Option<u64>,
    /// Divides the times.
    pub speed_ratio: f64,
    /// Tokens of a block.
    pub block_size: u32,
    /// Prompts are made of so many different blocks, at random.
    pub num_hash_blocks: u64,
    /// Equal seeds give equal blocks, row by row.
    pub seed: u64,
}

struct Columns {
    timestamp: usize,
    request: usize,
    response: usize,
    model: Option<usize>,
    log_type: Option<usize>,
    count: usize,
}

impl Columns {
    fn of(header: &Header) -> Result<Self, ConvertError> {
        let place = |name| header.place(name).ok_or(ConvertError::Column(name));
        Ok(Self {
            timestamp: place("Timestamp")?,
            request: place("Request tokens")?,
            response: place("Response tokens")?,
            model: header.place("Model"),
            log_type: header.place("Log Type"),
            count: header.len(),
        })
    }
}

/// What a row says.
struct Row {
    seconds: f64,
    input: u32,
    output: u32,
}

/// Converts row by row, in the memory of one row.
///
/// # Errors
/// If the file cannot be read or the trace not written, or columns are missing.
pub fn convert_burstgpt(
    input: impl BufRead,
    options: &BurstGpt,
    out: &mut impl Write,
) -> Result<Conversion, ConvertError> {
    let mut csv = CsvReader::new(input);
    let mut done = Conversion::default();
    csv.next()?;
    let columns = Columns::of(&Header::of(&csv))?;
    for (wanted, place, name) in
        [(&options.model, columns.model, "Model"), (&options.log_type, columns.log_type, "Log Type")]
    {
        if wanted.is_some() && place.is_none() {
            return Err(ConvertError::Column(name));
        }
    }
    let (mut origin, mut last, mut row_number) = (None, 0.0, 0);
    while options.num_prompt.is_none_or(|most| done.requests < most) {
        let (line, whole) = match csv.next()? {
            Next::End => break,
            Next::TooLong(line) => {
                done.faults.add(line, "a quote is never closed: nothing after it was read");
                break;
            }
            Next::Record(line) => (line, true),
            Next::Cut(line) => (line, false),
        };
        row_number += 1;
        if csv.fields() != columns.count {
            if whole {
                done.faults
                    .add(line, format!("{} fields where the header has {}", csv.fields(), columns.count));
            } else {
                done.truncated = true;
            }
            continue;
        }
        let is = |wanted: &Option<String>, place: Option<usize>| match (wanted, place) {
            (Some(wanted), Some(place)) => csv.field(place).trim_ascii() == wanted.as_bytes(),
            _ => true,
        };
        if !is(&options.model, columns.model) || !is(&options.log_type, columns.log_type) {
            done.leave_out("another model or log type");
            continue;
        }
        let row = match read(&csv, &columns) {
            Ok(row) if row.seconds < last => {
                Err(format!("the timestamp {} is before an earlier row's {last}", row.seconds))
            }
            other => other,
        };
        let row = match row {
            Ok(row) => row,
            Err(why) => {
                done.faults.add(line, why);
                continue;
            }
        };
        last = row.seconds;
        if row.input == 0 || row.output == 0 {
            done.leave_out("no tokens (a failed request)");
            continue;
        }
        let origin = *origin.get_or_insert(row.seconds);
        let mut rng = SplitMix::new(derive(options.seed, ROW, row_number));
        let blocks = row.input.div_ceil(options.block_size);
        let request = TraceRequest {
            timestamp: Some(((row.seconds - origin) * 1e3 / options.speed_ratio).round()),
            input_length: row.input,
            output_length: row.output,
            hash_ids: (0..blocks).map(|_| rng.below(options.num_hash_blocks)).collect(),
            ..TraceRequest::default()
        };
        request.write(out, &[])?;
        done.requests += 1;
    }
    Ok(done)
}

fn read<R: BufRead>(csv: &CsvReader<R>, columns: &Columns) -> Result<Row, String> {
    let tokens = |place, name| {
        let value = number(csv.field(place), name)?;
        if value.fract() == 0.0 && value <= f64::from(u32::MAX) {
            Ok(value as u32)
        } else {
            Err(format!("the {name} {value} are not a number of tokens"))
        }
    };
    Ok(Row {
        seconds: number(csv.field(columns.timestamp), "timestamp")?,
        input: tokens(columns.request, "request tokens")?,
        output: tokens(columns.response, "response tokens")?,
    })
}
