//! NeMo Agent Toolkit profiles (`all_requests_profiler_traces.json`): every model call of every agent run, with prompts.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::{
    Conversion, ConvertError, PromptBlocks,
    conversation::{Event, Sessions},
    profile_json::{Piece, ProfileReader},
};

/// Which runs to take, and what the format does not say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nat {
    /// At most so many runs.
    pub num_requests: Option<u64>,
    /// After so many that are skipped.
    pub skip_requests: u64,
    /// Milliseconds between the end of a turn and the next turn of its session.
    pub delay: f64,
}

impl Nat {
    /// Whether the run at this place is wanted; `None` once no later one is.
    pub(super) fn wants(&self, place: u64) -> Option<bool> {
        let end = self.num_requests.map(|runs| runs.saturating_add(self.skip_requests));
        if end.is_some_and(|end| place >= end) { None } else { Some(place >= self.skip_requests) }
    }
}

#[derive(Deserialize)]
struct Step {
    payload: Option<Payload>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    event_type: String,
    #[serde(default)]
    event_timestamp: Option<f64>,
    #[serde(rename = "UUID", default)]
    uuid: String,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    usage_info: Option<UsageInfo>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    chat_inputs: Option<Vec<Message>>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    input: Option<Content>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<Content>,
}

/// A text, or a list of parts some of which are texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Text { text: String },
    Plain(String),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct UsageInfo {
    #[serde(default)]
    token_usage: Option<TokenUsage>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct TokenUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Payload {
    /// What all messages say, one after the other on lines of their own.
    fn prompt(&self) -> String {
        let messages = self.metadata.as_ref().and_then(|metadata| metadata.chat_inputs.as_deref());
        let mut texts: Vec<&str> = Vec::new();
        for content in messages.unwrap_or_default().iter().filter_map(|message| message.content.as_ref()) {
            content.texts(&mut texts);
        }
        if texts.is_empty()
            && let Some(input) = self.data.as_ref().and_then(|data| data.input.as_ref())
        {
            input.texts(&mut texts);
        }
        texts.join("\n")
    }
}

impl Content {
    fn texts<'a>(&'a self, out: &mut Vec<&'a str>) {
        match self {
            Self::Text(text) => out.push(text),
            Self::Parts(parts) => out.extend(parts.iter().filter_map(|part| match part {
                Part::Text { text } | Part::Plain(text) => Some(text.as_str()),
                Part::Other(_) => None,
            })),
            Self::Other(_) => {}
        }
    }
}

/// Converts run by run; a run becomes a session, and its calls become turns. Memory is that of one step and of the block
/// ids of one run.
///
/// # Errors
/// If the file cannot be read or the trace not written, or it is something else from its first byte on.
pub fn convert_nat(
    input: impl Read,
    options: &Nat,
    blocks: &PromptBlocks,
    out: &mut impl Write,
) -> Result<Conversion, ConvertError> {
    let mut profile = ProfileReader::new(input);
    let mut sessions = Sessions::new(out, blocks, options.delay);
    let (mut place, mut any) = (0, false);
    while let Some(wanted) = options.wants(place) {
        let piece = profile.next()?;
        match &piece {
            Piece::Step(line) if wanted => match serde_json::from_slice::<Step>(profile.step()) {
                Ok(Step { payload: Some(payload) }) => take(&mut sessions, &payload)?,
                Ok(Step { payload: None }) => {}
                Err(error) => {
                    let why = format!("a step that starts here is not as the profiler writes it: {error}");
                    sessions.done.faults.add(*line, why);
                }
            },
            Piece::Step(_) => {}
            Piece::Broken(line, why) if !any && profile.number().is_none() && *line == 1 => {
                return Err(ConvertError::Format { line: *line, why: why.clone() });
            }
            Piece::Broken(line, why) => sessions.done.faults.add(*line, why.clone()),
            Piece::Cut => sessions.done.truncated = true,
            Piece::RequestEnd | Piece::End => {}
        }
        any = true;
        if !matches!(piece, Piece::Step(_)) {
            // What came of a run before a break or a cut counts.
            sessions.finish(profile.number().unwrap_or(place))?;
            place += 1;
        }
        if matches!(piece, Piece::Cut | Piece::End) {
            break;
        }
    }
    Ok(sessions.done)
}

fn take<W: Write>(sessions: &mut Sessions<'_, W>, payload: &Payload) -> Result<(), ConvertError> {
    let time = payload.event_timestamp.unwrap_or(0.0);
    let prompt;
    let event = match payload.event_type.as_str() {
        "LLM_START" => {
            prompt = payload.prompt();
            Event::Start { prompt: &prompt }
        }
        "LLM_END" => {
            let usage = payload.usage_info.as_ref().and_then(|info| info.token_usage).unwrap_or_default();
            Event::End { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
        }
        _ => return Ok(()),
    };
    Ok(sessions.event(&payload.uuid, time, &event)?)
}
