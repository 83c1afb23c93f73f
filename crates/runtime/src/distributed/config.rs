//! What a distributed runtime is made of, and how a binary reads it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::{ConfigError, Key, Layers, Source};
use crate::discovery::{DiscoveryConfig, MemStore, default_root};
use crate::events::{EventHub, EventPlaneConfig, EventPlaneKind};
use crate::identity::WorkerId;
use crate::metrics::Metrics;
use crate::request_plane::{RequestPlane, RequestPlaneConfig};
use crate::shutdown::ShutdownLimits;
use crate::system::{SystemConfig, SystemFlags};

const DISCOVERY: Key = Key::new("discovery-backend").env(&["DYN_DISCOVERY_BACKEND"]).expects("file or mem");
const FILE_ROOT: Key = Key::new("file-kv").env(&["DYN_FILE_KV"]).expects("a directory of your own");
const REQUEST_PLANE: Key = Key::new("request-plane").env(&["DYN_REQUEST_PLANE"]).expects("tcp");
const RPC_HOST: Key =
    Key::new("tcp-rpc-host").env(&["DYN_TCP_RPC_HOST"]).expects("a host name or IP address");
const RPC_PORT: Key =
    Key::new("tcp-rpc-port").env(&["DYN_TCP_RPC_PORT"]).expects("a port, 0 to 65535 (0 takes a free one)");
const CONNECT_TIMEOUT: Key =
    Key::new("tcp-connect-timeout").env(&["DYN_TCP_CONNECT_TIMEOUT"]).expects("seconds");
const ACCEPT_TIMEOUT: Key =
    Key::new("tcp-request-timeout").env(&["DYN_TCP_REQUEST_TIMEOUT"]).expects("seconds");
const MAX_MESSAGE: Key =
    Key::new("tcp-max-message-size").env(&["DYN_TCP_MAX_MESSAGE_SIZE"]).expects("a number of bytes");
const GRACE: Key = Key::new("graceful-shutdown-grace-period")
    .env(&["DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"])
    .expects("seconds");
const DRAIN: Key = Key::new("graceful-shutdown-timeout")
    .env(&["DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"])
    .expects("seconds");
const ETCD_ENDPOINTS: &str = "ETCD_ENDPOINTS";

/// Everything a [`DistributedRuntime`](super::DistributedRuntime) is made of.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// The worker's number; random when none.
    pub worker_id: Option<WorkerId>,
    /// The name that tells it from another worker with the same number; made from the number when none.
    pub worker_name: Option<String>,
    /// Where records are.
    pub discovery: DiscoveryConfig,
    /// Where requests go and come from.
    pub request_plane: RequestPlaneSource,
    /// Where events go and come from.
    pub event_plane: EventPlaneConfig,
    /// What event planes in this process share, when events stay in it.
    pub event_hub: EventHub,
    /// The system server.
    pub system: SystemConfig,
    /// Where metrics are registered; several runtimes may share one registry.
    pub metrics: Metrics,
    /// Heap allocations since the start, where the binary's allocator counts them.
    pub allocations: Option<fn() -> u64>,
    /// For the [`Runtime`](crate::Runtime) below it.
    pub shutdown: ShutdownLimits,
}

/// Whose request plane a distributed runtime uses.
#[derive(Clone)]
pub enum RequestPlaneSource {
    /// One of its own.
    Start(Box<RequestPlaneConfig>),
    /// That of another runtime in this process; the two reach each other without a socket. They shut down together, on one
    /// [`Runtime`](crate::Runtime): the plane admits for both or for none.
    Shared(RequestPlane),
}

impl RuntimeConfig {
    /// Everything in this process or on loopback, on free ports, without a system server: for tests and for processes that
    /// hold all their parts. Runtimes with clones of one configuration see each other's records and events.
    pub fn process_local() -> Self {
        let admin = crate::system::AdminAccess::Loopback;
        let starting = crate::system::HealthStatus::NotReady;
        Self {
            worker_id: None,
            worker_name: None,
            discovery: DiscoveryConfig::Mem(MemStore::new()),
            request_plane: RequestPlaneSource::Start(Box::new(RequestPlaneConfig::standard("127.0.0.1:0"))),
            event_plane: EventPlaneConfig::loopback(EventPlaneKind::InProcess),
            event_hub: EventHub::new(),
            system: SystemConfig {
                host: "127.0.0.1".into(),
                port: None,
                health_path: "/health".into(),
                live_path: "/live".into(),
                admin,
                lora_routes: false,
                starting,
            },
            metrics: Metrics::new(),
            allocations: None,
            shutdown: ShutdownLimits::LOCAL,
        }
    }

