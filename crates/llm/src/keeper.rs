//! The task that makes models ready as workers register them, and keeps each in step with its workers.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_runtime::{Change, EndpointId, Incarnation, Query, Record, RecordKey, TaskScope, WorkerId};
use tokio::sync::mpsc;

use crate::{
    ModelCard,
    adapter_models::{AdapterModel, AddedAdapters},
    adapters::{AdapterCards, adapter_at},
    catalog::{Adapters, Builder, Models, Shared},
    served_model::{BuildError, ServedModel},
};

/// A model whose last worker went is kept this long: its requests are told that no worker is there at the moment, not
/// that there is no such model, and a worker that comes back finds it ready.
const KEEP_WITHOUT_WORKERS: Duration = Duration::from_secs(60);
/// Before a model that could not be made ready is tried again.
const BUILD_PAUSE: Duration = Duration::from_secs(5);
/// How often the two times above, and bookings that expire, are looked at.
const TICK: Duration = Duration::from_secs(1);
/// An adapter without a base model, or with a name that is taken, is told of after this time: a worker's cards come and go
/// one after the other.
const UNUSED_PATIENCE: Duration = Duration::from_secs(5);
/// Workers that are asked for a model's files, one after the other, before it counts as failed.
const FILE_SOURCES: usize = 3;

/// A worker's record with its card.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    pub(crate) endpoint: EndpointId,
    pub(crate) incarnation: Incarnation,
    pub(crate) card: Arc<ModelCard>,
    pub(crate) checksum: String,
    /// Whether the card is that of an adapter: no model with workers of its own.
    pub(crate) is_adapter: bool,
}

/// A model that was made ready, or was not, by name and checksum.
pub(crate) struct Built {
    name: String,
    checksum: String,
    result: Result<ServedModel, BuildError>,
}

/// Models that could not be made ready just now, by name and checksum.
type Failures = BTreeMap<(String, String), Instant>;

/// The task's state.
pub(crate) struct Keeper {
    builder: Arc<Builder>,
    namespace: Option<String>,
    shared: Arc<Shared>,
    scope: TaskScope,
    records: BTreeMap<RecordKey, Registered>,
    /// By name; one at a time.
    building: HashSet<String>,
    failed: Failures,
    /// Since when a model has had no worker.
    absent: BTreeMap<String, Instant>,
    /// Adapters' records of no use, and since when.
    unused: BTreeMap<RecordKey, Instant>,
    /// Records that were refused, each said once.
    told: HashSet<RecordKey>,
    built: mpsc::Sender<Built>,
}

impl Keeper {
    pub(crate) fn new(
        builder: Arc<Builder>,
        namespace: Option<String>,
        shared: Arc<Shared>,
        scope: TaskScope,
        built: mpsc::Sender<Built>,
    ) -> Self {
        Self {
            builder,
            namespace,
            shared,
            scope,
            records: BTreeMap::new(),
            building: HashSet::new(),
            failed: Failures::new(),
            absent: BTreeMap::new(),
            unused: BTreeMap::new(),
            told: HashSet::new(),
            built,
        }
    }

    pub(crate) async fn run(mut self, mut arrivals: mpsc::Receiver<Built>) {
        let mut watch = self.builder.runtime.discovery().watch(Query::AllModels);
        let mut tick = tokio::time::interval(TICK);
        let scope = self.scope.clone();
        loop {
            let changed = tokio::select! {
                () = scope.cancelled() => return,
                change = watch.next() => match change {
                    Some(change) => self.on_change(change),
                    None => return,
                },
                Some(built) = arrivals.recv() => self.on_built(built),
                _ = tick.tick() => self.on_tick(),
            };
            if changed {
                self.reconcile();
            }
        }
    }

    fn on_change(&mut self, change: Change) -> bool {
        match change {
            Change::Snapshot(records) => {
                self.records.clear();
                self.told.clear();
                for record in records {
                    self.put(record);
                }
            }
            Change::Put(record) => self.put(record),
            Change::Removed(key) => {
                self.records.remove(&key);
                self.told.remove(&key);
            }
        }
        let names = self.records.values().map(|registered| registered.card.display_name.clone());
        self.shared.names.store(Arc::new(Some(names.collect())));
        true
    }

