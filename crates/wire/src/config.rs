use std::time::Duration;

/// Which end of the connection this is; decides the stream ids that it may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that opened the connection: odd stream ids.
    Dialer,
    /// The end that was called: even stream ids.
    Acceptor,
}

/// Limits and times of one end. The peer learns the limits from the hello.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the payload codecs spoken, the preferred one first. At least one must be common to both ends.
    pub codecs: Vec<String>,
    /// The longest request payload or item accepted, in bytes.
    pub max_message: u32,
    /// Bytes that the peer may send on a stream ahead of its reader. At least [`Config::MIN_CREDIT`].
    pub stream_credit: u32,
    /// Bytes that the peer may send on all streams together ahead of their readers. At least `stream_credit`.
    pub connection_credit: u32,
    /// Streams that the peer may have open.
    pub max_streams: u32,
    /// Bytes that long messages may hold beyond the credits, from their first byte until they are taken.
    /// At least `max_message`; a message that finds it spent waits.
    pub reassembly_budget: u64,
    /// Bytes of items that may wait in one stream's own buffer for credit; past it the reader is too slow.
    /// One message may exceed it alone.
    pub send_buffer: u32,
    /// How long items may wait for a stream's credit without any arriving; past it the reader is too slow.
    pub stall_limit: Duration,
    /// How long the peer may be silent before it is asked for a sign of life.
    pub ping_interval: Duration,
    /// How long it may be silent after that before it counts as dead.
    pub pong_timeout: Duration,
    /// How long the peer's hello may take.
    pub hello_timeout: Duration,
}

impl Config {
    /// The smallest credit that lets every head and every unfragmented item pass.
    pub const MIN_CREDIT: u32 = 32 * 1024;

    /// The design's values: 256 KiB a stream, 64 MiB a connection, messages as long as the HTTP body limit allows.
    pub fn standard() -> Self {
        Self {
            codecs: vec!["opaque".to_owned()],
            max_message: 48 * 1024 * 1024,
            stream_credit: 256 * 1024,
            connection_credit: 64 * 1024 * 1024,
            max_streams: 32 * 1024,
            reassembly_budget: 160 * 1024 * 1024,
            send_buffer: 512 * 1024,
            stall_limit: Duration::from_secs(30),
            ping_interval: Duration::from_secs(5),
            pong_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(5),
        }
    }
}
