//! Which worker has which adapters, by the cards that are registered.
//!
//! An adapter is no model with workers of its own: it is a view on its base model's router, which keeps to the workers that
//! have it. So base and adapters share one index, one subscription to events and one account of the load.

use std::collections::BTreeMap;

use dynamo_runtime::{EndpointId, Incarnation, RecordKey};

use crate::{ModelCard, card::adapter_of};

/// A worker at an endpoint.
pub(crate) type WorkerAt<'a> = (&'a EndpointId, Incarnation);

/// An adapter's card with what requests call it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdapterCard<'a> {
    pub(crate) key: &'a RecordKey,
    pub(crate) adapter: &'a str,
    pub(crate) card: &'a ModelCard,
}

/// What the registered cards say of adapters.
#[derive(Default)]
pub(crate) struct AdapterCards<'a> {
    of_workers: BTreeMap<WorkerAt<'a>, Vec<AdapterCard<'a>>>,
    /// Of no use: their worker has no such base model.
    pub(crate) stray: Vec<AdapterCard<'a>>,
}

/// The adapter that a record is for; none for a base model.
pub(crate) fn adapter_at<'a>(key: &RecordKey, card: &'a ModelCard) -> Option<&'a str> {
    let suffix = match key {
        RecordKey::Model(_, _, suffix) => suffix.as_deref(),
        _ => None,
    };
    adapter_of(card, suffix)
}

impl<'a> AdapterCards<'a> {
    /// Finds each adapter's base among the cards of the same worker.
    pub(crate) fn of(cards: impl Iterator<Item = (&'a RecordKey, Incarnation, &'a ModelCard)>) -> Self {
        let mut bases: BTreeMap<WorkerAt<'_>, &ModelCard> = BTreeMap::new();
        let mut adapters = Vec::new();
        for (key, incarnation, card) in cards {
            let RecordKey::Model(endpoint, _, _) = key else { continue };
            match adapter_at(key, card) {
                Some(adapter) => adapters.push(((endpoint, incarnation), AdapterCard { key, adapter, card })),
                None => {
                    bases.insert((endpoint, incarnation), card);
                }
            }
        }
        let mut found = Self::default();
        for (worker, adapter) in adapters {
            if bases.get(&worker).is_some_and(|base| adapter.card.is_adapter_of(base)) {
                found.of_workers.entry(worker).or_default().push(adapter);
            } else {
                found.stray.push(adapter);
            }
        }
        found
    }

    /// Those of one worker.
    pub(crate) fn of_worker(&self, endpoint: &'a EndpointId, incarnation: Incarnation) -> &[AdapterCard<'a>] {
        self.of_workers.get(&(endpoint, incarnation)).map_or(&[], Vec::as_slice)
    }

    /// As requests name them to a worker, in order.
    pub(crate) fn names_of(&self, endpoint: &'a EndpointId, incarnation: Incarnation) -> Vec<String> {
        let of_worker = self.of_worker(endpoint, incarnation);
        let mut names: Vec<String> = of_worker.iter().map(|adapter| adapter.adapter.to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use dynamo_runtime::{Epoch, WorkerId};

    use super::*;
    use crate::card::tests::tiny_card as base;

    fn record(
        endpoint: &str,
        worker: u64,
        epoch: u64,
        card: ModelCard,
    ) -> (RecordKey, Incarnation, ModelCard) {
        let incarnation =
            Incarnation { worker_id: WorkerId::from_bits(worker), epoch: Epoch::from_unix_ms(epoch) };
        let key = RecordKey::Model(EndpointId::parse(endpoint), incarnation.worker_id, card.key_suffix());
        (key, incarnation, card)
    }

    #[test]
    fn adapters_are_those_of_the_same_incarnation_and_base() {
        let adapter = |name: &str| base().adapter_card(name, None).unwrap();
        let other = ModelCard { display_name: "other".into(), ..base() };
        let records = [
            record("ns.backend.generate", 1, 1, base()),
            record("ns.backend.generate", 1, 1, adapter("sql")),
            record("ns.backend.generate", 1, 1, adapter("chat")),
            // Of an earlier life, of a worker without a card, of another base, at another endpoint.
            record("ns.backend.generate", 2, 2, base()),
            record("ns.backend.generate", 2, 1, adapter("sql")),
            record("ns.backend.generate", 3, 1, adapter("sql")),
            record("ns.backend.generate", 4, 1, base()),
            record("ns.backend.generate", 4, 1, other.adapter_card("sql", None).unwrap()),
            record("ns.backend.other", 1, 1, adapter("sql")),
        ];
        let cards =
            AdapterCards::of(records.iter().map(|(key, incarnation, card)| (key, *incarnation, card)));
        let names = |place: usize| {
            let (RecordKey::Model(endpoint, _, _), incarnation, _) = &records[place] else {
                panic!("a model")
            };
            cards.names_of(endpoint, *incarnation)
        };
        assert_eq!(names(0), ["chat", "sql"]);
        assert!([3, 4, 5, 6, 8].iter().all(|&place| names(place).is_empty()));
        let stray: Vec<&RecordKey> = cards.stray.iter().map(|adapter| adapter.key).collect();
        assert_eq!(stray, [4, 5, 7, 8].map(|place: usize| &records[place].0).to_vec());
    }
}
