//! What an operator may set, and what is set where nobody did.

use std::time::Duration;

use axum::http::StatusCode;

use crate::metrics::MetricsConfig;

const MIB: u64 = 1 << 20;

/// The HTTP service's settings. [`HttpConfig::from_env`] makes one; flags go over its fields.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where the routes are.
    pub paths: HttpPaths,
    /// Bytes of one request's body.
    pub body_limit: u64,
    /// Bytes of all bodies held at once. Over it, requests are refused with 503.
    pub body_budget: u64,
    /// Time for a request's head to arrive, and for a kept connection to stay idle.
    pub header_timeout: Duration,
    /// Time between two pieces of a body.
    pub body_timeout: Duration,
    /// Time for which a client may take nothing of what waits for it; then its connection and request are ended.
    pub stall_limit: Duration,
    /// Connections open at once. Over it, new ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Time for a whole answer, unless the request names a shorter one; absent: no limit.
    pub request_timeout: Option<Duration>,
    /// Whether headers may choose workers and ranks.
    pub trust_routing_headers: bool,
    /// Whether routes are there that change how requests are routed.
    pub admin_routes: bool,
    /// What to do with fields that nobody knows.
    pub ignore_unknown_fields: bool,
    /// The status of an answer when all workers are busy.
    pub overload_status: StatusCode,
    /// Time between comments in a silent stream; absent: none.
    pub sse_keep_alive: Option<Duration>,
    /// Names and buckets.
    pub metrics: MetricsConfig,
}

/// Where the routes are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the routes' own names")]
pub struct HttpPaths {
    pub chat: String,
    pub models: String,
    pub health: String,
    pub live: String,
    pub metrics: String,
}

/// A variable that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is `{value}`, but must be {expected}")]
pub struct ConfigError {
    name: &'static str,
    value: String,
    expected: &'static str,
}

impl HttpConfig {
    /// The variables that [`HttpConfig::from_env`] reads.
    pub const VARIABLES: [&'static str; 26] = [
        "DYN_DISABLE_FRONTEND_ADMIN_API",
        "DYN_HTTP_BODY_LIMIT_MB",
        "DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS",
        "DYN_HTTP_OVERLOAD_STATUS_CODE",
        "DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS",
        "DYN_HTTP_SVC_CHAT_PATH",
        "DYN_HTTP_SVC_MODELS_PATH",
        "DYN_HTTP_SVC_HEALTH_PATH",
        "DYN_HTTP_SVC_LIVE_PATH",
        "DYN_HTTP_SVC_METRICS_PATH",
        "DYN_METRICS_PREFIX",
        "DYN_METRICS_REQUEST_DURATION_MIN",
        "DYN_METRICS_REQUEST_DURATION_MAX",
        "DYN_METRICS_REQUEST_DURATION_COUNT",
        "DYN_METRICS_INPUT_SEQUENCE_MIN",
        "DYN_METRICS_INPUT_SEQUENCE_MAX",
        "DYN_METRICS_INPUT_SEQUENCE_COUNT",
        "DYN_METRICS_OUTPUT_SEQUENCE_MIN",
        "DYN_METRICS_OUTPUT_SEQUENCE_MAX",
        "DYN_METRICS_OUTPUT_SEQUENCE_COUNT",
        "DYN_METRICS_TTFT_MIN",
        "DYN_METRICS_TTFT_MAX",
        "DYN_METRICS_TTFT_COUNT",
        "DYN_METRICS_ITL_MIN",
        "DYN_METRICS_ITL_MAX",
        "DYN_METRICS_ITL_COUNT",
    ];

    /// The defaults, changed by the variables that `variable` knows.
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let body_limit = MIB * number(variable, "DYN_HTTP_BODY_LIMIT_MB", 45, 1)?;
        let keep_alive_ms = number(variable, "DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS", 0, 0)?;
        Ok(Self {
            paths: HttpPaths::from_env(variable)?,
            body_limit,
            // A dozen of the largest bodies, or half a million ordinary ones.
            body_budget: (12 * body_limit).max(512 * MIB),
            // Longer than the idle time of clients' pools, so that they close first.
            header_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            stall_limit: Duration::from_secs(30),
            max_connections: 65_536,
            request_timeout: None,
            trust_routing_headers: false,
            admin_routes: !flag(variable, "DYN_DISABLE_FRONTEND_ADMIN_API")?,
            ignore_unknown_fields: flag(variable, "DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS")?,
            overload_status: overload_status(variable)?,
            sse_keep_alive: (keep_alive_ms > 0).then(|| Duration::from_millis(keep_alive_ms)),
            metrics: MetricsConfig::from_env(variable),
        })
    }
}

