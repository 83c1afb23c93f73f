//! The flags of `dynamo trace`, named as the incumbent's tools name theirs.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};

const EXAMPLES: &str = "\
Examples:
  Is this a trace that can be replayed? And if not, what can be saved of it?
    dynamo trace validate --input-file conversation_trace.jsonl --salvage good.jsonl

  What would a cache of 100,000 blocks serve of it?
    dynamo trace analyze --input-file conversation_trace.jsonl --cache-blocks 10000,100000 --html trace.html

  The same users at twice the speed, with prompts of their own half as long again:
    dynamo trace synthesize --input-file conversation_trace.jsonl --num-requests 12000 --speedup-ratio 2 \\
      --prompt-len-multiplier 1.5 --output-file faster.jsonl

  Agent runs recorded by the NeMo Agent Toolkit, tokenized as the model does:
    dynamo trace convert nat --input-file all_requests_profiler_traces.json --tokenizer models/llama

  An hour of waves:
    dynamo trace sine --time-duration 3600 --request-rate-min 2 --request-rate-max 20 --request-rate-period 600 \\
      --output-file waves.jsonl

  Then replay it on a server, or simulate it:
    dynamo bench --trace waves.jsonl
    dynamo simulate --trace waves.jsonl --workers 8

Exit code: 0 if all went well, 2 if the input has faults (they are named by line) or the work could not be done.
The format is described in docs/traces.md.";

/// Checks, describes, makes and converts traces of requests.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TraceArgs {
    /// What to do
    #[command(subcommand)]
    pub command: TraceCommand,
}

/// What can be done with traces.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceCommand {
    /// Check every line of a trace
    Validate(ValidateArgs),
    /// Lengths, rates, sharing, and what caches could serve
    Analyze(AnalyzeArgs),
    /// Make a new trace with the statistics of a given one
    Synthesize(SynthesizeArgs),
    /// Make a trace slower or faster
    Stretch(StretchArgs),
    /// Make prompts longer, or every request several times over
    Duplicate(DuplicateArgs),
    /// Convert another format into a trace
    #[command(subcommand)]
    Convert(ConvertArgs),
    /// Make a load that comes and goes in waves
    #[command(visible_alias = "sin")]
    Sine(SineArgs),
}

/// Formats to convert from.
#[derive(Clone, Debug, Subcommand)]
pub enum ConvertArgs {
    /// A NeMo Agent Toolkit profile: all_requests_profiler_traces.json, or standardized_data_all.csv
    Nat(NatArgs),
    /// A BurstGPT CSV (Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type)
    Burstgpt(BurstGptArgs),
}

/// `dynamo trace validate`.
#[derive(Clone, Debug, Args)]
pub struct ValidateArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Write the lines without a fault to this file ("-": standard output), and exit with 0 if there are any
    #[arg(long, value_name = "FILE")]
    pub salvage: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `dynamo trace analyze`.
#[derive(Clone, Debug, Args)]
pub struct AnalyzeArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Cache sizes, in blocks, to tell the cached share of [default: a ladder up to all blocks of the trace]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    pub cache_blocks: Vec<usize>,
    /// Write the result as JSON to a file, or to standard output with "-" (the table then goes to standard error)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `dynamo trace synthesize`.
#[derive(Clone, Debug, Args)]
pub struct SynthesizeArgs {
    /// The trace to learn from
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Where to write ("-": standard output) [default: beside the input, as NAME_synth.jsonl]
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Requests to make
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..))]
    pub num_requests: u64,
    /// How much faster requests come
    #[arg(long, default_value_t = 1.0)]
    pub speedup_ratio: f64,
    /// How much longer shared prefixes are
    #[arg(long, default_value_t = 1.0)]
    pub prefix_len_multiplier: f64,
    /// Copies of the tree of prefixes, which share nothing with one another
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub prefix_root_multiplier: u32,
    /// How much longer the parts of prompts are that nobody else has
    #[arg(long, default_value_t = 1.0)]
    pub prompt_len_multiplier: f64,
    /// How much longer answers are
    #[arg(long, default_value_t = 1.0)]
    pub osl_multiplier: f64,
    /// Draw prompts with more tokens again
    #[arg(long, value_name = "TOKENS")]
    pub max_isl: Option<u32>,
    /// Draw prompts with fewer tokens again
    #[arg(long, value_name = "TOKENS")]
    pub min_isl: Option<u32>,
    /// Lengthen shorter answers to this
    #[arg(long, value_name = "TOKENS")]
    pub min_osl: Option<u32>,
    /// Cut longer answers to this
    #[arg(long, value_name = "TOKENS")]
    pub max_osl: Option<u32>,
    /// Requests less than so many apart may change places, and go on as one another: 1 keeps the old order; 0 draws among all,
    /// and then bounded caches serve less than of the old trace
    #[arg(long, value_name = "REQUESTS", default_value_t = 64, value_parser = value_parser!(u32).range(0..=65_536))]
    pub reorder_window: u32,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Equal seeds give equal traces
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// `dynamo trace stretch`.
#[derive(Clone, Debug, Args)]
pub struct StretchArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Where to write ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub output_file: PathBuf,
    /// Multiply all times by this: 2 is half as fast
    #[arg(long, required_unless_present = "duration_ms")]
    pub factor: Option<f64>,
    /// Multiply so that the trace lasts this long, from 0
    #[arg(long, visible_alias = "trace-simulation-duration", value_name = "MS", conflicts_with = "factor")]
    pub duration_ms: Option<f64>,
}

