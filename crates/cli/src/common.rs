//! What all commands have in common: where their settings come from, and how they start.

use std::{
    io::{ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use dynamo_runtime::{
    Runtime, RuntimeConfig,
    config::{ConfigError, ConfigFile, Env, Key, Layers},
    logging::{self, LogOptions},
    system::SystemFlags,
};

use crate::process::{self, StartError};

const NAMESPACE: Key = Key::new("namespace").env(&["DYN_NAMESPACE"]);
const THREADS: Key = Key::new("runtime-threads").env(&["DYN_RUNTIME_NUM_WORKER_THREADS"]).expects("a number");

/// Flags of every command.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Process and planes")]
pub(crate) struct CommonArgs {
    /// TOML file of settings, named as the flags are
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the effective settings with their sources, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Namespace of the deployment [env: DYN_NAMESPACE]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Where processes find each other: file or mem [env: DYN_DISCOVERY_BACKEND] [default: file]
    #[arg(long, alias = "store-kv", value_name = "BACKEND")]
    pub(crate) discovery_backend: Option<String>,
    /// How requests travel: tcp [env: DYN_REQUEST_PLANE]
    #[arg(long, value_name = "PLANE")]
    pub(crate) request_plane: Option<String>,
    /// How events travel: zmq or in-process [env: DYN_EVENT_PLANE]
    #[arg(long, value_name = "PLANE")]
    pub(crate) event_plane: Option<String>,
    /// Address of the system server (/live, /ready, /health, /metrics) [env: DYN_SYSTEM_HOST]
    #[arg(long, value_name = "HOST")]
    pub(crate) system_host: Option<String>,
    /// Port of the system server; 0 takes a free one; off unless set [env: DYN_SYSTEM_PORT]
    #[arg(long, value_name = "PORT")]
    pub(crate) system_port: Option<u16>,
    /// Who may use the system server's admin routes: loopback or open [env: DYN_SYSTEM_ADMIN]
    #[arg(long, value_name = "WHO")]
    pub(crate) system_admin: Option<String>,
    /// Threads that run tasks [env: DYN_RUNTIME_NUM_WORKER_THREADS] [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) runtime_threads: Option<usize>,
}

/// What was chosen for discovery and planes, and why: for the start block.
#[derive(Debug)]
pub(crate) struct Chosen {
    discovery: String,
    /// By the name of the setting: where its value came from.
    sources: Vec<(&'static str, String)>,
}

impl Chosen {
    /// Where discovery's records are, and why there.
    pub(crate) fn discovery(&self) -> String {
        format!("{} ({})", self.discovery, self.why("discovery-backend"))
    }

    /// Why a setting has its value.
    pub(crate) fn why(&self, setting: &str) -> &str {
        self.sources.iter().find(|(name, _)| *name == setting).map_or("default", |(_, source)| source)
    }
}

/// Settings of every command.
pub(crate) struct CommonConfig {
    pub(crate) namespace: Option<String>,
    pub(crate) threads: Option<usize>,
    pub(crate) runtime: RuntimeConfig,
}

/// Runs a command to its end: its settings, and after them `main`, which gets the command's own ones, the common ones, and
/// where these came from.
pub(crate) fn run<C, Main, Running>(
    args: &CommonArgs,
    resolve: impl FnOnce(&mut Layers<'_>, &CommonConfig) -> anyhow::Result<C>,
    main: Main,
) -> ExitCode
where
    Main: FnOnce(Runtime, C, CommonConfig, Chosen) -> Running,
    Running: Future<Output = anyhow::Result<()>>,
{
    let resolve = |layers: &mut Layers<'_>| {
        let common = CommonConfig::resolve(layers, args)?;
        Ok((resolve(layers, &common)?, common))
    };
    let ((config, common), chosen) = match prepare(args, resolve) {
        Ok(prepared) => prepared,
        Err(ended) => return ended,
    };
    let chosen = Chosen { discovery: format!("{:?}", common.runtime.discovery), ..chosen };
    let (threads, limits) = (common.threads, common.runtime.shutdown);
    process::run(threads, limits, |runtime| main(runtime, config, common, chosen))
}

/// Resolves a command's settings, starts logging, and says what deserves a warning. The environment is read here and
/// nowhere else. The error is the exit code of a command that ends here: its settings are at fault, or were only to be
/// printed.
pub(crate) fn prepare<C>(
    args: &CommonArgs,
    resolve: impl FnOnce(&mut Layers<'_>) -> anyhow::Result<C>,
) -> Result<(C, Chosen), ExitCode> {
    match settle(args, resolve) {
        Ok(Some(prepared)) => Ok(prepared),
        Ok(None) => Err(ExitCode::SUCCESS),
        Err(error) => Err(process::report(&anyhow::Error::new(StartError(error)))),
    }
}

/// `None` if the settings were printed.
fn settle<C>(
    args: &CommonArgs,
    resolve: impl FnOnce(&mut Layers<'_>) -> anyhow::Result<C>,
) -> anyhow::Result<Option<(C, Chosen)>> {
    let env = with_flags(Env::of_process(), args);
    let options = LogOptions::from_env(&env, std::io::stderr().is_terminal())?;
    let file = args.config.as_deref().map(ConfigFile::read).transpose()?;
    let mut layers = Layers::new(&env, file);
    layers.also_known(&LogOptions::VARIABLES);
    let config = resolve(&mut layers)?;
    let resolved = layers.finish();
    if args.print_config {
        // Whoever reads it may have read enough.
        return match write!(std::io::stdout(), "{resolved}") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(None),
        };
    }
    logging::install(&options)?;
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    let sources =
        resolved.settings.iter().map(|setting| (setting.name, setting.source.to_string())).collect();
    Ok(Some((config, Chosen { discovery: String::new(), sources })))
}

/// Flags that stand for a variable which a library resolves go before that variable.
fn with_flags(env: Env, args: &CommonArgs) -> Env {
    let flags = [
        ("DYN_DISCOVERY_BACKEND", &args.discovery_backend),
        ("DYN_REQUEST_PLANE", &args.request_plane),
        ("DYN_EVENT_PLANE", &args.event_plane),
    ];
    env.with(flags.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))))
}

impl CommonConfig {
    fn resolve(layers: &mut Layers<'_>, args: &CommonArgs) -> Result<Self, ConfigError> {
        let system = SystemFlags {
            host: args.system_host.clone(),
            port: args.system_port,
            admin: args.system_admin.clone(),
        };
        Ok(Self {
            namespace: layers.optional(&NAMESPACE, args.namespace.clone())?,
            threads: layers.optional(&THREADS, args.runtime_threads)?,
            runtime: RuntimeConfig {
                allocations: Some(crate::allocations),
                ..RuntimeConfig::resolve(layers, system)?
            },
        })
    }
}
