//! `dynamo global-router`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use dynamo_engine_api::LatencyTargets;
use dynamo_router::global::{GlobalConfig, GlobalRouter, GlobalRouterConfig, GlobalRouterError};
use dynamo_runtime::{
    DistributedRuntime,
    config::{Key, Layers},
    system::HealthStatus,
};

use crate::{
    common::{self, CommonArgs, CommonConfig},
    frontend::describe,
    process::StartError,
    start_block::StartBlock,
};

const MODEL_NAME: Key = Key::new("model-name").expects("the model's public name");
const COMPONENT: Key = Key::new("component-name").expects("a name");
const POOLS: Key = Key::new("pools").expects("a JSON file of pools and grids");
const TTFT: Key = Key::new("default-ttft-target-ms").expects("milliseconds");
const ITL: Key = Key::new("default-itl-target-ms").expects("milliseconds");

/// Flags of the router over pools.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GlobalRouterArgs {
    /// JSON file of pools and grids (with --config, a file that ends in .json is taken for it too)
    #[arg(long, value_name = "FILE")]
    pools: Option<PathBuf>,
    /// Public name of the pools' model
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Component to serve under [default: global_router]
    #[arg(long, value_name = "NAME")]
    component_name: Option<String>,
    /// Time to first token for requests that name none [default: the middle of the grid]
    #[arg(long, value_name = "MS")]
    default_ttft_target_ms: Option<f64>,
    /// Time between tokens for requests that name none [default: the middle of the grid]
    #[arg(long, value_name = "MS")]
    default_itl_target_ms: Option<f64>,
    #[command(flatten)]
    common: CommonArgs,
}

impl GlobalRouterArgs {
    /// The other commands' --config is a TOML file of settings; this command's has always been the file of pools.
    fn with_pools_from_config(mut self) -> Self {
        if self.common.config.as_ref().is_some_and(|path| path.extension().is_some_and(|it| it == "json")) {
            let path = self.common.config.take();
            self.pools = self.pools.or(path);
        }
        self
    }

    fn resolve(&self, layers: &mut Layers<'_>, common: &CommonConfig) -> anyhow::Result<GlobalRouterConfig> {
        let path = layers.path(&POOLS, self.pools.clone())?;
        let path = path.context("--config: give the JSON file of pools and grids")?;
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let pools = GlobalConfig::parse(&text).with_context(|| path.display().to_string())?;
        Ok(GlobalRouterConfig {
            pools,
            model_name: layers.required(&MODEL_NAME, self.model_name.clone())?,
            namespace: common.namespace.clone().unwrap_or_else(|| "dynamo".to_owned()),
            component: layers.value(&COMPONENT, self.component_name.clone(), "global_router".to_owned())?,
            default_targets: LatencyTargets {
                ttft_target: layers.optional(&TTFT, self.default_ttft_target_ms)?,
                itl_target: layers.optional(&ITL, self.default_itl_target_ms)?,
            },
        })
    }
}

/// Runs the router over pools to its end.
pub fn run(args: GlobalRouterArgs) -> ExitCode {
    let args = args.with_pools_from_config();
    common::run(
        &args.common,
        |layers, common| args.resolve(layers, common),
        |runtime, config, common, chosen| async move {
            let distributed = DistributedRuntime::new(runtime.clone(), common.runtime)
                .await
                .map_err(|error| StartError(anyhow::Error::new(error)))?;
            distributed.system().set_status(HealthStatus::NotReady);
            let model = config.model_name.clone();
            let router = GlobalRouter::start(&distributed, config)
                .map_err(|error| StartError(anyhow::Error::new(error)))?;
            describe(StartBlock::new("global router"), &distributed, &chosen)
                .line("serves", router.endpoint().as_url())
                .line("model", model)
                .line("health", "ready when a pool has registered the model")
                .print();
            let served = match router.serve().await {
                Ok(served) => served,
                Err(GlobalRouterError::ShuttingDown) => {
                    runtime.closed().await;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            tracing::info!("global router is ready");
            runtime.drained().await;
            drop(served);
            runtime.closed().await;
            Ok(())
        },
    )
}
