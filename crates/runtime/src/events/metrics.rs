use super::frames::Malformed;
use super::tracker::Discard;
use crate::metrics::{BoundHits, IntCounter, IntCounterVec, IntGauge, Metrics, MetricsError};

/// The event plane's families, `dynamo_event_plane_*`.
#[derive(Clone)]
pub struct EventMetrics {
    published: IntCounterVec,
    received: IntCounterVec,
    missed: IntCounterVec,
    discarded: IntCounterVec,
    pub(super) publishers: IntGauge,
    pub(super) subscriptions: IntGauge,
    pub(super) publish_queue: IntCounter,
    pub(super) subscriber_queue: IntCounter,
}

/// The counters of one subscription.
#[derive(Clone)]
pub(super) struct TopicMetrics {
    pub(super) received: IntCounter,
    pub(super) missed: IntCounter,
    malformed: IntCounter,
    foreign_topic: IntCounter,
    stale: IntCounter,
    duplicate: IntCounter,
    unknown_publisher: IntCounter,
}

impl EventMetrics {
    /// The families of `metrics`.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let of_topic = |name: &str, help: &str| metrics.counter_vec(name, help, &["topic"]);
        let bounds = BoundHits::new(metrics)?;
        Ok(Self {
            published: of_topic("dynamo_event_plane_published_total", "Events published")?,
            received: of_topic("dynamo_event_plane_received_total", "Events handed to consumers")?,
            missed: of_topic(
                "dynamo_event_plane_missed_total",
                "Events that subscribers reported as missing",
            )?,
            discarded: metrics.counter_vec(
                "dynamo_event_plane_discarded_total",
                "Events discarded by subscribers",
                &["topic", "reason"],
            )?,
            publishers: metrics.gauge("dynamo_event_plane_publishers", "Publishers open")?,
            subscriptions: metrics.gauge("dynamo_event_plane_subscriptions", "Subscriptions open")?,
            publish_queue: bounds.of("event_publish_queue"),
            subscriber_queue: bounds.of("event_subscriber_queue"),
        })
    }

    pub(super) fn published(&self, topic: &str) -> IntCounter {
        self.published.with_label_values(&[topic])
    }

    pub(super) fn of_topic(&self, topic: &str) -> TopicMetrics {
        let discarded = |reason| self.discarded.with_label_values(&[topic, reason]);
        TopicMetrics {
            received: self.received.with_label_values(&[topic]),
            missed: self.missed.with_label_values(&[topic]),
            malformed: discarded("malformed"),
            foreign_topic: discarded("foreign_topic"),
            stale: discarded("stale"),
            duplicate: discarded("duplicate"),
            unknown_publisher: discarded("unknown_publisher"),
        }
    }
}

impl TopicMetrics {
    pub(super) fn malformed(&self, defect: Malformed) {
        match defect {
            Malformed::ForeignTopic => self.foreign_topic.inc(),
            _ => self.malformed.inc(),
        }
    }

    pub(super) fn discarded(&self, why: Discard) {
        match why {
            Discard::UnknownPublisher => self.unknown_publisher.inc(),
            Discard::Stale => self.stale.inc(),
            Discard::Duplicate => self.duplicate.inc(),
        }
    }
}
