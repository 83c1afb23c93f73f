use crate::config::{ConfigError, Key, Layers};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

const KIND: Key = Key::new("event-plane")
    .env(&["DYN_EVENT_PLANE"])
    .expects("zmq, or inproc for publishers and subscribers in one process");
const HOST: Key = Key::new("event-plane-host")
    .env(&["DYN_EVENT_PLANE_HOST"])
    .expects("the IP address at which subscribers reach this host");
const QUEUE: Key = Key::new("event-subscriber-queue")
    .env(&["DYN_ZMQ_EVENT_SUBSCRIBER_CHANNEL_CAPACITY"])
    .expects("a number of events, at least 1");
const IO_THREADS: Key =
    Key::new("zmq-io-threads").env(&["DYN_ZMQ_IO_THREADS"]).expects("a number of threads, 1 to 64");

/// Events that wait for a consumer, unless configured: a second of a large fleet's KV events.
const SUBSCRIBER_QUEUE: usize = 100_000;

/// How events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventPlaneKind {
    /// Within the process.
    InProcess,
    /// ZeroMQ PUB/SUB, found through discovery.
    Zmq,
}

/// How the event plane binds and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPlaneConfig {
    /// The transport.
    pub kind: EventPlaneKind,
    /// Publishers bind to a free port of this address and advertise it. Not a wildcard.
    pub host: IpAddr,
    /// Events that may wait for one subscription's consumer; above it the oldest is dropped, and shows as a gap.
    pub subscriber_queue: usize,
    /// Threads that libzmq uses for its sockets.
    pub io_threads: i32,
}

impl EventPlaneConfig {
    /// Loopback, with the usual bounds.
    pub fn loopback(kind: EventPlaneKind) -> Self {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { kind, host, subscriber_queue: SUBSCRIBER_QUEUE, io_threads: 1 }
    }

    /// From `DYN_EVENT_PLANE`, `DYN_EVENT_PLANE_HOST`, `DYN_ZMQ_EVENT_SUBSCRIBER_CHANNEL_CAPACITY` and
    /// `DYN_ZMQ_IO_THREADS`, or the file's keys. `kind` is the transport when none is named; `host` the address:
    /// loopback, or the routed one where discovery spans hosts.
    pub fn resolve(layers: &mut Layers<'_>, kind: EventPlaneKind, host: IpAddr) -> Result<Self, ConfigError> {
        let parse_host = |text: &str| {
            let host: IpAddr = text.trim().parse().map_err(|error| format!("{error}"))?;
            if host.is_unspecified() {
                return Err("subscribers cannot connect to a wildcard address".to_owned());
            }
            Ok(host)
        };
        let at_least_one = |most: usize| {
            move |text: &str| match text.trim().parse::<usize>() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                Ok(_) => Err(format!("not in 1 to {most}")),
                Err(error) => Err(error.to_string()),
            }
        };
        let kind = layers.value(&KIND, None, kind)?;
        let host = layers.resolve(&HOST, None, Some(host), parse_host, IpAddr::to_string)?.unwrap_or(host);
        let queue = layers.resolve(
            &QUEUE,
            None,
            Some(SUBSCRIBER_QUEUE),
            at_least_one(usize::MAX),
            usize::to_string,
        )?;
        let io_threads = layers.resolve(&IO_THREADS, None, Some(1), at_least_one(64), usize::to_string)?;
        Ok(Self {
            kind,
            host,
            subscriber_queue: queue.unwrap_or(SUBSCRIBER_QUEUE),
            // At most 64.
            io_threads: io_threads.unwrap_or(1) as i32,
        })
    }
}

impl FromStr for EventPlaneKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "zmq" => Ok(Self::Zmq),
            "inproc" => Ok(Self::InProcess),
            "nats" => Err("this release has no NATS event plane".to_owned()),
            _ => Err("no such event plane".to_owned()),
        }
    }
}

impl fmt::Display for EventPlaneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "inproc",
            Self::Zmq => "zmq",
        })
    }
}
