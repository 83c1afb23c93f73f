use std::time::Duration;

/// Where a request plane listens, and its limits.
#[derive(Clone, Debug)]
pub struct RequestPlaneConfig {
    /// Address to bind, `host:port`; port 0 takes a free one.
    pub bind: String,
    /// Host that others are told, where it differs from the bound one (`0.0.0.0`, a pod behind NAT).
    pub advertised_host: Option<String>,
    /// Limits and times of each connection; those of streams hold within the process too.
    pub wire: dynamo_wire::Config,
    /// For connecting and the exchange of hellos.
    pub connect_timeout: Duration,
    /// For a request to be accepted, on top of a second for each MiB of payload.
    pub accept_timeout: Duration,
    /// Connections that others may have open to this plane.
    pub max_connections: usize,
    /// Serve targets at our own address without a socket.
    pub local_shortcut: bool,
}

impl RequestPlaneConfig {
    /// The usual limits. 5 s to connect is the incumbent's value; 4,096 connections are far more than the processes
    /// of one deployment, and far fewer than descriptors.
    pub fn standard(bind: impl Into<String>) -> Self {
        Self {
            bind: bind.into(),
            advertised_host: None,
            wire: dynamo_wire::Config::standard(),
            connect_timeout: Duration::from_secs(5),
            accept_timeout: Duration::from_secs(10),
            max_connections: 4096,
            local_shortcut: true,
        }
    }
}
