//! `dynamo serve`: frontend and workers in one process.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use dynamo_llm::RouterMode;
use dynamo_runtime::{
    DistributedRuntime, RequestPlaneSource, ShutdownReason, config::Layers, system::HealthStatus,
};
use dynamo_worker::{WorkerConfig, Workers};

use crate::{
    common::{self, CommonArgs, CommonConfig},
    engine_args::EngineArgs,
    frontend::{Listening, ServiceArgs, can_be_asked, describe, example},
    process::StartError,
    start_block::StartBlock,
};

/// How long the model may take from its registration to its first request: its files are read once more.
const MODEL_LIMIT: Duration = Duration::from_secs(30);

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
    let resolve = |layers: &mut Layers<'_>, common: &CommonConfig| {
        let service = args.service.resolve(layers, RouterMode::Kv)?;
        let engine = args.engine.resolve(layers, common.namespace.as_deref())?;
        one_namespace(common.namespace.as_deref(), &engine)?;
        Ok((service, engine))
    };
    common::run(&args.common, resolve, |runtime, (service, engine), common, chosen| async move {
        let mode = service.mode();
        let start = |error| StartError(anyhow::Error::new(error));
        let distributed =
            DistributedRuntime::new(runtime.clone(), common.runtime.clone()).await.map_err(start)?;
        let listening =
            Listening::start(service, &distributed, common.namespace).await.context("frontend")?;
        let mut own = common.runtime;
        own.request_plane = RequestPlaneSource::Shared(distributed.request_plane().clone());
        own.system.port = None;
        let (number, endpoint) = (engine.num_workers, engine.endpoint.clone());
        let loras = engine.loras.join(", ");
        let speedup = engine.engine.speedup_ratio;
        let workers = Workers::start(&runtime, engine, own)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        workers.register_routes(distributed.system());
        let (url, card, catalog) = (listening.url.clone(), workers.card().clone(), listening.catalog());
        let block = StartBlock::new("serve").line("address", format_args!("{url}/v1"));
        let mut block = describe(block, &distributed, &chosen)
            .line("routing", mode)
            .line("model", format_args!("{} ({} tokens of context)", card.display_name, card.context_length));
        if !loras.is_empty() {
            block = block.line("adapters", loras);
        }
        let block = block
            .line("engine", format_args!("{number} simulated workers, speed-up {speedup}"))
            .line("try", example(&url, &card.display_name));
        let announce = async {
            let (name, workers) = (&card.display_name, number as usize);
            let asked = tokio::select! {
                asked = can_be_asked(&catalog, name, &endpoint, workers, MODEL_LIMIT) => asked,
                () = runtime.shutting_down() => return Ok(()),
            };
            if !asked {
                runtime.shutdown(ShutdownReason::Fatal("the model did not become ready".to_owned()));
                anyhow::bail!(
                    "the model {name} was not ready within {} s: the warnings in the log say why",
                    MODEL_LIMIT.as_secs()
                );
            }
            distributed.system().set_status(HealthStatus::Ready);
            block.print();
            Ok(())
        };
        let ((), announced) = tokio::join!(listening.serve(&runtime), announce);
        runtime.drained().await;
        // What is left is cancelled: engines end with their workers.
        drop(workers);
        runtime.closed().await;
        announced
    })
}

/// The frontend of a stack serves its own namespace only: with workers in another, it would have no model.
fn one_namespace(namespace: Option<&str>, engine: &WorkerConfig) -> anyhow::Result<()> {
    let Some(namespace) = namespace else { return Ok(()) };
    anyhow::ensure!(
        engine.endpoint.namespace == namespace,
        "--namespace {namespace} and --endpoint {}: the frontend would not see its own workers; name one namespace, or leave one of the two out",
        engine.endpoint.as_url()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
