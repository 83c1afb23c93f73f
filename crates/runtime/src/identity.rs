//! Who a worker is: its number, its incarnation, and the names of what it serves.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The number of a worker: 53 bits, so that it survives a JSON number read as a double. Never zero when random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(u64);

impl WorkerId {
    /// The largest number, `2^53 - 1`.
    pub const MAX: u64 = (1 << 53) - 1;

    /// A number from the operating system's entropy.
    pub fn random() -> Self {
        Self(SmallRng::from_os_rng().random_range(1..=Self::MAX))
    }

    /// Keeps the lower 53 bits of `value`.
    pub const fn from_bits(value: u64) -> Self {
        Self(value & Self::MAX)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Lower-case hexadecimal without padding, as in discovery keys.
impl fmt::LowerHex for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerId({:x})", self.0)
    }
}

/// When an incarnation of a worker began, in Unix milliseconds; at least one more than that of a record of the
/// same worker found at registration. A higher epoch means that nothing of the older one is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The present time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The epoch that began at `unix_ms`.
    pub const fn from_unix_ms(unix_ms: u64) -> Self {
        Self(unix_ms)
    }

    /// The smallest epoch that replaces `found`: this one, unless `found` is as late.
    pub fn after(self, found: Epoch) -> Self {
        Self(self.0.max(found.0.saturating_add(1)))
    }

    /// Unix milliseconds.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// One life of a worker: an id may outlive a process, an incarnation does not. Ordered by worker, then by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which worker.
    pub worker_id: WorkerId,
    /// Which of its lives.
    pub epoch: Epoch,
}

/// The full name of an endpoint. Parsing accepts `dyn://ns.comp.ep`, `ns.comp.ep` and `ns/comp/ep`, and fills
/// missing parts with `NS`, `C` and `E`; it never fails. Shown as `ns/comp/ep`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// The namespace, which may be nested by dots when built by hand.
    pub namespace: String,
    /// The component.
    pub component: String,
    /// The endpoint.
    pub endpoint: String,
}

impl EndpointId {
    const DEFAULT_NAMESPACE: &'static str = "NS";
    const DEFAULT_COMPONENT: &'static str = "C";
    const DEFAULT_ENDPOINT: &'static str = "E";

    /// An endpoint by its three names.
    pub fn new(
        namespace: impl Into<String>,
        component: impl Into<String>,
        endpoint: impl Into<String>,
    ) -> Self {
        Self { namespace: namespace.into(), component: component.into(), endpoint: endpoint.into() }
    }

    /// Reads a path of up to three parts; one part is a component, more than three join into the endpoint by `_`.
    pub fn parse(path: &str) -> Self {
        let path = path.trim();
        let path = path.strip_prefix("dyn://").unwrap_or(path);
        let parts: Vec<&str> =
            path.split(['.', '/']).map(str::trim).filter(|part| !part.is_empty()).collect();
        let (namespace, component, endpoint) = match parts.as_slice() {
            [] => (Self::DEFAULT_NAMESPACE, Self::DEFAULT_COMPONENT, Self::DEFAULT_ENDPOINT.to_owned()),
            [component] => (Self::DEFAULT_NAMESPACE, *component, Self::DEFAULT_ENDPOINT.to_owned()),
            [namespace, component] => (*namespace, *component, Self::DEFAULT_ENDPOINT.to_owned()),
            [namespace, component, rest @ ..] => (*namespace, *component, rest.join("_")),
        };
        Self::new(namespace, component, endpoint)
    }

    /// `dyn://ns.comp.ep`.
    pub fn as_url(&self) -> String {
        format!("dyn://{}.{}.{}", self.namespace, self.component, self.endpoint)
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.component, self.endpoint)
    }
}

impl From<&str> for EndpointId {
    fn from(path: &str) -> Self {
        Self::parse(path)
    }
}

impl FromStr for EndpointId {
    type Err = std::convert::Infallible;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Ok(Self::parse(path))
    }
}