    /// Reads the configuration. Without a backend named, discovery is in files; request and event planes are on loopback
    /// unless a host is given, for neither backend reaches another host.
    pub fn resolve(layers: &mut Layers<'_>, system: SystemFlags) -> Result<Self, ConfigError> {
        let backend = resolve_backend(layers)?;
        let root = layers.path(&FILE_ROOT, None)?;
        let discovery = match backend {
            Backend::Mem => DiscoveryConfig::Mem(MemStore::new()),
            Backend::File => DiscoveryConfig::File { root: root.unwrap_or_else(|| root_from(layers)) },
        };
        let kind = match backend {
            Backend::Mem => EventPlaneKind::InProcess,
            Backend::File => EventPlaneKind::Zmq,
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let limits = ShutdownLimits::LOCAL;
        Ok(Self {
            worker_id: None,
            worker_name: layers.env().get("POD_NAME").map(str::to_owned),
            discovery,
            request_plane: RequestPlaneSource::Start(Box::new(resolve_request_plane(layers)?)),
            event_plane: EventPlaneConfig::resolve(layers, kind, loopback)?,
            event_hub: EventHub::new(),
            system: SystemConfig::resolve(layers, system)?,
            metrics: Metrics::new(),
            allocations: None,
            shutdown: ShutdownLimits {
                grace: layers.seconds(&GRACE, None, limits.grace)?,
                drain: layers.seconds(&DRAIN, None, limits.drain)?,
                ..limits
            },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Mem,
    File,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "mem" => Ok(Self::Mem),
            "file" => Ok(Self::File),
            "etcd" | "kubernetes" => Err("this release has no such backend".to_owned()),
            _ => Err("no such backend".to_owned()),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mem => "mem",
            Self::File => "file",
        })
    }
}

fn resolve_backend(layers: &mut Layers<'_>) -> Result<Backend, ConfigError> {
    let named: Option<Backend> = layers.optional(&DISCOVERY, None)?;
    match (named, layers.env().get(ETCD_ENDPOINTS)) {
        (Some(backend), _) => Ok(backend),
        (None, None) => Ok(Backend::File),
        // Whoever set it expects to share discovery with other hosts; files would leave them alone without a word.
        (None, Some(endpoints)) => Err(ConfigError::Invalid {
            source_name: Box::new(Source::Env(ETCD_ENDPOINTS)),
            value: endpoints.to_owned(),
            key: DISCOVERY.name(),
            reason: "this release has no etcd backend".to_owned(),
            advice: "unset it, or set DYN_DISCOVERY_BACKEND to file or mem".to_owned(),
        }),
    }
}

fn root_from(layers: &Layers<'_>) -> PathBuf {
    default_root(|name| layers.env().get(name).map(str::to_owned))
}

fn resolve_request_plane(layers: &mut Layers<'_>) -> Result<RequestPlaneConfig, ConfigError> {
    let parse_kind = |text: &str| match text.trim().to_ascii_lowercase().as_str() {
        "tcp" => Ok("tcp".to_owned()),
        "nats" => Err("this release has no NATS request plane".to_owned()),
        _ => Err("no such request plane".to_owned()),
    };
    layers.resolve(&REQUEST_PLANE, None, Some("tcp".to_owned()), parse_kind, String::clone)?;
    let host: String = layers.value(&RPC_HOST, None, Ipv4Addr::LOCALHOST.to_string())?;
    let port: u16 = layers.value(&RPC_PORT, None, 0)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let bind = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut config = RequestPlaneConfig::standard(bind);
    config.connect_timeout = layers.seconds(&CONNECT_TIMEOUT, None, config.connect_timeout)?;
    config.accept_timeout = layers.seconds(&ACCEPT_TIMEOUT, None, config.accept_timeout)?;
    config.wire.max_message = layers.value(&MAX_MESSAGE, None, config.wire.max_message)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn resolve(vars: &[(&str, &str)]) -> Result<(RuntimeConfig, Vec<String>), ConfigError> {
        let env: Env = vars.iter().copied().collect();
        let mut layers = Layers::new(&env, None);
        let config = RuntimeConfig::resolve(&mut layers, SystemFlags::default())?;
        Ok((config, layers.finish().warnings))
    }

    fn bind(config: &RuntimeConfig) -> &str {
        match &config.request_plane {
            RequestPlaneSource::Start(plane) => &plane.bind,
            RequestPlaneSource::Shared(_) => unreachable!("a configuration starts its own"),
        }
    }

    #[test]
    fn without_a_word_everything_is_on_this_host() {
        let (config, warnings) = resolve(&[("XDG_RUNTIME_DIR", "/run/user/7")]).unwrap();
        assert!(
            matches!(&config.discovery, DiscoveryConfig::File { root } if root.ends_with("user/7/dynamo"))
        );
        assert_eq!(bind(&config), "127.0.0.1:0");
        assert_eq!(config.event_plane.kind, EventPlaneKind::Zmq);
        assert!(config.event_plane.host.is_loopback());
        assert_eq!((config.system.port, warnings), (None, vec![]));
    }

    #[test]
    fn variables_of_the_field_are_read() {
        let (config, warnings) = resolve(&[
            ("DYN_DISCOVERY_BACKEND", "mem"),
            ("DYN_TCP_RPC_HOST", "::1"),
            ("DYN_TCP_RPC_PORT", "9345"),
            ("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "7"),
            ("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "30"),
            ("DYN_FILE_KV", "/somewhere"),
        ])
        .unwrap();
        assert!(matches!(config.discovery, DiscoveryConfig::Mem(_)));
        assert_eq!(bind(&config), "[::1]:9345");
        assert_eq!((config.shutdown.grace.as_secs(), config.shutdown.drain.as_secs()), (7, 30));
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn what_this_release_lacks_is_refused_with_advice() {
        let refused = |vars: &[(&str, &str)]| resolve(vars).err().unwrap().to_string();
        assert!(refused(&[("DYN_DISCOVERY_BACKEND", "etcd")]).contains("give file or mem"));
        assert!(refused(&[("ETCD_ENDPOINTS", "http://e:2379")]).contains("DYN_DISCOVERY_BACKEND"));
        assert!(refused(&[("DYN_REQUEST_PLANE", "nats")]).contains("NATS"));
        assert!(resolve(&[("ETCD_ENDPOINTS", "http://e:2379"), ("DYN_DISCOVERY_BACKEND", "file")]).is_ok());
    }
}
