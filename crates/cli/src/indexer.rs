//! `dynamo indexer`.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use dynamo_router::indexer::{
    IndexChoice, IndexerConfig, IndexerService, RecoveryLimits, ZmqSource, parse_workers,
};
use dynamo_runtime::{
    Metrics, ShutdownLimits,
    config::{Key, Layers},
    metrics::{ProcessSources, register_process_metrics},
};

use crate::{
    common::{CommonArgs, prepare},
    process::{self, StartError},
    start_block::StartBlock,
};

const HOST: Key = Key::new("host").expects("a host name or IP address");
const PORT: Key = Key::new("port").expects("a port, 0 to 65535 (0 takes a free one)");
const BLOCK_SIZE: Key = Key::new("block-size").expects("tokens per block, at least 1");
const THREADS: Key = Key::new("threads").expects("a number of 1 or more");
const FREQUENCY_WINDOW: Key = Key::new("frequency-window-secs").expects("seconds");
const WORKERS: Key = Key::new("workers").expects("id[:dp]=tcp://host:port,...");
const MODEL_NAME: Key = Key::new("model-name").expects("a name");
const ROUTING_GROUP: Key = Key::new("routing-group").expects("a name");
const PEERS: Key = Key::new("peers").expects("http://host:port,...");
const ACCESS_LOG: Key = Key::new("access-log").expects("a file");
const TRACE_ID_HEADER: Key = Key::new("trace-id-header").expects("a header's name");
const RECOVERY: Key = Key::new("recovery-timeout-secs").expects("seconds");

/// Clients at once; each connection has a task and a descriptor.
const MAX_CONNECTIONS: usize = 4096;

/// Flags of the indexer.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct IndexerArgs {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8090]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Tokens per block of the engines in --workers
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,
    /// Lanes on which events reach each index; 1 also chooses the plain radix tree [default: 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Answer how often each block was asked for in the last so many seconds; needs --threads 1 [default: off]
    #[arg(long, value_name = "SECONDS")]
    frequency_window_secs: Option<f64>,
    /// Engines that are there from the start: id[:dp]=tcp://host:port, separated by commas
    #[arg(long, value_name = "LIST")]
    workers: Option<String>,
    /// Model of the engines in --workers [default: default]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Routing group of the engines in --workers [default: default]
    #[arg(long, value_name = "NAME")]
    routing_group: Option<String>,
    /// Other indexers to take over from at the start, separated by commas
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    peers: Vec<String>,
    /// How long taking over may take [default: 10]
    #[arg(long, value_name = "SECONDS")]
    recovery_timeout_secs: Option<f64>,
    /// File for a JSON line per request
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Header with a request's trace id, for the access log [default: x-trace-id]
    #[arg(long, value_name = "NAME")]
    trace_id_header: Option<String>,
    /// TOML file of settings, named as the flags are
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective settings with their sources, and exit
    #[arg(long)]
    print_config: bool,
}

struct Settings {
    host: String,
    port: u16,
    indexer: IndexerConfig,
}

impl IndexerArgs {
    fn resolve(&self, layers: &mut Layers<'_>) -> anyhow::Result<Settings> {
        let name = |given: &Option<String>| given.clone();
        let default = || "default".to_owned();
        let block_size = layers.optional(&BLOCK_SIZE, self.block_size)?;
        anyhow::ensure!(block_size != Some(0), "--block-size: a block has at least 1 token");
        let threads = layers.value(&THREADS, self.threads, 4)?;
        let frequency_window = layers.optional_seconds(&FREQUENCY_WINDOW, self.frequency_window_secs)?;
        let index = IndexChoice::new(threads, frequency_window)?;
        let workers: String = layers.value(&WORKERS, name(&self.workers), String::new())?;
        let workers = parse_workers(&workers).map_err(|error| anyhow::anyhow!("--workers: {error}"))?;
        let recovery = RecoveryLimits {
            total: layers.seconds(&RECOVERY, self.recovery_timeout_secs, RecoveryLimits::STANDARD.total)?,
            ..RecoveryLimits::STANDARD
        };
        Ok(Settings {
            host: layers.value(&HOST, name(&self.host), "127.0.0.1".to_owned())?,
            port: layers.value(&PORT, self.port, 8090)?,
            indexer: IndexerConfig {
                workers,
                block_size,
                model_name: layers.value(&MODEL_NAME, name(&self.model_name), default())?,
                routing_group: layers.value(&ROUTING_GROUP, name(&self.routing_group), default())?,
                index,
                peers: layers.list(&PEERS, self.peers.clone())?,
                recovery,
                access_log: layers.path(&ACCESS_LOG, self.access_log.clone())?,
                trace_id_header: layers.value(
                    &TRACE_ID_HEADER,
                    name(&self.trace_id_header),
                    "x-trace-id".to_owned(),
                )?,
                max_connections: MAX_CONNECTIONS,
            },
        })
    }
}

/// Runs the indexer to its end.
pub fn run(args: IndexerArgs) -> ExitCode {
    let common =
        CommonArgs { config: args.config.clone(), print_config: args.print_config, ..CommonArgs::default() };
    let Settings { host, port, indexer } = match prepare(&common, |layers| args.resolve(layers)) {
        Ok((settings, _)) => settings,
        Err(ended) => return ended,
    };
    process::run(None, ShutdownLimits::LOCAL, |runtime| async move {
        let metrics = Metrics::new();
        let tasks = runtime.scope().clone();
        let sources = ProcessSources {
            started: std::time::Instant::now(),
            tasks: Box::new(move || tasks.tasks()),
            allocations: Some(crate::allocations),
        };
        register_process_metrics(&metrics, sources)?;
        let source = Arc::new(ZmqSource::new(&metrics)?);
        let (engines, peers) = (indexer.workers.len(), indexer.peers.len());
        let service = IndexerService::start(&runtime, indexer, (&host, port), source, metrics)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let address = service.address()?;
        let host =
            if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let url = format!("http://{host}:{}", address.port());
        StartBlock::new("indexer")
            .line("address", &url)
            .line("engines", format_args!("{engines} given, others as they are registered"))
            .line("peers", peers)
            .line("try", format_args!("curl {url}/workers"))
            .print();
        let work = runtime.work();
        service.serve().await;
        drop(work);
        runtime.closed().await;
        Ok(())
    })
}
