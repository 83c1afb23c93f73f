//! `dynamo trace convert`.

use std::path::Path;

use dynamo_text::Tokenizer;

use super::{
    BurstGptArgs, FAULTY, FINE, NatArgs, TraceToolError,
    files::{Output, beside, open, say},
    not_negative, positive,
};
use crate::convert::{
    BurstGpt, Conversion, Nat, PromptBlocks, convert_burstgpt, convert_nat, convert_nat_csv,
};

pub(super) fn nat(args: &NatArgs) -> Result<u8, TraceToolError> {
    let options = Nat {
        num_requests: args.num_requests,
        skip_requests: args.skip_requests,
        delay: not_negative("--delay", args.delay)?,
    };
    let tokenizer = args.tokenizer.as_deref().map(tokenizer).transpose()?;
    if tokenizer.is_none() {
        say("no --tokenizer: four bytes of a prompt count as a token\n");
    }
    let blocks = PromptBlocks::new(args.block_size, tokenizer);
    let path = args.output_file.clone().unwrap_or_else(|| beside(&args.input_file, "mooncake"));
    let input = open(&args.input_file)?;
    let mut out = Output::create(&path, &args.input_file)?;
    let flat = args.input_file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let done = if flat {
        convert_nat_csv(input, &options, &blocks, &mut out)?
    } else {
        convert_nat(input, &options, &blocks, &mut out)?
    };
    out.finish()?;
    Ok(report(&done, &path, args.salvage))
}

pub(super) fn burstgpt(args: &BurstGptArgs) -> Result<u8, TraceToolError> {
    let options = BurstGpt {
        model: args.model.clone(),
        log_type: args.log_type.clone(),
        num_prompt: args.num_prompt,
        speed_ratio: positive("--speed-ratio", args.speed_ratio)?,
        block_size: args.block_size,
        num_hash_blocks: args.num_hash_blocks,
        seed: args.seed,
    };
    let path = args.output_file.clone().unwrap_or_else(|| beside(&args.input_file, "mooncake"));
    let input = open(&args.input_file)?;
    let mut out = Output::create(&path, &args.input_file)?;
    let done = convert_burstgpt(input, &options, &mut out)?;
    out.finish()?;
    Ok(report(&done, &path, args.salvage))
}

fn tokenizer(path: &Path) -> Result<Tokenizer, TraceToolError> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    let json = std::fs::read(&file)
        .map_err(|source| TraceToolError::File { path: file.display().to_string(), source })?;
    Tokenizer::from_json(&json).map_err(|error| TraceToolError::flag("--tokenizer", error.to_string()))
}

/// Names what was wrong. A cut-off end is salvaged without being asked: what was whole is there.
fn report(done: &Conversion, path: &Path, salvage: bool) -> u8 {
    let mut text = done.faults.to_string();
    let sessions = match done.sessions {
        0 => String::new(),
        sessions => format!(" in {sessions} sessions"),
    };
    text.push_str(&format!("{} requests{sessions} in {}\n", done.requests, path.display()));
    for (why, count) in &done.left_out {
        text.push_str(&format!("left out: {count} with {why}\n"));
    }
    if done.moved > 0 {
        text.push_str(&format!("moved: {} that began before one listed earlier\n", done.moved));
    }
    if done.truncated {
        text.push_str("the input was cut off; what was whole is there\n");
    }
    if !done.faults.is_empty() {
        text.push_str(&format!("{} faults; what has none is there\n", done.faults.count));
    }
    say(&text);
    if done.faults.is_empty() || salvage { FINE } else { FAULTY }
}
