//! Where the requests go.

use std::{fmt, str::FromStr};

/// An `http://host[:port][/base]` address; a trailing `/v1` belongs to the routes and is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// 80 if not given.
    pub port: u16,
    /// What comes before `/v1/...`; empty or starting with a slash.
    pub base: String,
}

/// Why a URL was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// TLS is not spoken.
    #[error(
        "https is not supported: the load generator would measure its own encryption; point it at the plain port"
    )]
    Tls,
    /// Not a URL of the right shape.
    #[error("{0:?} is no address like http://127.0.0.1:8000")]
    Shape(String),
}

impl Target {
    /// The value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.base)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let shape = || TargetError::Shape(url.to_owned());
        if url.starts_with("https://") {
            return Err(TargetError::Tls);
        }
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(shape()),
            None => url,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| shape())?),
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let good = |c: char| c.is_ascii_graphic() && !"@?#/\\".contains(c);
        if host.is_empty() || !host.chars().all(good) || !path.chars().all(|c| c.is_ascii_graphic()) {
            return Err(shape());
        }
        let base = path.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self { host: host.to_owned(), port, base: base.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> String {
        url.parse::<Target>().unwrap().to_string()
    }

    #[test]
    fn addresses_with_and_without_parts_are_taken() {
        assert_eq!(parsed("http://127.0.0.1:8000"), "http://127.0.0.1:8000");
        assert_eq!(parsed("http://127.0.0.1:8000/v1/"), "http://127.0.0.1:8000");
        assert_eq!(parsed("localhost:9"), "http://localhost:9");
        assert_eq!(parsed("http://gateway/llm/v1"), "http://gateway:80/llm");
        assert_eq!(parsed("http://[::1]:8000/"), "http://[::1]:8000");
        assert_eq!(parsed("http://[::1]"), "http://[::1]:80");
    }

    #[test]
    fn others_are_refused_with_a_reason() {
        assert_eq!("https://x".parse::<Target>(), Err(TargetError::Tls));
        for url in ["", "http://", "ftp://x", "http://x:99999", "http://a b", "http://u@x"] {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }
}
