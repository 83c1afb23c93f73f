//! The LoRA adapters of a worker: what its engine has loaded, and a card for each in discovery.

mod loaded;
#[cfg(test)]
mod routed_tests;
mod routes;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use dynamo_llm::{AdapterNameError, ModelCard};
use dynamo_runtime::{
    Announcement, DiscoveryError, DistributedRuntime, EndpointId, ModelRecord, Query, Record, ServeError,
};
pub use loaded::LoadedAdapters;
pub(crate) use routes::register_routes;
use tokio::sync::Mutex;

/// Adapters that a worker has at most: each is a record in discovery, which holds 65,536 of all workers.
pub const MAX_ADAPTERS: usize = 64;

/// Why an adapter was not loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No adapter can have that name.
    #[error(transparent)]
    Name(#[from] AdapterNameError),
    /// It is there already, of another source.
    #[error("the adapter {0} is loaded from another source: unload it first")]
    Loaded(String),
    /// Another one has the same record in discovery.
    #[error(
        "the adapters {0} and {1} do not differ, or in capitals and punctuation alone: give one of them another name"
    )]
    SameKey(String, String),
    /// There is no room for it.
    #[error("a worker has at most {MAX_ADAPTERS} adapters: unload one first")]
    Full,
    /// It is not there.
    #[error("the adapter {0} is not loaded")]
    NotLoaded(String),
    /// It cannot be told from another model at the same endpoint, or that is another base model.
    #[error("{adapter} cannot be served at {endpoint}: the model {other} of worker {worker_id:x} is there")]
    Incompatible {
        /// The model that was to be registered.
        adapter: String,
        /// Where.
        endpoint: Box<EndpointId>,
        /// What is there.
        other: String,
        /// Whose.
        worker_id: u64,
    },
    /// Discovery did not take or give its record.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Discovery did not answer.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// Its card cannot be written.
    #[error("the card of an adapter does not serialize: {0}")]
    Card(#[from] serde_json::Error),
    /// The worker is gone.
    #[error("the worker has ended")]
    Gone,
}

/// One worker's adapters. Dropping it withdraws their cards.
pub struct WorkerAdapters {
    runtime: DistributedRuntime,
    endpoint: EndpointId,
    base: ModelCard,
    loaded: Arc<LoadedAdapters>,
    /// By name. Held across loading and unloading, which take turns.
    held: Mutex<BTreeMap<String, Held>>,
}

/// An adapter that is there.
struct Held {
    source: Option<String>,
    key: Option<String>,
    announced: Announcement,
}

impl WorkerAdapters {
    /// None yet. `base` is the card of the worker's model at `endpoint`; the engine behind serves what is in `loaded`.
    pub fn new(
        runtime: DistributedRuntime,
        endpoint: EndpointId,
        base: ModelCard,
        loaded: Arc<LoadedAdapters>,
    ) -> Self {
        Self { runtime, endpoint, base, loaded, held: Mutex::default() }
    }

    /// Loads an adapter and registers its card, unless what is registered at the endpoint does not go with it; whether it
    /// is new. One that is there with the same source changes nothing.
    pub async fn load(&self, name: &str, source: Option<&str>) -> Result<bool, AdapterError> {
        let card = self.base.adapter_card(name, None)?;
        let cards = std::slice::from_ref(&card);
        check_others(&self.runtime, &self.endpoint, cards).await?;
        let is_new = self.register(name, source).await?;
        if is_new && let Err(error) = check_others(&self.runtime, &self.endpoint, cards).await {
            self.unload(name).await?;
            return Err(error);
        }
        Ok(is_new)
    }

    /// As [`load`](Self::load), for who has looked at what else is registered.
    pub(crate) async fn register(&self, name: &str, source: Option<&str>) -> Result<bool, AdapterError> {
        let card = self.base.adapter_card(name, Some(MAX_ADAPTERS as u32))?;
        let key = card.key_suffix();
        let mut held = self.held.lock().await;
        match held.get(name) {
            Some(known) if known.source.as_deref() == source => return Ok(false),
            Some(_) => return Err(AdapterError::Loaded(name.to_owned())),
            None => {}
        }
        if let Some((other, _)) = held.iter().find(|(_, known)| known.key == key) {
            return Err(AdapterError::SameKey(name.to_owned(), other.clone()));
        }
        if held.len() >= MAX_ADAPTERS {
            return Err(AdapterError::Full);
        }
        // It is served before anybody can know of it.
        self.loaded.load(name);
        let announced = match announce_model(&self.runtime, &self.endpoint, &card).await {
            Ok(announced) => announced,
            Err(error) => {
                self.loaded.unload(name);
                return Err(error);
            }
        };
        tracing::info!(adapter = name, source, "adapter loaded");
        held.insert(name.to_owned(), Held { source: source.map(str::to_owned), key, announced });
        Ok(true)
    }

    /// Withdraws an adapter's card and unloads it. Requests that run go on to their end.
    pub async fn unload(&self, name: &str) -> Result<(), AdapterError> {
        let mut held = self.held.lock().await;
        let gone = held.remove(name).ok_or_else(|| AdapterError::NotLoaded(name.to_owned()))?;
        let left = gone.announced.leave().await;
        self.loaded.unload(name);
        tracing::info!(adapter = name, "adapter unloaded");
        Ok(left?)
    }

    /// The names of those that are there, in order.
    pub async fn names(&self) -> Vec<String> {
        self.held.lock().await.keys().cloned().collect()
    }
}

/// Registers a card, base model's or adapter's.
pub(crate) async fn announce_model(
    runtime: &DistributedRuntime,
    endpoint: &EndpointId,
    card: &ModelCard,
) -> Result<Announcement, AdapterError> {
    let record = ModelRecord {
        endpoint: endpoint.clone(),
        incarnation: runtime.incarnation(),
        card: serde_json::to_value(card)?,
        suffix: card.key_suffix(),
    };
    Ok(runtime.announce(Record::Model(record)).await?)
}

/// Whether what is registered at an endpoint goes with these cards. Looked at before and after they are registered, it
/// keeps two who register at once from both staying; both may go.
pub(crate) async fn check_others(
    runtime: &DistributedRuntime,
    endpoint: &EndpointId,
    cards: &[ModelCard],
) -> Result<(), AdapterError> {
    for record in runtime.discovery().list(&Query::AllModels).await? {
        let Record::Model(record) = record else { continue };
        if record.endpoint != *endpoint {
            continue;
        }
        // A card that does not read is nobody's model.
        let Ok(other) = serde_json::from_value::<ModelCard>(record.card) else { continue };
        if let Some(card) = cards.iter().find(|card| !card.is_compatible(&other)) {
            return Err(AdapterError::Incompatible {
                adapter: card.display_name.clone(),
                endpoint: Box::new(endpoint.clone()),
                other: other.display_name,
                worker_id: record.incarnation.worker_id.get(),
            });
        }
    }
    Ok(())
}
