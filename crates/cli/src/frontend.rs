//! `dynamo frontend` and `dynamo-frontend`.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use dynamo_frontend::{HttpConfig, HttpService};
use dynamo_llm::{Catalog, CatalogConfig, DisaggConfig, ModelCatalog, RouterConfig, RouterMode};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, Runtime,
    config::{Key, Layers},
    system::HealthStatus,
};
use tokio::net::TcpListener;

use crate::{
    common::{self, Chosen, CommonArgs, CommonConfig},
    disagg_args::DisaggArgs,
    process::StartError,
    router_args::RouterArgs,
    start_block::StartBlock,
};

const HOST: Key = Key::new("http-host").env(&["DYN_HTTP_HOST"]).expects("a host name or IP address");
const PORT: Key =
    Key::new("http-port").env(&["DYN_HTTP_PORT"]).expects("a port, 0 to 65535 (0 takes a free one)");
const STALL: Key = Key::new("http-stall-limit-secs").env(&["DYN_HTTP_STALL_LIMIT_SECS"]).expects("seconds");
const TRUST: Key =
    Key::new("trust-routing-headers").env(&["DYN_TRUST_ROUTING_HEADERS"]).expects("true or false");
const FILE_CACHE: Key = Key::new("model-cache").env(&["DYN_MODEL_CACHE"]).expects("a directory");

/// Flags of the HTTP service and the router.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "HTTP")]
pub(crate) struct ServiceArgs {
    /// Address to listen on [env: DYN_HTTP_HOST] [default: 0.0.0.0]
    #[arg(long, value_name = "HOST")]
    pub(crate) http_host: Option<String>,
    /// Port to listen on; 0 takes a free one [env: DYN_HTTP_PORT] [default: 8000]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// Cancel the request of a client that takes nothing for this long [env: DYN_HTTP_STALL_LIMIT_SECS] [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) http_stall_limit_secs: Option<f64>,
    /// Let headers such as x-dynamo-worker-instance-id choose workers [env: DYN_TRUST_ROUTING_HEADERS]
    #[arg(long)]
    pub(crate) trust_routing_headers: bool,
    /// Where model files that came from workers are kept [env: DYN_MODEL_CACHE] [default: a folder of the user's]
    #[arg(long, value_name = "DIR")]
    pub(crate) model_cache: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    disagg: DisaggArgs,
}

/// Flags of the frontend.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FrontendArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// The HTTP service's and the router's settings.
pub(crate) struct ServiceConfig {
    host: String,
    port: u16,
    http: HttpConfig,
    router: RouterConfig,
    disagg: DisaggConfig,
    file_cache: PathBuf,
}

impl ServiceArgs {
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        default_mode: RouterMode,
    ) -> anyhow::Result<ServiceConfig> {
        let env = layers.env();
        layers.also_known(&HttpConfig::VARIABLES);
        let mut http = HttpConfig::from_env(&|name| env.get(name).map(str::to_owned))?;
        http.stall_limit = layers.seconds(&STALL, self.http_stall_limit_secs, http.stall_limit)?;
        http.trust_routing_headers =
            layers.switch(&TRUST, self.trust_routing_headers.then_some(true), false)?;
        let router = self.router.resolve(layers, default_mode)?;
        let disagg = self.disagg.resolve(layers, &router)?;
        let cache = layers.path(&FILE_CACHE, self.model_cache.clone())?;
        let user_cache = || {
            let home = env.get("XDG_CACHE_HOME").map(PathBuf::from);
            let home = home.or_else(|| env.get("HOME").map(|home| PathBuf::from(home).join(".cache")));
            home.unwrap_or_else(std::env::temp_dir).join("dynamo/models")
        };
        Ok(ServiceConfig {
            host: layers.value(&HOST, self.http_host.clone(), "0.0.0.0".to_owned())?,
            port: layers.value(&PORT, self.http_port, 8000)?,
            http,
            router,
            disagg,
            file_cache: cache.unwrap_or_else(user_cache),
        })
    }
}

impl ServiceConfig {
    pub(crate) fn mode(&self) -> RouterMode {
        self.router.mode
    }
}