/// `dynamo trace duplicate`.
#[derive(Clone, Debug, Args)]
pub struct DuplicateArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Where to write ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub output_file: PathBuf,
    /// Make every block so many blocks, and prompts so many times as long
    #[arg(long, visible_alias = "trace-length-factor", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024))]
    pub length_factor: u32,
    /// Make every request so many, that share nothing with one another
    #[arg(long, visible_alias = "trace-duplication-factor", default_value_t = 1, value_parser = value_parser!(u32).range(1..=4096))]
    pub copies: u32,
}

/// `dynamo trace convert nat`.
#[derive(Clone, Debug, Args)]
pub struct NatArgs {
    /// The profile, as JSON or (by its name) as CSV
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Where to write ("-": standard output) [default: beside the input, as NAME_mooncake.jsonl]
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// A model directory or tokenizer.json, to count and cut tokens as the model does [default: four bytes are a token]
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Agent runs to convert [default: all]
    #[arg(long)]
    pub num_requests: Option<u64>,
    /// Agent runs to skip first
    #[arg(long, default_value_t = 0)]
    pub skip_requests: u64,
    /// Time between the end of a turn and the next turn of its run
    #[arg(long, value_name = "MS", default_value_t = 500.0)]
    pub delay: f64,
    /// Exit with 0 though there are faults; what has none is written in any case
    #[arg(long)]
    pub salvage: bool,
}

/// `dynamo trace convert burstgpt`.
#[derive(Clone, Debug, Args)]
pub struct BurstGptArgs {
    /// The CSV
    #[arg(long, value_name = "FILE")]
    pub input_file: PathBuf,
    /// Where to write ("-": standard output) [default: beside the input, as NAME_mooncake.jsonl]
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Only rows of this model (ChatGPT, GPT-4)
    #[arg(long)]
    pub model: Option<String>,
    /// Only rows of this log ("Conversation log", "API log")
    #[arg(long)]
    pub log_type: Option<String>,
    /// At most so many requests
    #[arg(long)]
    pub num_prompt: Option<u64>,
    /// How much faster requests come
    #[arg(long, default_value_t = 1.0)]
    pub speed_ratio: f64,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 128, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Different blocks that prompts are made of, at random: fewer are shared more
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    pub num_hash_blocks: u64,
    /// Equal seeds give equal blocks
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Exit with 0 though there are faults; what has none is written in any case
    #[arg(long)]
    pub salvage: bool,
}

/// `dynamo trace sine`: rate(t) = (min + max)/2 + (max − min)/2 · sin(2πt/period − π/2), and the share of the first kind
/// of requests likewise.
#[derive(Clone, Debug, Args)]
pub struct SineArgs {
    /// Where to write ("-": standard output)
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub output_file: PathBuf,
    /// Tokens that a hash id stands for
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// Different blocks that prompts are made of, at random
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    pub total_blocks: u64,
    /// Seconds of load
    #[arg(long, value_name = "SECONDS", default_value_t = 100.0)]
    pub time_duration: f64,
    /// Seconds over which the rate is held
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub process_interval: f64,
    /// Requests a second at the lowest
    #[arg(long, default_value_t = 5.0)]
    pub request_rate_min: f64,
    /// Requests a second at the highest
    #[arg(long, default_value_t = 10.0)]
    pub request_rate_max: f64,
    /// Seconds from one lowest rate to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub request_rate_period: f64,
    /// Prompt tokens of the first kind
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
    pub isl1: u32,
    /// Answer tokens of the first kind
    #[arg(long, default_value_t = 2000, value_parser = value_parser!(u32).range(1..))]
    pub osl1: u32,
    /// Prompt tokens of the second kind
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u32).range(1..))]
    pub isl2: u32,
    /// Answer tokens of the second kind
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
    pub osl2: u32,
    /// Share of the first kind at the lowest (0 to 1)
    #[arg(long, default_value_t = 0.2)]
    pub isl_osl_ratio_min: f64,
    /// Share of the first kind at the highest (0 to 1)
    #[arg(long, default_value_t = 0.8)]
    pub isl_osl_ratio_max: f64,
    /// Seconds from one lowest share to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub isl_osl_ratio_period: f64,
    /// Equal seeds give equal loads
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}
