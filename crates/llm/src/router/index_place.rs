//! Where the index is that a router asks who has a prompt.

use super::{RouterConfig, RouterMode};

/// Where the index is that a router asks who has a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexPlace {
    /// In its own process.
    #[default]
    Own,
    /// In its own process; and others of the deployment may ask it.
    Served,
    /// In any process that serves one for the same workers. This one follows no KV events.
    Elsewhere,
}

/// Why an index cannot be where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexPlaceError {
    /// Both were asked for.
    #[error(
        "--serve-indexer and --use-remote-indexer exclude each other: a router has an index that others may ask, or asks \
         that of another"
    )]
    Both,
    /// Nobody looks at caches.
    #[error(
        "{0} needs a router that looks at caches: give --router-mode kv, and a credit for caches above 0"
    )]
    NoCaches(&'static str),
    /// There is nothing to serve or to ask for.
    #[error("{0} needs KV events: leave out --no-router-kv-events")]
    NoEvents(&'static str),
}

impl IndexPlace {
    /// What the flags of these names stand for.
    pub fn of_flags(serve_indexer: bool, use_remote_indexer: bool) -> Result<Self, IndexPlaceError> {
        match (serve_indexer, use_remote_indexer) {
            (false, false) => Ok(Self::Own),
            (true, false) => Ok(Self::Served),
            (false, true) => Ok(Self::Elsewhere),
            (true, true) => Err(IndexPlaceError::Both),
        }
    }

    const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Own => None,
            Self::Served => Some("--serve-indexer"),
            Self::Elsewhere => Some("--use-remote-indexer"),
        }
    }
}

impl RouterConfig {
    /// Whether what workers have cached matters to the choice.
    pub(crate) fn uses_caches(&self) -> bool {
        self.mode == RouterMode::Kv && self.kv.uses_caches()
    }

    /// Says whether the index can be where it should be; the settings of the KV mode are checked where they are resolved.
    pub fn check_index_place(&self) -> Result<(), IndexPlaceError> {
        let Some(flag) = self.index_place.flag() else { return Ok(()) };
        if !self.uses_caches() {
            return Err(IndexPlaceError::NoCaches(flag));
        }
        if self.kv.caches.uses_events() { Ok(()) } else { Err(IndexPlaceError::NoEvents(flag)) }
    }
}

#[cfg(test)]
mod tests {
    use dynamo_kv_router::{ApproximateConfig, CacheSource, KvRouterConfig};

    use super::*;

    #[test]
    fn an_index_is_served_or_asked_for_not_both() {
        assert_eq!(IndexPlace::of_flags(false, false), Ok(IndexPlace::Own));
        assert_eq!(IndexPlace::of_flags(true, false), Ok(IndexPlace::Served));
        assert_eq!(IndexPlace::of_flags(false, true), Ok(IndexPlace::Elsewhere));
        assert_eq!(IndexPlace::of_flags(true, true), Err(IndexPlaceError::Both));
    }

    #[test]
    fn a_router_without_an_index_can_neither_serve_nor_ask_for_one() {
        let kv = |kv| RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) };
        let caches = CacheSource::Sent(ApproximateConfig::REFERENCE);
        let unusable = [
            (RouterConfig::of(RouterMode::RoundRobin), "--router-mode kv"),
            (kv(KvRouterConfig::DEFAULT.with_overlap_score_weight(0.0)), "credit for caches"),
            (kv(KvRouterConfig { caches, ..KvRouterConfig::DEFAULT }), "--no-router-kv-events"),
        ];
        for (config, words) in unusable {
            assert_eq!(config.check_index_place(), Ok(()));
            for (index_place, flag) in
                [(IndexPlace::Served, "--serve-indexer"), (IndexPlace::Elsewhere, "--use-remote-indexer")]
            {
                let error = RouterConfig { index_place, ..config.clone() }.check_index_place();
                let error = error.unwrap_err().to_string();
                assert!(error.starts_with(flag) && error.contains(words), "{error}");
            }
        }
    }
}