/// A service that listens and is not yet served.
pub(crate) struct Listening {
    service: HttpService,
    listener: TcpListener,
    catalog: Arc<Catalog>,
    /// With a host that a client on this machine can use.
    pub(crate) url: String,
}

impl Listening {
    /// Binds first, so that a port in use ends the process before anything else is there.
    pub(crate) async fn start(
        config: ServiceConfig,
        runtime: &DistributedRuntime,
        namespace: Option<String>,
    ) -> anyhow::Result<Self> {
        let listener = dynamo_frontend::bind(&config.host, config.port)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let address = listener.local_addr()?;
        let catalog = CatalogConfig {
            router: config.router,
            disagg: config.disagg,
            namespace,
            file_cache: config.file_cache,
            tokenizing: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let catalog = Arc::new(Catalog::start(runtime, catalog)?);
        let phase = runtime.runtime().phase();
        let service = HttpService::new(config.http, catalog.clone(), runtime.metrics().clone(), phase)?;
        let host =
            if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Ok(Self { service, listener, catalog, url: format!("http://{host}:{}", address.port()) })
    }

    /// What it serves, for those who wait for a model.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }

    /// Serves until the runtime has drained. Its streams are work that shutdown waits for.
    pub(crate) async fn serve(self, runtime: &Runtime) {
        let work = runtime.work();
        self.service.serve(self.listener).await;
        drop(work);
    }
}

/// How often a waiting process looks for its model: often enough not to be noticed.
const LOOK: Duration = Duration::from_millis(10);

/// Resolves when `model` can be asked for, and as many workers at `endpoint` are known as it has; false if that takes
/// longer than `limit`.
pub(crate) async fn can_be_asked(
    catalog: &Catalog,
    model: &str,
    endpoint: &EndpointId,
    workers: usize,
    limit: Duration,
) -> bool {
    let known = || {
        let instances = catalog.instances();
        let own = instances.iter().filter(|instance| {
            (&instance.namespace, &instance.component, &instance.endpoint)
                == (&endpoint.namespace, &endpoint.component, &endpoint.endpoint)
        });
        own.count() >= workers
    };
    let wait = async {
        while catalog.get(model).is_none() || !known() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(limit, wait).await.is_ok()
}

/// What a process says of its runtime.
pub(crate) fn describe(block: StartBlock, runtime: &DistributedRuntime, chosen: &Chosen) -> StartBlock {
    let address = runtime.request_plane().address();
    let events = runtime.event_plane().kind();
    let block = block
        .line("discovery", chosen.discovery())
        .line("requests", format_args!("tcp {address} ({})", chosen.why("tcp-rpc-host")))
        .line("events", format_args!("{events} ({})", chosen.why("event-plane")));
    match runtime.system_address() {
        Some(address) => block.line("system", format_args!("http://{address}")),
        None => block.line("system", "off (give --system-port to turn it on)"),
    }
}

/// A request to try.
pub(crate) fn example(url: &str, model: &str) -> String {
    format!(
        "curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}], \"max_tokens\": 32, \"stream\": true}}'"
    )
}

/// Runs the frontend to its end.
pub fn run(args: FrontendArgs) -> ExitCode {
    let resolve =
        |layers: &mut Layers<'_>, _: &CommonConfig| args.service.resolve(layers, RouterMode::RoundRobin);
    common::run(&args.common, resolve, |runtime, service, common, chosen| async move {
        let mode = service.mode();
        let distributed = DistributedRuntime::new(runtime.clone(), common.runtime)
            .await
            .map_err(|error| StartError(anyhow::Error::new(error)))?;
        let listening =
            Listening::start(service, &distributed, common.namespace).await.context("frontend")?;
        let url = listening.url.clone();
        describe(
            StartBlock::new("frontend").line("address", format_args!("{url}/v1")),
            &distributed,
            &chosen,
        )
        .line("routing", mode)
        .line("models", "as workers register them")
        .line("try", format_args!("curl {url}/v1/models"))
        .print();
        // The port listens already: what comes from now on is served.
        distributed.system().set_status(HealthStatus::Ready);
        listening.serve(&runtime).await;
        tokio::time::timeout(Duration::from_secs(60), runtime.closed()).await.context("planes did not close")
    })
}
