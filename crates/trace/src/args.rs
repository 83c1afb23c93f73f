//! The flags of the load generator.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  64 clients that each wait for their answer, 1000 requests of 256 words and 64 tokens:
    dynamo bench --url http://127.0.0.1:8000 --concurrency 64 --requests 1000 --words 256 --output-tokens 64

  50 requests a second at random times for a minute, with the server's CPU and memory:
    dynamo bench --rate 50 --duration 60 --server-pid frontend=$(pgrep -n dynamo-frontend)

  What one token and one request cost the server, from runs of 64 and of 512 tokens in turn, five times:
    dynamo bench --concurrency 64 --requests 400 --difference 64,512 --server-pid frontend=123 --server-pid worker=456

  The same of two servers in turn, with ratios:
    dynamo bench --concurrency 64 --requests 400 --difference 64,512 --url http://127.0.0.1:8000 --server-pid frontend=123 \
      --versus http://127.0.0.1:8900 --versus-pid frontend=789

  A mooncake trace on its own schedule, 40 times as fast and one eighth as long, against the best one cache could do:
    dynamo bench --trace conversation_trace.jsonl --shrink 8 --speedup 40 --workers 8 --blocks-per-worker 2048 --worker-ids

  10,000 slow streams held open while 200 new connections a second come on top:
    dynamo bench --open-streams 10000 --rate 200 --new-connections --duration 60 --output-tokens 4

Exit code: 0 for a valid point, 1 for an invalid one (the reasons are in the report), 2 if it could not run.
Latency in open loop counts from the time a request was due, also when it was sent later.";

