//! `dynamo worker`.

use std::process::ExitCode;

use dynamo_mocker::DisaggregationMode;
use dynamo_runtime::config::Layers;
use dynamo_worker::Workers;

use crate::{
    common::{self, CommonArgs, CommonConfig},
    engine_args::EngineArgs,
    frontend::describe,
    process::StartError,
    start_block::StartBlock,
};

/// Flags of workers.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs workers to their end.
pub fn run(args: WorkerArgs) -> ExitCode {
    let resolve = |layers: &mut Layers<'_>, common: &CommonConfig| {
        args.engine.resolve(layers, common.namespace.as_deref())
    };
    common::run(&args.common, resolve, |runtime, engine, common, chosen| async move {
        let (number, endpoint) = (engine.num_workers, engine.endpoint.clone());
        let loras = engine.loras.join(", ");
        let (speedup, mode) = (engine.engine.speedup_ratio, engine.engine.disaggregation_mode);
        let workers = Workers::start(&runtime, engine, common.runtime)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let mut block = StartBlock::new("worker");
        if let Some(distributed) = workers.runtime() {
            block = describe(block, distributed, &chosen);
        }
        let card = workers.card();
        block = block
            .line("model", format_args!("{} ({} tokens of context)", card.display_name, card.context_length));
        if !loras.is_empty() {
            block = block.line("adapters", loras);
        }
        if mode != DisaggregationMode::Agg {
            block = block.line("role", mode);
        }
        block
            .line("endpoint", endpoint.as_url())
            .line("engine", format_args!("{number} simulated, speed-up {speedup}"))
            .line("ready", "frontends that share the discovery find it by themselves")
            .print();
        runtime.drained().await;
        // What is left is cancelled: engines end with their workers.
        drop(workers);
        runtime.closed().await;
        Ok(())
    })
}
