//! `dynamo serve`: frontend and workers in one process.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use dynamo_llm::RouterMode;
use dynamo_mocker::{DisaggregationMode, MockerConfig};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, RequestPlaneSource, ShutdownReason,
    config::{Key, Layers},
    system::HealthStatus,
};
use dynamo_worker::{WirePorts, WorkerConfig, Workers};

use crate::{
    common::{self, CommonArgs, CommonConfig},
    engine_args::{EngineArgs, MAX_WORKERS, PREFILL_COMPONENT},
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
    /// Simulated workers that compute prompts alone, beside those that answer [default: 0]
    #[arg(long, value_name = "N", help_heading = "Model and simulated engine")]
    num_prefill_workers: Option<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

const NUM_PREFILL: Key = Key::new("num-prefill-workers").expects("a number from 0 to 1024");

/// Runs a stack to its end. It registers in discovery like any other: a worker in a second terminal joins it.
pub fn run(args: ServeArgs) -> ExitCode {
    let resolve = |layers: &mut Layers<'_>, common: &CommonConfig| {
        let service = args.service.resolve(layers, RouterMode::Kv)?;
        let engine = args.engine.resolve(layers, common.namespace.as_deref())?;
        one_namespace(common.namespace.as_deref(), &engine)?;
        let number = layers.value(&NUM_PREFILL, args.num_prefill_workers, 0)?;
        let prefill = prefill_workers(&engine, number)?;
        Ok((service, engine, prefill))
    };
    common::run(&args.common, resolve, |runtime, (service, engine, prefill), common, chosen| async move {
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
        let prefill_line = prefill.as_ref().map(|it| (it.num_workers, it.endpoint.as_url()));
        // Side by side: engines may take a while to be ready.
        let start_prefill = async {
            match prefill {
                Some(prefill) => Workers::start(&runtime, prefill, own.clone()).await.map(Some),
                None => Ok(None),
            }
        };
        let (prefill, workers) =
            tokio::try_join!(start_prefill, Workers::start(&runtime, engine, own.clone()))
                .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let others: Vec<&Workers> = prefill.iter().collect();
        workers.register_routes_with(&others, distributed.system());
        let (url, card, catalog) = (listening.url.clone(), workers.card().clone(), listening.catalog());
        let block = StartBlock::new("serve").line("address", format_args!("{url}/v1"));
        let mut block = describe(block, &distributed, &chosen)
            .line("routing", mode)
            .line("model", format_args!("{} ({} tokens of context)", card.display_name, card.context_length));
        if !loras.is_empty() {
            block = block.line("adapters", loras);
        }
        block = block.line("engine", format_args!("{number} simulated workers, speed-up {speedup}"));
        if let Some((number, endpoint)) = prefill_line {
            block = block.line("prefill", format_args!("{number} simulated workers at {endpoint}"));
        }
        let block = block.line("try", example(&url, &card.display_name));
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
        drop((workers, prefill));
        runtime.closed().await;
        announced
    })
}

/// Workers like the others, but of prompts alone; none of a number of 0.
fn prefill_workers(engine: &WorkerConfig, number: u32) -> anyhow::Result<Option<WorkerConfig>> {
    anyhow::ensure!(
        engine.engine.disaggregation_mode != DisaggregationMode::Prefill,
        "a stack of prefill workers alone has nobody who answers: give --num-prefill-workers N instead of the role"
    );
    anyhow::ensure!(
        number <= MAX_WORKERS,
        "--num-prefill-workers {number}: give a number from 0 to {MAX_WORKERS}"
    );
    if number == 0 {
        return Ok(None);
    }
    let endpoint = EndpointId { component: PREFILL_COMPONENT.to_owned(), ..engine.endpoint.clone() };
    anyhow::ensure!(
        endpoint != engine.endpoint,
        "--endpoint {}: prefill workers are there; give another component, or --num-prefill-workers 0",
        endpoint.as_url()
    );
    // The ports that were given are the others'.
    let ports = if engine.wire_ports.is_empty() { 0 } else { number as usize };
    Ok(Some(WorkerConfig {
        endpoint,
        num_workers: number,
        engine: MockerConfig { disaggregation_mode: DisaggregationMode::Prefill, ..engine.engine.clone() },
        wire_ports: vec![WirePorts::default(); ports],
        ..engine.clone()
    }))
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
