//! How requests are routed, as an operator says.

use std::num::NonZeroUsize;

use dynamo_kv_router::{AffinityConfig, IndexerKind, KvRouterConfig, LaneConfig};

use super::IndexPlace;

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterMode {
    /// In turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// Whoever runs the fewest requests.
    LeastLoaded,
    /// The less loaded of two that are drawn.
    PowerOfTwo,
    /// By what workers have cached and what runs on them.
    Kv,
    /// As the request says, or not at all.
    Direct,
}

impl std::str::FromStr for RouterMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().replace('_', "-").as_str() {
            "round-robin" => Ok(Self::RoundRobin),
            "random" => Ok(Self::Random),
            "least-loaded" => Ok(Self::LeastLoaded),
            "power-of-two" => Ok(Self::PowerOfTwo),
            "kv" => Ok(Self::Kv),
            "direct" => Ok(Self::Direct),
            _ => Err("use round-robin, random, least-loaded, power-of-two, kv or direct".to_owned()),
        }
    }
}

impl std::fmt::Display for RouterMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastLoaded => "least-loaded",
            Self::PowerOfTwo => "power-of-two",
            Self::Kv => "kv",
            Self::Direct => "direct",
        })
    }
}

/// How requests of all models are routed.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// How a worker is chosen.
    pub mode: RouterMode,
    /// The settings of the KV mode; load is counted by them in all modes.
    pub kv: KvRouterConfig,
    /// Whether sessions stay with their workers.
    pub affinity: Option<AffinityConfig>,
    /// Tell other routers of the same workers what is sent to them, and count what they say.
    pub replica_sync: bool,
    /// Where the index is that is asked who has a prompt; see [`RouterConfig::check_index_place`].
    pub index_place: IndexPlace,
    /// What keeps who holds which blocks.
    pub indexer: IndexerKind,
    /// Threads that apply KV events, where the index can have several.
    pub event_threads: NonZeroUsize,
    /// A model is not there for requests before so many workers have been there at once.
    pub min_initial_workers: usize,
}

impl RouterConfig {
    /// A mode with the usual settings.
    pub const fn of(mode: RouterMode) -> Self {
        Self {
            mode,
            kv: KvRouterConfig::DEFAULT,
            affinity: None,
            replica_sync: false,
            index_place: IndexPlace::Own,
            indexer: IndexerKind::Run,
            event_threads: LaneConfig::REFERENCE.lanes,
            min_initial_workers: 0,
        }
    }
}