impl HttpPaths {
    fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let path = |name, default: &str| match variable(name) {
            None => Ok(default.to_owned()),
            Some(value) if value.starts_with('/') && !value.contains(['{', '}', ':', '*', '?', '#']) => {
                Ok(value)
            }
            Some(value) => Err(ConfigError { name, value, expected: "a path that starts with /" }),
        };
        Ok(Self {
            chat: path("DYN_HTTP_SVC_CHAT_PATH", "/v1/chat/completions")?,
            models: path("DYN_HTTP_SVC_MODELS_PATH", "/v1/models")?,
            health: path("DYN_HTTP_SVC_HEALTH_PATH", "/health")?,
            live: path("DYN_HTTP_SVC_LIVE_PATH", "/live")?,
            metrics: path("DYN_HTTP_SVC_METRICS_PATH", "/metrics")?,
        })
    }

    /// Two routes at one path, if there are.
    pub(crate) fn clash(&self) -> Option<&str> {
        let all = [&self.chat, &self.models, &self.health, &self.live, &self.metrics];
        all.iter().enumerate().find(|(at, path)| all[..*at].contains(path)).map(|(_, path)| path.as_str())
    }
}

fn number(
    variable: &dyn Fn(&str) -> Option<String>,
    name: &'static str,
    default: u64,
    least: u64,
) -> Result<u64, ConfigError> {
    /// Keeps products of the value far from overflow; a terabyte of body is no use to anybody.
    const MOST: u64 = 1 << 20;
    let Some(value) = variable(name) else { return Ok(default) };
    match value.trim().parse() {
        Ok(number) if (least..=MOST).contains(&number) => Ok(number),
        _ => {
            Err(ConfigError { name, value, expected: "a whole number up to 1048576, and not 0 for a limit" })
        }
    }
}

fn flag(variable: &dyn Fn(&str) -> Option<String>, name: &'static str) -> Result<bool, ConfigError> {
    let Some(value) = variable(name) else { return Ok(false) };
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(ConfigError { name, value, expected: "true or false" }),
    }
}

fn overload_status(variable: &dyn Fn(&str) -> Option<String>) -> Result<StatusCode, ConfigError> {
    let name = "DYN_HTTP_OVERLOAD_STATUS_CODE";
    let Some(value) = variable(name) else { return Ok(StatusCode::SERVICE_UNAVAILABLE) };
    let status = value.trim().parse().ok().filter(|code: &u16| (400..=599).contains(code));
    status.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(ConfigError {
        name,
        value,
        expected: "an HTTP status between 400 and 599",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> Result<HttpConfig, ConfigError> {
        HttpConfig::from_env(&move |asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn variables_change_the_defaults() {
        let config = HttpConfig::from_env(&|_| None).unwrap();
        assert_eq!(config.body_limit, 45 << 20);
        assert_eq!(config.paths.chat, "/v1/chat/completions");
        assert_eq!(with("DYN_HTTP_BODY_LIMIT_MB", "2").unwrap().body_limit, 2 << 20);
        assert_eq!(with("DYN_HTTP_SVC_CHAT_PATH", "/chat").unwrap().paths.chat, "/chat");
        assert_eq!(with("DYN_HTTP_OVERLOAD_STATUS_CODE", "529").unwrap().overload_status.as_u16(), 529);
        let keep_alive = with("DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS", "15000").unwrap().sse_keep_alive;
        assert_eq!(keep_alive, Some(Duration::from_secs(15)));
    }

    #[test]
    fn all_variables_that_are_read_are_listed() {
        let read = std::cell::RefCell::new(std::collections::BTreeSet::new());
        HttpConfig::from_env(&|name| {
            read.borrow_mut().insert(name.to_owned());
            None
        })
        .unwrap();
        assert_eq!(read.into_inner(), HttpConfig::VARIABLES.map(str::to_owned).into());
    }

    #[test]
    fn unusable_variables_are_named() {
        for (name, value) in [
            ("DYN_HTTP_BODY_LIMIT_MB", "0"),
            ("DYN_HTTP_BODY_LIMIT_MB", "lots"),
            ("DYN_HTTP_SVC_CHAT_PATH", "chat"),
            ("DYN_HTTP_SVC_CHAT_PATH", "/{chat}"),
            ("DYN_HTTP_SVC_CHAT_PATH", "/:chat"),
            ("DYN_HTTP_OVERLOAD_STATUS_CODE", "200"),
            ("DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS", "maybe"),
        ] {
            let error = with(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn two_routes_at_one_path_are_seen() {
        assert_eq!(with("DYN_HTTP_SVC_LIVE_PATH", "/health").unwrap().paths.clash(), Some("/health"));
        assert_eq!(HttpConfig::from_env(&|_| None).unwrap().paths.clash(), None);
    }
}
