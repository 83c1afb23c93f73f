//! Which storage all workers of a model share, as an operator says it.

use std::{fmt, str::FromStr};

use crate::ConfigError;

/// The kind of storage from which every worker can load what any of them put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharedCacheType {
    /// There is none, or it shall not count.
    #[default]
    None,
    /// SGLang's HiCache with a storage over the network (Mooncake's store and its like). Any storage will do of which
    /// workers tell in KV events whose medium is `EXTERNAL`, `NETWORK`, `REMOTE` or `SHARED`.
    HiCache,
}

impl SharedCacheType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::None, Self::HiCache];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::HiCache => "hicache",
        }
    }

    /// What a block there takes off a prompt's prefill, in blocks, if nothing else is `given`: the reference's default.
    ///
    /// # Errors
    /// If something is given for storage that there is not, or no number from 0 to 1.
    pub fn multiplier(self, given: Option<f64>) -> Result<f64, ConfigError> {
        match (self, given) {
            (Self::None, None) => Ok(0.0),
            (Self::None, Some(_)) => Err(ConfigError::MultiplierWithoutSharedCache),
            (Self::HiCache, None) => Ok(0.5),
            (Self::HiCache, Some(value)) => check_multiplier(value).map(|()| value),
        }
    }
}

/// Refuses what is no share of a block.
pub(crate) fn check_multiplier(value: f64) -> Result<(), ConfigError> {
    let is_share = (0.0..=1.0).contains(&value);
    if is_share { Ok(()) } else { Err(ConfigError::NoShare { name: "shared_cache_multiplier", value }) }
}

/// A name that no kind of shared storage has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no type of shared cache: use none or hicache")]
pub struct ParseSharedCacheTypeError(String);

impl FromStr for SharedCacheType {
    type Err = ParseSharedCacheTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let known = Self::ALL.into_iter().find(|kind| kind.name() == lower);
        known.ok_or_else(|| ParseSharedCacheTypeError(text.to_owned()))
    }
}

impl fmt::Display for SharedCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_told_what_to_use() {
        for kind in SharedCacheType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("HiCache".parse(), Ok(SharedCacheType::HiCache));
        let error = "lmcache".parse::<SharedCacheType>().unwrap_err();
        assert_eq!(error.to_string(), "`lmcache` is no type of shared cache: use none or hicache");
    }

    #[test]
    fn a_multiplier_is_a_share_of_what_is_there() {
        let (none, hicache) = (SharedCacheType::None, SharedCacheType::HiCache);
        assert_eq!((none.multiplier(None), hicache.multiplier(None)), (Ok(0.0), Ok(0.5)));
        for value in [0.0, 0.25, 1.0] {
            assert_eq!(hicache.multiplier(Some(value)), Ok(value));
            let error = none.multiplier(Some(value)).unwrap_err().to_string();
            assert!(error.contains("give --shared-cache-type hicache"), "{error}");
        }
        for value in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = hicache.multiplier(Some(value)).unwrap_err();
            assert!(matches!(error, ConfigError::NoShare { .. }), "{error}");
        }
    }
}
