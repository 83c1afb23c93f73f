//! `dynamo serve`: frontend and workers in one process.

use std::process::ExitCode;

use anyhow::Context;
use dynamo_llm::RouterMode;
use dynamo_runtime::{DistributedRuntime, RequestPlaneSource, config::Layers};
use dynamo_worker::Workers;

use crate::{
    common::{CommonArgs, CommonConfig, Prepared, prepare, register_process},
    engine_args::EngineArgs,
    frontend::{Listening, ServiceArgs, describe, example},
    process::{self, StartError},
    start_block::StartBlock,
};

/// Flags of a whole stack.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs a stack to its end. It registers in discovery like any other: a worker in a second terminal joins it.
pub fn run(args: ServeArgs) -> ExitCode {
    let resolve = |layers: &mut Layers<'_>| {
        let service = args.service.resolve(layers, RouterMode::Kv)?;
        let common = CommonConfig::resolve(layers, &args.common)?;
        Ok((service, args.engine.resolve(layers, common.namespace.as_deref())?, common))
    };
    let ((service, engine, common), chosen) = match prepare(&args.common, resolve) {
        Ok(Prepared::Config(config, chosen)) => (config, chosen),
        Ok(Prepared::Printed) => return ExitCode::SUCCESS,
        Err(error) => return process::report(&error),
    };
    let limits = common.runtime.shutdown;
    let chosen = common.describe(&chosen);
    process::run(common.threads, limits, |runtime| async move {
        let mode = service.mode();
        let start = |error| StartError(anyhow::Error::new(error));
        let distributed =
            DistributedRuntime::new(runtime.clone(), common.runtime.clone()).await.map_err(start)?;
        register_process(distributed.metrics(), runtime.scope())?;
        let listening =
            Listening::start(service, &distributed, common.namespace).await.context("frontend")?;
        let mut own = common.runtime;
        own.request_plane = RequestPlaneSource::Shared(distributed.request_plane().clone());
        own.system.port = None;
        let number = engine.num_workers;
        let speedup = engine.engine.speedup_ratio;
        let workers = Workers::start(&runtime, engine, own)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let (url, card) = (listening.url.clone(), workers.card().clone());
        describe(StartBlock::new("serve").line("address", format_args!("{url}/v1")), &distributed, &chosen)
            .line("routing", mode)
            .line("model", format_args!("{} ({} tokens of context)", card.display_name, card.context_length))
            .line("engine", format_args!("{number} simulated workers, speed-up {speedup}"))
            .line("try", example(&url, &card.display_name))
            .print();
        listening.serve(&runtime).await;
        runtime.drained().await;
        // What is left is cancelled: engines end with their workers.
        drop(workers);
        runtime.closed().await;
        Ok(())
    })
}
