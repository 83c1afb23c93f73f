//! The `dynamo` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dynamo_cli::{
    CountingAllocator, FrontendArgs, GlobalRouterArgs, IndexerArgs, RouterCommandArgs, ServeArgs, WorkerArgs,
    run_bench, run_frontend, run_global_router, run_indexer, run_router, run_serve, run_simulate, run_trace,
    run_worker,
};
use dynamo_simulate::SimulateArgs;
use dynamo_trace::{BenchArgs, TraceArgs};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Serve large language models: frontend, router, workers and load generator in one program.
///
/// Try it, with nothing else installed:
///
///   dynamo serve --model-path tests/data/tiny-llama
///   dynamo bench --url http://127.0.0.1:8000 --concurrency 16 --requests 200
#[derive(Parser)]
#[command(name = "dynamo", version, verbatim_doc_comment)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Frontend and simulated workers in one process
    Serve(Box<ServeArgs>),
    /// The OpenAI-compatible HTTP frontend (also a program of its own, dynamo-frontend)
    Frontend(Box<FrontendArgs>),
    /// Simulated workers that frontends find through discovery
    Worker(Box<WorkerArgs>),
    /// The router of one endpoint as a process of its own
    Router(Box<RouterCommandArgs>),
    /// A router over pools, each with a router of its own
    GlobalRouter(Box<GlobalRouterArgs>),
    /// Says over HTTP which engine holds how much of a prompt
    Indexer(Box<IndexerArgs>),
    /// Load an OpenAI-compatible server, and say what it can do
    Bench(Box<BenchArgs>),
    /// Check, describe, make and convert traces of requests
    #[command(visible_alias = "datagen")]
    Trace(Box<TraceArgs>),
    /// Run a trace through a router and simulated workers, faster than real time
    Simulate(Box<SimulateArgs>),
}

fn main() -> ExitCode {
    match Command::parse().what {
        What::Serve(args) => run_serve(*args),
        What::Frontend(args) => run_frontend(*args),
        What::Worker(args) => run_worker(*args),
        What::Router(args) => run_router(*args),
        What::GlobalRouter(args) => run_global_router(*args),
        What::Indexer(args) => run_indexer(*args),
        What::Bench(args) => run_bench(*args),
        What::Trace(args) => run_trace(*args),
        What::Simulate(args) => run_simulate(*args),
    }
}
