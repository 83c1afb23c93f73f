//! How long and how much is remembered of what was sent, and whether workers' events are followed.

use std::{fmt, str::FromStr, time::Duration};

use crate::ConfigError;

/// When an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// `ttl`: some time after the last prompt that had it.
    Ttl,
    /// `lru`: when its rank is full, the one that no prompt had for the longest time.
    Lru,
}

impl FromStr for CachePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ttl" => Ok(Self::Ttl),
            "lru" => Ok(Self::Lru),
            _ => Err("use ttl or lru".to_owned()),
        }
    }
}

impl fmt::Display for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "ttl",
            Self::Lru => "lru",
        })
    }
}

/// How long and how much an [`ApproximateIndex`] remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ApproximateConfig {
    /// When an entry goes.
    pub policy: CachePolicy,
    /// How long an entry stays under [`CachePolicy::Ttl`].
    pub ttl: Duration,
    /// Entries in all. When there are more, the oldest go until [`Self::prune_target_ratio`] of them are left.
    pub max_blocks: usize,
    /// Above 0 and at most 1.
    pub prune_target_ratio: f64,
}

impl ApproximateConfig {
    /// The reference's defaults.
    pub const REFERENCE: Self = Self {
        policy: CachePolicy::Ttl,
        ttl: Duration::from_secs(120),
        max_blocks: 1 << 20,
        prune_target_ratio: 0.8,
    };

    /// Says which setting cannot be used, and why.
    fn validate(&self) -> Result<(), ConfigError> {
        if self.ttl.is_zero() {
            return Err(ConfigError::NoTtl);
        }
        if self.max_blocks == 0 {
            return Err(ConfigError::NoTree);
        }
        let ratio = self.prune_target_ratio;
        if ratio > 0.0 && ratio <= 1.0 { Ok(()) } else { Err(ConfigError::PruneTarget(ratio)) }
    }
}

/// How a router knows what workers have cached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheSource {
    /// They say so, by KV events.
    Events,
    /// They say so; and what was sent to them counts before their events come, for a while.
    EventsAndSent(ApproximateConfig),
    /// They say nothing: by what was sent to them.
    Sent(ApproximateConfig),
}

impl CacheSource {
    /// What the settings of these names stand for. `memory` has `ttl_secs`, which is for a router without events;
    /// `predicted_ttl_secs` takes its place in one with events.
    pub fn new(
        use_kv_events: bool,
        memory: ApproximateConfig,
        predicted_ttl: Option<Duration>,
    ) -> Result<Self, ConfigError> {
        let source = match (use_kv_events, predicted_ttl) {
            (false, Some(_)) => return Err(ConfigError::PredictedWithoutEvents),
            (true, _) if memory.policy == CachePolicy::Lru => return Err(ConfigError::LruWithEvents),
            (true, None) => Self::Events,
            (true, Some(ttl)) => Self::EventsAndSent(ApproximateConfig { ttl, ..memory }),
            (false, None) => Self::Sent(memory),
        };
        source.validate()?;
        Ok(source)
    }

    /// Whether KV events are followed.
    pub fn uses_events(&self) -> bool {
        !matches!(self, Self::Sent(_))
    }

    /// How what was sent is remembered, if it is.
    pub fn sent(&self) -> Option<&ApproximateConfig> {
        match self {
            Self::Events => None,
            Self::EventsAndSent(memory) | Self::Sent(memory) => Some(memory),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::EventsAndSent(ApproximateConfig { policy: CachePolicy::Lru, .. }) => {
                Err(ConfigError::LruWithEvents)
            }
            _ => self.sent().map_or(Ok(()), ApproximateConfig::validate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_go_together_say_what_to_set() {
        let (memory, ttl) = (ApproximateConfig::REFERENCE, Some(Duration::from_secs(2)));
        let lru = ApproximateConfig { policy: CachePolicy::Lru, ..memory };
        assert_eq!(CacheSource::new(true, memory, None), Ok(CacheSource::Events));
        assert_eq!(CacheSource::new(false, lru, None), Ok(CacheSource::Sent(lru)));
        let predicted = CacheSource::new(true, memory, ttl).unwrap();
        assert_eq!(predicted.sent().map(|memory| memory.ttl), ttl);
        let words = |source: Result<CacheSource, ConfigError>| source.unwrap_err().to_string();
        assert!(words(CacheSource::new(true, lru, None)).contains("--no-router-kv-events"));
        assert!(words(CacheSource::new(false, memory, ttl)).contains("router-ttl-secs"));
        assert_eq!(CacheSource::EventsAndSent(lru).validate(), Err(ConfigError::LruWithEvents));
    }

    #[test]
    fn a_memory_that_keeps_nothing_is_refused() {
        let sent = |memory| CacheSource::new(false, memory, None).unwrap_err();
        let memory = ApproximateConfig::REFERENCE;
        assert_eq!(sent(ApproximateConfig { ttl: Duration::ZERO, ..memory }), ConfigError::NoTtl);
        assert_eq!(sent(ApproximateConfig { max_blocks: 0, ..memory }), ConfigError::NoTree);
        for prune_target_ratio in [0.0, 1.5, f64::NAN] {
            let error = sent(ApproximateConfig { prune_target_ratio, ..memory });
            assert!(matches!(error, ConfigError::PruneTarget(_)));
        }
    }
}
