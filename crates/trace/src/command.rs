//! `dynamo trace`: flags, files, and what is printed.

mod args;
mod convert_command;
mod files;

use std::io::Write;

pub use args::{
    AnalyzeArgs, BurstGptArgs, ConvertArgs, DuplicateArgs, NatArgs, SineArgs, StretchArgs, SynthesizeArgs,
    TraceArgs, TraceCommand, ValidateArgs,
};
use files::{Output, beside, open, say};

use crate::{
    analyze::{self, analyze},
    convert::ConvertError,
    mooncake::{TraceError, read_trace},
    reshape::{ReshapeError, duplicate, highest_id, stretch, time_span},
    sine::{SineLoad, Wave},
    synthesize::{Synthesis, SynthesisError, Synthesizer},
    validate::validate,
};

/// Everything is right.
const FINE: u8 = 0;
/// The input has faults, which were named.
const FAULTY: u8 = 2;

/// Why a command could not do its work. Faults of an input are no such reason, unless nothing can be made of it.
#[derive(Debug, thiserror::Error)]
pub enum TraceToolError {
    /// A file could not be opened or made.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Reading or writing failed half-way.
    #[error("cannot read or write: {0}")]
    Io(#[from] std::io::Error),
    /// A flag's value makes no sense.
    #[error("{flag}: {why}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What to give instead.
        why: String,
    },
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The trace cannot be reshaped.
    #[error(transparent)]
    Reshape(#[from] ReshapeError),
    /// No trace can be made like it.
    #[error(transparent)]
    Synthesis(#[from] SynthesisError),
    /// The input cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

impl TraceToolError {
    fn flag(flag: &'static str, why: impl Into<String>) -> Self {
        Self::Flag { flag, why: why.into() }
    }

    /// The exit code for it: like every start-up error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        2
    }
}

/// Runs a command; what it makes goes to files or standard output, what it says to standard error. Returns the exit code:
/// 0, or 2 if the input has faults and nothing told to live with them.
///
/// # Errors
/// If the work could not be done.
pub fn run_trace(args: TraceArgs) -> Result<u8, TraceToolError> {
    match args.command {
        TraceCommand::Validate(args) => run_validate(&args),
        TraceCommand::Analyze(args) => run_analyze(&args),
        TraceCommand::Synthesize(args) => run_synthesize(&args),
        TraceCommand::Stretch(args) => run_stretch(&args),
        TraceCommand::Duplicate(args) => run_duplicate(&args),
        TraceCommand::Convert(ConvertArgs::Nat(args)) => convert_command::nat(&args),
        TraceCommand::Convert(ConvertArgs::Burstgpt(args)) => convert_command::burstgpt(&args),
        TraceCommand::Sine(args) => run_sine(&args),
    }
}

fn positive(flag: &'static str, value: f64) -> Result<f64, TraceToolError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(TraceToolError::flag(flag, format!("{value} is not a number above 0")))
    }
}

fn not_negative(flag: &'static str, value: f64) -> Result<f64, TraceToolError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(TraceToolError::flag(flag, format!("{value} is not a number from 0")))
    }
}

fn run_validate(args: &ValidateArgs) -> Result<u8, TraceToolError> {
    let mut salvage =
        args.salvage.as_deref().map(|path| Output::create(path, &args.input_file)).transpose()?;
    let writer = salvage.as_mut().map(|output| output as &mut dyn Write);
    let found = validate(open(&args.input_file)?, args.block_size, writer)?;
    if let Some(salvage) = salvage {
        salvage.finish()?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found).map_err(std::io::Error::other)?);
    } else {
        print!("{}", found.faults);
        if let Some(size) = found.fitting_block_size {
            println!("all lengths fit blocks of {size} tokens: try --block-size {size}");
        }
        let truncated = if found.truncated { ", and the file was cut off" } else { "" };
        println!(
            "{} requests in {} lines, {} sessions, {} faults{truncated}",
            found.requests, found.lines, found.sessions, found.faults.count
        );
    }
    let salvaged = args.salvage.is_some() && found.requests > 0;
    Ok(if found.faults.is_empty() || salvaged { FINE } else { FAULTY })
}

fn run_analyze(args: &AnalyzeArgs) -> Result<u8, TraceToolError> {
    let analysis = analyze(&read_trace(&args.input_file)?, args.block_size, &args.cache_blocks);
    let table = analyze::table(&analysis);
    match args.json.as_deref() {
        Some(path) => {
            let mut json = Output::create(path, &args.input_file)?;
            serde_json::to_writer_pretty(&mut json, &analysis).map_err(std::io::Error::other)?;
            json.write_all(b"\n")?;
            json.finish()?;
            say(&table);
        }
        None => print!("{table}"),
    }
    if let Some(path) = &args.html {
        let mut html = Output::create(path, &args.input_file)?;
        html.write_all(analyze::page(&analysis, &files::name(&args.input_file)).as_bytes())?;
        html.finish()?;
    }
    Ok(FINE)
}