    fn put(&mut self, record: Record) {
        let key = record.key();
        let Record::Model(record) = record else { return };
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != record.endpoint.namespace) {
            return;
        }
        self.told.remove(&key);
        match serde_json::from_value::<ModelCard>(record.card) {
            Ok(card) => {
                let (endpoint, incarnation) = (record.endpoint, record.incarnation);
                let checksum = card.checksum();
                let is_adapter = adapter_at(&key, &card).is_some();
                let card = Arc::new(card);
                let registered = Registered { endpoint, incarnation, card, checksum, is_adapter };
                self.records.insert(key, registered);
            }
            Err(error) => {
                tracing::warn!(endpoint = %record.endpoint, %error, "a model card does not read: its worker is not used");
                self.records.remove(&key);
            }
        }
    }

    fn on_built(&mut self, built: Built) -> bool {
        let Built { name, checksum, result } = built;
        self.building.remove(&name);
        let served = match result {
            Ok(served) => served,
            Err(error) => {
                tracing::warn!(model = name, %error, "model could not be made ready; trying again");
                self.failed.insert((name, checksum), Instant::now());
                return true;
            }
        };
        let mut models = Models::clone(&self.shared.models.load());
        let wanted = |earlier: &ServedModel| self.records.values().any(|it| earlier.accepts(it));
        if models.get(&name).is_some_and(|earlier| wanted(earlier)) {
            // The workers of the earlier kind came back in the meantime.
            served.close();
            return true;
        }
        tracing::info!(model = name, endpoint = %served.endpoint(), "model is ready");
        self.absent.remove(&name);
        self.told.clear();
        if let Some(earlier) = models.insert(name, Arc::new(served)) {
            earlier.close();
        }
        self.shared.models.store(Arc::new(models));
        true
    }

    /// Whether there is something to reconcile.
    fn on_tick(&mut self) -> bool {
        let now = Instant::now();
        let failed = self.failed.len();
        self.failed.retain(|_, at| now < *at + BUILD_PAUSE);
        let mut models = Models::clone(&self.shared.models.load());
        for (name, served) in &models {
            let expired = served.routers().iter().map(|(router, _)| router.expire()).sum::<usize>();
            if expired > 0 {
                tracing::warn!(model = name, expired, "requests without a sign of life no longer count");
            }
            if served.has_workers() || self.records.values().any(|it| served.accepts(it)) {
                self.absent.remove(name);
            } else {
                self.absent.entry(name.clone()).or_insert(now);
            }
        }
        let over = |since: &Instant| now >= *since + KEEP_WITHOUT_WORKERS;
        let left = models.len();
        models.retain(|name, served| {
            let over = self.absent.get(name).is_some_and(over);
            if over {
                tracing::info!(model = name, "model is gone: no worker for {KEEP_WITHOUT_WORKERS:?}");
                served.close();
                self.builder.routing.metrics.forget(name);
                self.absent.remove(name);
            }
            !over
        });
        // An adapter may have waited for the name.
        let has_room = models.len() < left;
        if has_room {
            self.shared.models.store(Arc::new(models));
        }
        self.drop_adapters();
        self.tell_of_unused(now);
        has_room || self.failed.len() < failed
    }

    fn tell_of_unused(&mut self, now: Instant) {
        for (key, _) in self.unused.iter().filter(|&(_, since)| now >= *since + UNUSED_PATIENCE) {
            let Some(registered) = self.records.get(key) else { continue };
            if self.told.insert(key.clone()) {
                tracing::warn!(
                    model = registered.card.display_name,
                    worker_id = key.worker_id().get(),
                    "an adapter is not used: its worker has no card of its base model, or another model has its name"
                );
            }
        }
    }

    /// Drops adapters that no worker has any more, or whose base model went or was replaced.
    fn drop_adapters(&self) {
        let models = self.shared.models.load();
        let stays = |name: &str, adapter: &AdapterModel| {
            let is_recorded = || {
                let same = |(key, registered): (&RecordKey, &Registered)| {
                    registered.endpoint == *adapter.base().endpoint()
                        && adapter_at(key, &registered.card) == Some(adapter.adapter())
                };
                self.records.iter().any(same)
            };
            let is_current = models.values().any(|served| adapter.is_on(served));
            is_current && !models.contains_key(name) && (adapter.is_there() || is_recorded())
        };
        let adapters = self.shared.adapters.load();
        let (stay, go): (Adapters, Adapters) = adapters
            .iter()
            .map(|(name, adapter)| (name.clone(), adapter.clone()))
            .partition(|(name, adapter): &(String, Arc<AdapterModel>)| stays(name, adapter));
        if go.is_empty() {
            return;
        }
        for name in go.keys() {
            tracing::info!(model = name, "adapter is gone");
        }
        self.shared.adapters.store(Arc::new(stay));
    }

    /// Brings models and records together: starts what is missing, tells each model which workers are its own.
    fn reconcile(&mut self) {
        self.drop_adapters();
        let cards_of_all = self.records.iter().map(|(key, it)| (key, it.incarnation, &*it.card));
        let adapter_cards = AdapterCards::of(cards_of_all);
        let mut adapters = AddedAdapters::over(self.shared.adapters.load_full());
        let mut by_name: BTreeMap<&str, Vec<(&RecordKey, &Registered)>> = BTreeMap::new();
        let mut prefill_by_name: BTreeMap<&str, Vec<(&RecordKey, &Registered)>> = BTreeMap::new();
        for (key, registered) in self.records.iter().filter(|(_, registered)| !registered.is_adapter) {
            let is_prefill = registered.card.is_prefill();
            let names = if is_prefill { &mut prefill_by_name } else { &mut by_name };
            names.entry(&registered.card.display_name).or_default().push((key, registered));
        }
        let models = self.shared.models.load_full();
        for (name, served) in models.iter() {
            let records = by_name.remove(name.as_str()).unwrap_or_default();
            let (own, foreign): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|(_, registered)| served.accepts(registered));
            for (key, registered) in &foreign {
                if !own.is_empty() && self.told.insert((*key).clone()) {
                    tracing::warn!(
                        model = name,
                        endpoint = %registered.endpoint,
                        worker_id = registered.incarnation.worker_id.get(),
                        "a worker registered this model with another endpoint, tokenizer or configuration than those before it: it is not used"
                    );
                }
            }
            served.set_workers(&cards(&own), &cards(&foreign), &adapter_cards);
            let prefill = prefill_by_name.remove(name.as_str()).unwrap_or_default();
            for key in served.set_prefill_workers(prefill, &adapter_cards) {
                if self.told.insert(key.clone()) {
                    tracing::warn!(
                        model = name,
                        worker_id = key.worker_id().get(),
                        "a worker registered to compute prompts for this model, in another namespace, at another endpoint than those before it, or with another tokenizer or configuration: it is not used"
                    );
                }
            }
            for (_, registered) in &own {
                let of_worker = adapter_cards.of_worker(&registered.endpoint, registered.incarnation);
                of_worker.iter().for_each(|card| adapters.add(card, served, &models));
            }
            if own.is_empty() && !foreign.is_empty() {
                // All workers of the earlier kind are gone and others are there: the model changed. It is replaced when
                // the new one is ready.
                by_name.insert(name, foreign);
            }
        }
        let (now, unused) = (Instant::now(), adapter_cards.stray.iter().chain(&adapters.refused));
        let unused = unused.map(|card| {
            let since = self.unused.get(card.key).copied().unwrap_or(now);
            (card.key.clone(), since)
        });
        self.unused = unused.collect();
        if let Some(adapters) = adapters.changed {
            self.shared.adapters.store(Arc::new(adapters));
        }
        for (name, records) in by_name {
            if self.building.contains(name) {
                continue;
            }
            let registered = cards(&records);
            let Some((first, sources)) = next_build(&registered, &self.failed) else { continue };
            self.building.insert(name.to_owned());
            let (first, built, scope) = (first.clone(), self.built.clone(), self.scope.clone());
            let (builder, name) = (self.builder.clone(), name.to_owned());
            self.scope.spawn("build-model", async move {
                let building = ServedModel::build(&builder, &first, &sources, scope.child("model"));
                tokio::select! {
                    () = scope.cancelled() => {}
                    result = building => {
                        let checksum = first.checksum;
                        // A keeper that is gone needs no model.
                        let _ = built.send(Built { name, checksum, result }).await;
                    }
                }
            });
        }
    }
}

fn cards<'a>(records: &[(&RecordKey, &'a Registered)]) -> Vec<&'a Registered> {
    records.iter().map(|&(_, registered)| registered).collect()
}

/// Which of the cards under one name to make ready, and the workers that have its files: the first card that has not
/// failed just now, from its own worker or from others with the same card.
fn next_build<'a>(
    registered: &[&'a Registered],
    failed: &Failures,
) -> Option<(&'a Registered, Vec<WorkerId>)> {
    let failed = |it: &Registered| failed.contains_key(&(it.card.display_name.clone(), it.checksum.clone()));
    let &first = registered.iter().find(|it| !failed(it))?;
    let same = |it: &&&Registered| it.checksum == first.checksum && it.endpoint == first.endpoint;
    let sources = registered.iter().filter(same).map(|it| it.incarnation.worker_id).take(FILE_SOURCES);
    Some((first, sources.collect()))
}

#[cfg(test)]
mod tests;
