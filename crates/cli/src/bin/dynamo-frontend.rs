//! The frontend as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use dynamo_cli::{CountingAllocator, FrontendArgs, run_frontend};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// OpenAI-compatible HTTP frontend with KV-cache-aware routing.
///
/// Finds workers through discovery and serves their models. Example, in two terminals:
///
///   dynamo worker --model-path tests/data/tiny-llama --speedup-ratio 10
///   dynamo-frontend --http-port 8000 --router-mode kv
#[derive(Parser)]
#[command(name = "dynamo-frontend", version, verbatim_doc_comment)]
struct Command {
    #[command(flatten)]
    args: FrontendArgs,
}

fn main() -> ExitCode {
    run_frontend(Command::parse().args)
}