/// Loads any OpenAI-compatible server with streaming chat completions and reports what came back.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct BenchArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8000", help_heading = "Server")]
    pub url: String,

    /// Model to ask for [default: the first of /v1/models]
    #[arg(long, short, help_heading = "Server")]
    pub model: Option<String>,

    /// Header sent with every request, as "Name: value"; repeatable
    #[arg(long = "header", short = 'H', value_name = "HEADER", help_heading = "Server")]
    #[serde(skip)]
    pub headers: Vec<String>,

    /// Fields added to every request, as a JSON object, such as {"temperature":0}
    #[arg(long, value_name = "JSON", help_heading = "Server")]
    pub extra_body: Option<String>,

    /// Name and process id of a server process, to report its CPU time, memory and descriptors; repeatable, and processes
    /// of one name are added up
    #[arg(long = "server-pid", value_name = "NAME=PID", help_heading = "Server")]
    pub server_pids: Vec<String>,

    /// Closed loop: so many streams at once, each sends its next request when the last is answered
    /// [default: 8, if neither a rate nor a trace is given]
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    pub concurrency: Option<u32>,

    /// Open loop: requests a second on average, at random (Poisson) times
    #[arg(long, conflicts_with = "concurrency", help_heading = "Load")]
    pub rate: Option<f64>,

    /// How many requests are measured [default: the whole trace, or 200 if no duration is given]
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub requests: Option<u64>,

    /// For how many seconds requests are sent; what is in flight then is awaited
    #[arg(long, value_name = "SECONDS", help_heading = "Load")]
    pub duration: Option<f64>,

    /// Requests sent before measuring, as in a closed loop
    #[arg(long, default_value_t = 16, help_heading = "Load")]
    pub warmup: u64,

    /// Open loop: most requests in flight; further ones wait, and their lateness counts
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    pub max_in_flight: u32,

    /// A fresh connection for every request, instead of keeping connections
    #[arg(long, help_heading = "Load")]
    pub new_connections: bool,

    /// Seconds after which a request counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, help_heading = "Load")]
    pub timeout: f64,

    /// Names the prompts and the random times: equal seeds give equal loads
    #[arg(long, default_value_t = 1, help_heading = "Load")]
    pub seed: u64,

    /// Words of a synthetic prompt
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Prompts")]
    pub words: u32,

    /// Tokens asked for (of a trace: the trace says, unless this is given)
    /// [default: 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Prompts")]
    pub output_tokens: Option<u32>,

    /// How many distinct prompts take turns; 0 makes every request's prompt its own
    #[arg(long, default_value_t = 0, help_heading = "Prompts")]
    pub prompts: u64,

    /// Share of a prompt's words, from its start, that are common to prompts of a group (0 to 1)
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Prompts")]
    pub shared_prefix: f64,

    /// Into how many groups the prompts fall, each with its own shared prefix
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Prompts")]
    pub prefix_groups: u64,

    /// Let the model stop by itself, instead of asking it to ignore its end token
    #[arg(long, help_heading = "Prompts")]
    pub stop_at_eos: bool,

    /// Replay a mooncake trace: one block of text for every hash id, on the trace's schedule
    /// (with --concurrency: in its order, in closed loop; with --rate: in its order, at random times)
    #[arg(long, value_name = "FILE", help_heading = "Trace")]
    pub trace: Option<PathBuf>,

    /// Divide the trace's lengths by this
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=512), help_heading = "Trace")]
    pub shrink: u32,

    /// Replay the schedule so many times as fast
    #[arg(long, default_value_t = 1.0, help_heading = "Trace")]
    pub speedup: f64,

    /// Tokens of text for a hash id [default: 512 divided by --shrink]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Trace")]
    pub trace_block_tokens: Option<u32>,

    /// Words that make a block of that many tokens [default: 9 words for 32 tokens, exact for the tiny model; a large
    /// vocabulary has about one token a word]
    #[arg(long, value_name = "WORDS", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Trace")]
    pub trace_block_words: Option<u32>,

    /// Workers of the server, to compute the cached share that one cache of all their blocks would reach
    #[arg(long, requires = "blocks_per_worker", help_heading = "Trace")]
    pub workers: Option<u32>,

    /// Blocks of each worker's cache, of the size of a trace block
    #[arg(long, value_name = "BLOCKS", requires = "workers", help_heading = "Trace")]
    pub blocks_per_worker: Option<u32>,

    /// Ask the server which worker answered (nvext.extra_fields), to report how evenly requests fall
    #[arg(long, help_heading = "Trace")]
    pub worker_ids: bool,

    /// Hold so many streams open, each on its own connection, while the load runs
    #[arg(long, value_name = "STREAMS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000), help_heading = "Open streams")]
    pub open_streams: u32,

    /// Tokens asked for by each of them: enough that none ends before the load does
    #[arg(long, value_name = "TOKENS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Open streams")]
    pub open_tokens: u32,

    /// How many of them are opened a second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500.0, help_heading = "Open streams")]
    pub open_rate: f64,

    /// Seconds to wait after everything is closed before the server's memory and descriptors are read once more
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, help_heading = "Server")]
    pub after: f64,

    /// Run with the first and with the second number of output tokens in turn, and report by difference what a token and
    /// a request cost; needs --server-pid
    #[arg(long, value_name = "FEW,MANY", value_delimiter = ',', num_args = 1, conflicts_with_all = ["trace", "output_tokens"], help_heading = "In turn")]
    pub difference: Vec<u32>,

    /// Measure a second server in turn with the first (A, B, A, B), and report medians and ratios
    #[arg(long, value_name = "URL", conflicts_with = "model", help_heading = "In turn")]
    pub versus: Option<String>,

    /// Like --server-pid, for the second server
    #[arg(long = "versus-pid", value_name = "NAME=PID", requires = "versus", help_heading = "In turn")]
    pub versus_pids: Vec<String>,

    /// How often each is run, with --difference or --versus; medians are reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "In turn")]
    pub rounds: u32,

    /// An open-loop point is invalid when the 99th percentile of lateness in sending is beyond this
    #[arg(long, value_name = "MS", default_value_t = 10.0, help_heading = "Report")]
    pub max_lateness_ms: f64,

    /// Write the report as JSON to a file, or to standard output with "-" (the table then goes to standard error)
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub json: Option<PathBuf>,

    /// When to draw a progress bar
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Report")]
    pub progress: ProgressMode,
}

/// When to draw a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressMode {
    /// If standard error is a terminal.
    Auto,
    /// Never.
    Never,
}
