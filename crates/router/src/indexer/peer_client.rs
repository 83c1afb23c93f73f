//! A client for other indexers: one request per connection, plain HTTP.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri, body::Incoming, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use dynamo_runtime::TaskScope;

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerUrl {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

/// Why a URL is none of a peer's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid peer url `{url}`: {reason}")]
pub(super) struct PeerUrlError {
    url: String,
    reason: &'static str,
}

/// Longer URLs are refused.
const MAX_URL: usize = 2048;

impl PeerUrl {
    /// Reads `http://host[:port][/prefix]`.
    pub(super) fn parse(url: &str) -> Result<Self, PeerUrlError> {
        let fail = |reason| PeerUrlError { url: url.chars().take(256).collect(), reason };
        if url.len() > MAX_URL {
            return Err(fail("too long"));
        }
        let uri: Uri = url.trim().parse().map_err(|_| fail("not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(fail("peers speak plain http")),
            _ => return Err(fail("must begin with http://")),
        }
        if uri.query().is_some() {
            return Err(fail("must have no query"));
        }
        let authority = uri.authority().ok_or_else(|| fail("missing host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(fail("must have a host and no user"));
        }
        Ok(Self {
            authority: authority.as_str().to_owned(),
            host,
            port: authority.port_u16().unwrap_or(80),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Why a peer did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("cannot be reached: {0}")]
    Connect(std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("answered {0}")]
    Status(hyper::StatusCode),
    #[error("did not answer within {0:?}")]
    Slow(Duration),
    #[error("{0}")]
    Body(String),
}

/// Asks for `path`; resolves when the answer begins.
pub(super) async fn get(
    peer: &PeerUrl,
    path: &str,
    limit: Duration,
    scope: &TaskScope,
) -> Result<Incoming, PeerError> {
    let asking = async {
        let stream = TcpStream::connect((peer.host.as_str(), peer.port)).await.map_err(PeerError::Connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let ended = scope.clone();
        scope.spawn("peer", async move {
            tokio::select! {
                () = ended.cancelled() => {}
                // Its errors reach whoever reads the body.
                _ = connection => {}
            }
        });
        let request = Request::get(format!("{}{path}", peer.path))
            .header(header::HOST, peer.authority.as_str())
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| PeerError::Body(error.to_string()))?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(PeerError::Status(response.status()));
        }
        Ok(response.into_body())
    };
    timeout(limit, asking).await.unwrap_or(Err(PeerError::Slow(limit)))
}

/// Reads a whole body of at most `most` bytes.
pub(super) async fn collect(body: Incoming, most: usize, limit: Duration) -> Result<Bytes, PeerError> {
    let collecting = Limited::new(body, most).collect();
    match timeout(limit, collecting).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(PeerError::Body(error.to_string())),
        Err(_) => Err(PeerError::Slow(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_peers_are_plain_http_with_a_host() {
        let peer = PeerUrl::parse("http://10.0.0.2:8090/").unwrap();
        assert_eq!((peer.host.as_str(), peer.port, peer.path.as_str()), ("10.0.0.2", 8090, ""));
        let peer = PeerUrl::parse("http://[::1]:8090/prefix").unwrap();
        assert_eq!((peer.host.as_str(), peer.port, peer.path.as_str()), ("::1", 8090, "/prefix"));
        assert_eq!(PeerUrl::parse("http://indexer").unwrap().port, 80);
        for bad in ["bad", "", "https://h", "ftp://h", "http://", "http://u@h", "http://h?q", "/path"] {
            assert!(PeerUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