fn run_synthesize(args: &SynthesizeArgs) -> Result<u8, TraceToolError> {
    let old = read_trace(&args.input_file)?;
    let synthesis = Synthesis {
        num_requests: args.num_requests,
        speedup_ratio: positive("--speedup-ratio", args.speedup_ratio)?,
        prefix_len_multiplier: positive("--prefix-len-multiplier", args.prefix_len_multiplier)?,
        prefix_root_multiplier: args.prefix_root_multiplier,
        prompt_len_multiplier: positive("--prompt-len-multiplier", args.prompt_len_multiplier)?,
        osl_multiplier: positive("--osl-multiplier", args.osl_multiplier)?,
        max_isl: args.max_isl,
        min_isl: args.min_isl,
        max_osl: args.max_osl,
        min_osl: args.min_osl,
        window: if args.reorder_window == 0 { u32::MAX } else { args.reorder_window },
        block_size: args.block_size,
        seed: args.seed,
    };
    let path = args.output_file.clone().unwrap_or_else(|| beside(&args.input_file, "synth"));
    let mut out = Output::create(&path, &args.input_file)?;
    Synthesizer::new(&old, synthesis)?.run(|made| {
        let further = [
            ("context_len", u64::from(made.context_len)),
            ("unique_user_prompt_len", u64::from(made.unique_user_prompt_len)),
        ];
        made.request.write(&mut out, &further).map_err(TraceToolError::from)
    })?;
    out.finish()?;
    say(&format!(
        "{} requests like the {} of {} in {}\n",
        args.num_requests,
        old.len(),
        files::name(&args.input_file),
        path.display()
    ));
    Ok(FINE)
}

fn run_stretch(args: &StretchArgs) -> Result<u8, TraceToolError> {
    let (factor, origin) = match (args.factor, args.duration_ms) {
        (Some(factor), _) => (positive("--factor", factor)?, 0.0),
        (None, Some(duration)) => {
            let (first, last) = time_span(open(&args.input_file)?)?;
            (positive("--duration-ms", duration)? / (last - first), first)
        }
        (None, None) => return Err(TraceToolError::flag("--factor", "give it, or --duration-ms")),
    };
    let mut out = Output::create(&args.output_file, &args.input_file)?;
    stretch(open(&args.input_file)?, factor, origin, &mut out)?;
    Ok(out.finish().map(|()| FINE)?)
}

fn run_duplicate(args: &DuplicateArgs) -> Result<u8, TraceToolError> {
    let highest = if args.copies > 1 { highest_id(open(&args.input_file)?)? } else { 0 };
    let mut out = Output::create(&args.output_file, &args.input_file)?;
    duplicate(open(&args.input_file)?, args.length_factor, args.copies, highest, &mut out)?;
    Ok(out.finish().map(|()| FINE)?)
}

fn run_sine(args: &SineArgs) -> Result<u8, TraceToolError> {
    let wave = |flags: [&'static str; 3], values: [f64; 3], most: f64| {
        let [min, max] = [0, 1].map(|at| not_negative(flags[at], values[at]));
        let (min, max) = (min?, max?);
        if min > max || max > most {
            return Err(TraceToolError::flag(flags[1], format!("{max} is not from {min} to {most}")));
        }
        Ok(Wave { min, max, period: positive(flags[2], values[2])? })
    };
    let rates = [args.request_rate_min, args.request_rate_max, args.request_rate_period];
    let ratios = [args.isl_osl_ratio_min, args.isl_osl_ratio_max, args.isl_osl_ratio_period];
    let load = SineLoad {
        block_size: args.block_size,
        total_blocks: args.total_blocks,
        duration: positive("--time-duration", args.time_duration)?,
        interval: positive("--process-interval", args.process_interval)?,
        rate: wave(["--request-rate-min", "--request-rate-max", "--request-rate-period"], rates, 1e6)?,
        first: (args.isl1, args.osl1),
        second: (args.isl2, args.osl2),
        ratio: wave(["--isl-osl-ratio-min", "--isl-osl-ratio-max", "--isl-osl-ratio-period"], ratios, 1.0)?,
        seed: args.seed,
    };
    let mut out = Output::create(&args.output_file, std::path::Path::new(""))?;
    let mut count = 0u64;
    for request in load.requests() {
        request.write(&mut out, &[])?;
        count += 1;
    }
    out.finish()?;
    say(&format!("{count} requests in {}\n", args.output_file.display()));
    Ok(FINE)
}

#[cfg(test)]
mod tests;
