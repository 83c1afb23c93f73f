//! The listening socket.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, lookup_host};

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel holds for a client that reads slowly (it doubles the number): some thousand events.
const SEND_BUFFER: usize = 128 << 10;
/// Of those, bytes not yet sent over which the socket counts as full, so that events wait where they can be dropped.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 32 << 10;

/// A listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error("{0} is in use by another process; choose another port with --http-port")]
    InUse(SocketAddr),
    /// The host has no address.
    #[error("the host `{host}` has no address to listen on: {source}")]
    Host {
        /// As it was given.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("can't listen on {address}: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Listens on a host (a name, or an IP address with or without brackets) and a port (0: a free one). Of several
/// addresses, the first one that can be had.
pub async fn bind(host: &str, port: u16) -> Result<TcpListener, BindError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let unknown = |source| BindError::Host { host: host.to_owned(), source };
    let mut failure = unknown(io::ErrorKind::NotFound.into());
    for address in lookup_host((bare, port)).await.map_err(unknown)? {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => failure = BindError::InUse(address),
            Err(source) => failure = BindError::Other { address, source },
        }
    }
    Err(failure)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What every accepted connection needs.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A peer that vanished while nothing is sent is found by probes.
    SockRef::from(stream).set_keepalive(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_may_be_names_and_bracketed_addresses() {
        for host in ["127.0.0.1", "localhost"] {
            assert!(bind(host, 0).await.unwrap().local_addr().unwrap().ip().is_loopback(), "{host}");
        }
        // A machine without IPv6 says so; the brackets must not be the reason.
        if let Err(error) = bind("[::1]", 0).await {
            assert!(matches!(error, BindError::Other { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_flag() {
        let taken = bind("127.0.0.1", 0).await.unwrap().local_addr().unwrap();
        let _holder = std::net::TcpListener::bind(taken).unwrap();
        let error = bind("127.0.0.1", taken.port()).await.unwrap_err();
        assert!(error.to_string().contains("--http-port"), "{error}");
    }
}
