//! NeMo Agent Toolkit profiles in their flat form (`standardized_data_all.csv`): the same events, one a row.

use std::io::{BufRead, Write};

use super::{
    Conversion, ConvertError, Nat, PromptBlocks,
    conversation::{Event, Sessions},
    csv::{CsvReader, Header, Next, number},
};

struct Columns {
    run: usize,
    kind: usize,
    time: usize,
    uuid: usize,
    prompt: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    count: usize,
}

impl Columns {
    fn of(header: &Header) -> Result<Self, ConvertError> {
        let place = |name| header.place(name).ok_or(ConvertError::Column(name));
        Ok(Self {
            run: place("example_number")?,
            kind: place("event_type")?,
            time: place("event_timestamp")?,
            uuid: place("UUID")?,
            prompt: place("llm_text_input")?,
            prompt_tokens: place("prompt_tokens")?,
            completion_tokens: place("completion_tokens")?,
            count: header.len(),
        })
    }
}

/// As [`convert_nat`](super::convert_nat), for the flat form. Rows of a run stand together, as the profiler writes them.
///
/// # Errors
/// If the file cannot be read or the trace not written, or columns are missing.
pub fn convert_nat_csv(
    input: impl BufRead,
    options: &Nat,
    blocks: &PromptBlocks,
    out: &mut impl Write,
) -> Result<Conversion, ConvertError> {
    let mut csv = CsvReader::new(input);
    csv.next()?;
    let columns = Columns::of(&Header::of(&csv))?;
    let mut sessions = Sessions::new(out, blocks, options.delay);
    let mut run: Option<(u64, u64)> = None;
    let mut wanted = true;
    loop {
        let (line, whole) = match csv.next()? {
            Next::End => break,
            Next::TooLong(line) => {
                sessions.done.faults.add(line, "a quote is never closed: nothing after it was read");
                break;
            }
            Next::Record(line) => (line, true),
            Next::Cut(line) => (line, false),
        };
        if csv.fields() != columns.count {
            if whole {
                let why = format!("{} fields where the header has {}", csv.fields(), columns.count);
                sessions.done.faults.add(line, why);
            } else {
                sessions.done.truncated = true;
            }
            continue;
        }
        let current = match number(csv.field(columns.run), "example_number") {
            Ok(value) => value as u64,
            Err(why) => {
                sessions.done.faults.add(line, why);
                continue;
            }
        };
        if run.is_none_or(|(_, before)| before != current) {
            if let Some((_, before)) = run {
                sessions.finish(before)?;
            }
            let place = run.map_or(0, |(place, _)| place + 1);
            run = Some((place, current));
            match options.wants(place) {
                None => return Ok(sessions.done),
                Some(wants) => wanted = wants,
            }
        }
        if !wanted {
            continue;
        }
        if let Err(why) = take(&csv, &columns, &mut sessions)? {
            sessions.done.faults.add(line, why);
        }
    }
    if let Some((_, last)) = run {
        sessions.finish(last)?;
    }
    Ok(sessions.done)
}

fn take<R: BufRead, W: Write>(
    csv: &CsvReader<R>,
    columns: &Columns,
    sessions: &mut Sessions<'_, W>,
) -> Result<Result<(), String>, ConvertError> {
    let event = match csv.field(columns.kind).trim_ascii() {
        b"LLM_START" => match std::str::from_utf8(csv.field(columns.prompt)) {
            Ok(prompt) => Event::Start { prompt },
            Err(_) => return Ok(Err("the prompt is not UTF-8".into())),
        },
        b"LLM_END" => {
            let tokens = |place, name| match csv.field(place).trim_ascii() {
                b"" => Ok(0),
                field => number(field, name).map(|value| value as u64),
            };
            let prompt_tokens = tokens(columns.prompt_tokens, "prompt_tokens");
            let completion_tokens = tokens(columns.completion_tokens, "completion_tokens");
            match (prompt_tokens, completion_tokens) {
                (Ok(prompt_tokens), Ok(completion_tokens)) => Event::End { prompt_tokens, completion_tokens },
                (Err(why), _) | (_, Err(why)) => return Ok(Err(why)),
            }
        }
        _ => return Ok(Ok(())),
    };
    let time = match number(csv.field(columns.time), "event_timestamp") {
        Ok(time) => time,
        Err(why) => return Ok(Err(why)),
    };
    let uuid = String::from_utf8_lossy(csv.field(columns.uuid));
    sessions.event(&uuid, time, &event)?;
    Ok(Ok(()))
}
