use super::{AdminAccess, HealthStatus};
use crate::config::{ConfigError, Key, Layers};

const HOST: Key = Key::new("system-host").env(&["DYN_SYSTEM_HOST"]).expects("a host name or IP address");
const PORT: Key = Key::new("system-port")
    .env(&["DYN_SYSTEM_PORT"])
    .expects("a port, 0 to 65535 (0 takes a free one), or -1 for no system server");
const HEALTH_PATH: Key =
    Key::new("system-health-path").env(&["DYN_SYSTEM_HEALTH_PATH"]).expects("a path like /health");
const LIVE_PATH: Key =
    Key::new("system-live-path").env(&["DYN_SYSTEM_LIVE_PATH"]).expects("a path like /live");
const ADMIN: Key = Key::new("system-admin").env(&["DYN_SYSTEM_ADMIN"]).expects("loopback or open");
const ADMIN_TOKEN: Key = Key::new("system-admin-token").env(&["DYN_SYSTEM_ADMIN_TOKEN"]).secret();
const LORAS: Key = Key::new("lora-enabled").env(&["DYN_LORA_ENABLED"]).expects("true or false");
const STARTING: Key = Key::new("system-starting-health-status")
    .env(&["DYN_SYSTEM_STARTING_HEALTH_STATUS"])
    .expects("ready or notready");

/// Where the system server listens and whom it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemConfig {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// 0 takes a free port; none means no server.
    pub port: Option<u16>,
    /// The path of the health check, besides `/ready`.
    pub health_path: String,
    /// The path of the liveness check.
    pub live_path: String,
    /// Who may call `/engine/*` and `/v1/loras`.
    pub admin: AdminAccess,
    /// Whether there is `/v1/loras`, by which adapters are loaded and unloaded.
    pub lora_routes: bool,
    /// The status until something else is known.
    pub starting: HealthStatus,
}

/// The flags of a binary that set the system server, where it has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemFlags {
    /// `--system-host`.
    pub host: Option<String>,
    /// `--system-port`.
    pub port: Option<u16>,
    /// `--system-admin`, `loopback` or `open`.
    pub admin: Option<String>,
}

impl SystemConfig {
    /// From `DYN_SYSTEM_HOST`, `_PORT`, `_HEALTH_PATH`, `_LIVE_PATH`, `_STARTING_HEALTH_STATUS`, `_ADMIN` and
    /// `_ADMIN_TOKEN`, and `DYN_LORA_ENABLED`, or the file's keys, below the flags. A token, once set, is wanted from every
    /// peer.
    pub fn resolve(layers: &mut Layers<'_>, flags: SystemFlags) -> Result<Self, ConfigError> {
        layers.also_known(&["DYN_SYSTEM_ENABLED", "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"]);
        let host = layers.value(&HOST, flags.host, "0.0.0.0".to_owned())?;
        let parse_port = |text: &str| match text.trim() {
            "-1" => Ok(None),
            text => text.parse().map(Some).map_err(|error: std::num::ParseIntError| error.to_string()),
        };
        let show_port = |port: &Option<u16>| port.map_or("-1".to_owned(), |port| port.to_string());
        let port = layers.resolve(&PORT, flags.port.map(Some), Some(None), parse_port, show_port)?.flatten();
        let parse_path = |text: &str| match text.trim() {
            path if path.starts_with('/') && path.is_ascii() => Ok(path.to_owned()),
            _ => Err("a path starts with a slash".to_owned()),
        };
        let mut path = |key: &Key, default: &str| {
            let path = layers.resolve(key, None, Some(default.to_owned()), parse_path, String::clone)?;
            Ok(path.unwrap_or_else(|| default.to_owned()))
        };
        let health_path = path(&HEALTH_PATH, "/health")?;
        let live_path = path(&LIVE_PATH, "/live")?;
        let parse_admin = |text: &str| match text.trim() {
            text @ ("loopback" | "open") => Ok(text.to_owned()),
            _ => Err("no such access".to_owned()),
        };
        let admin =
            layers.resolve(&ADMIN, flags.admin, Some("loopback".to_owned()), parse_admin, String::clone)?;
        let token: Option<String> = layers.optional(&ADMIN_TOKEN, None)?;
        let admin = match (token, admin.as_deref()) {
            (Some(token), _) => AdminAccess::Token(token.trim().into()),
            (None, Some("open")) => AdminAccess::Open,
            (None, _) => AdminAccess::Loopback,
        };
        let lora_routes = layers.switch(&LORAS, None, false)?;
        let starting = layers.value(&STARTING, None, HealthStatus::NotReady)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, health_path, live_path, admin, lora_routes, starting })
    }
}
