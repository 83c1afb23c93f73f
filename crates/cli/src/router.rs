//! `dynamo router`.

use std::process::ExitCode;

use dynamo_llm::{EndpointRouterConfig, RouterMode};
use dynamo_router::endpoint::{RouterService, RouterServiceConfig, RouterServiceError};
use dynamo_runtime::{
    DistributedRuntime, EndpointId,
    config::{Key, Layers},
    system::HealthStatus,
};
use serde_json::json;

use crate::{
    common::{self, CommonArgs, CommonConfig},
    frontend::describe,
    process::StartError,
    router_args::RouterArgs,
    start_block::StartBlock,
};

const ENDPOINT: Key =
    Key::new("endpoint").env(&["DYN_ENDPOINT"]).expects("dyn://namespace.component.endpoint");
const BLOCK_SIZE: Key = Key::new("router-block-size").expects("tokens per block, at least 1");
const DUMP_TIMEOUT: Key =
    Key::new("router-dump-timeout-secs").env(&["DYN_ROUTER_DUMP_TIMEOUT_SECS"]).expects("seconds");

/// Flags of the router as a process of its own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RouterCommandArgs {
    /// Endpoint whose requests it routes [env: DYN_ENDPOINT] [default: dyn://dynamo.backend.generate]
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Tokens per KV block; workers with another size are not used [default: what the workers' cards say]
    #[arg(long, value_name = "TOKENS")]
    router_block_size: Option<u32>,
    /// How long to wait for what a worker holds before it counts as empty [env: DYN_ROUTER_DUMP_TIMEOUT_SECS] [default: 10]
    #[arg(long, value_name = "SECONDS")]
    router_dump_timeout_secs: Option<f64>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl RouterCommandArgs {
    fn resolve(
        &self,
        layers: &mut Layers<'_>,
        common: &CommonConfig,
    ) -> anyhow::Result<EndpointRouterConfig> {
        let namespace = common.namespace.as_deref().unwrap_or("dynamo");
        let default_endpoint = format!("dyn://{namespace}.backend.generate");
        let endpoint: String = layers.value(&ENDPOINT, self.endpoint.clone(), default_endpoint)?;
        let block_size = layers.optional(&BLOCK_SIZE, self.router_block_size)?;
        anyhow::ensure!(block_size != Some(0), "--router-block-size: a block has at least 1 token");
        Ok(EndpointRouterConfig {
            endpoint: EndpointId::parse(&endpoint),
            router: self.router.resolve(layers, RouterMode::Kv)?,
            block_size,
            dump_patience: layers.seconds(
                &DUMP_TIMEOUT,
                self.router_dump_timeout_secs,
                EndpointRouterConfig::DUMP_PATIENCE,
            )?,
        })
    }
}

/// Runs the router to its end.
pub fn run(args: RouterCommandArgs) -> ExitCode {
    common::run(
        &args.common,
        |layers, common| args.resolve(layers, common),
        |runtime, router, common, chosen| async move {
            let distributed = DistributedRuntime::new(runtime.clone(), common.runtime)
                .await
                .map_err(|error| StartError(anyhow::Error::new(error)))?;
            distributed.system().set_status(HealthStatus::NotReady);
            let target = router.endpoint.clone();
            let mode = router.router.mode;
            let service = RouterService::start(&distributed, RouterServiceConfig { router })?;
            register_dump(&distributed, &service);
            describe(StartBlock::new("router"), &distributed, &chosen)
                .line("routes to", target.as_url())
                .line("serves", service.endpoint().as_url())
                .line("routing", mode)
                .line("health", "ready when it knows what the workers hold")
                .print();
            let served = match service.serve().await {
                Ok(served) => served,
                Err(RouterServiceError::ShuttingDown) => {
                    runtime.closed().await;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let status = service.status();
            tracing::info!(
                blocks = status.index.blocks,
                cold_workers = status.cold_workers,
                "router is ready"
            );
            runtime.drained().await;
            drop(served);
            runtime.closed().await;
            Ok(())
        },
    )
}

/// `/engine/dump_kv_index`: what the index has, by worker and rank, as events that give the same when applied in order.
fn register_dump(distributed: &DistributedRuntime, service: &RouterService) {
    let router = service.router().clone();
    let scope = distributed.scope().clone();
    distributed.system().routes().register("dump_kv_index", move |_| {
        let router = router.clone();
        let dumping = scope.spawn_blocking("dump", move || router.dump());
        async move {
            let ranks = dumping.await.map_err(|error| error.to_string())?;
            let ranks: Vec<_> = ranks
                .into_iter()
                .map(|(rank, events)| {
                    json!({"worker_id": rank.worker_id, "dp_rank": rank.dp_rank, "events": events})
                })
                .collect();
            Ok(json!({ "ranks": ranks }))
        }
    });
}
