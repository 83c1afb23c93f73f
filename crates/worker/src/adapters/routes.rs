//! The engine routes that load, unload and list adapters, on all workers of the process alike.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use dynamo_runtime::SystemState;
use serde::Deserialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{AdapterError, WorkerAdapters};

/// Bytes of a source's URI at most.
const MAX_URI: usize = 2048;

/// What `load_lora` is asked.
#[derive(Deserialize)]
struct Load {
    lora_name: String,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    uri: String,
}

/// What `unload_lora` is asked.
#[derive(Deserialize)]
struct Unload {
    lora_name: String,
}

/// Adds `load_lora`, `unload_lora` and `list_loras`. They keep no worker alive.
pub(crate) fn register_routes<'a>(
    system: &SystemState,
    workers: impl Iterator<Item = &'a Arc<WorkerAdapters>>,
) {
    let group = Group::of(workers);
    let (loading, unloading) = (group.clone(), group.clone());
    let routes = system.routes();
    routes.register("load_lora", move |body| {
        let group = loading.clone();
        async move { Ok(answer(name_in(&body), group.load(body).await)) }
    });
    routes.register("unload_lora", move |body| {
        let group = unloading.clone();
        async move { Ok(answer(name_in(&body), group.unload(body).await)) }
    });
    routes.register("list_loras", move |_| {
        let group = group.clone();
        async move { Ok(group.list().await) }
    });
}

/// The number by which engines know an adapter: the same wherever it is made of the same name, and never 0.
pub(super) fn lora_id(name: &str) -> u32 {
    (xxh3_64(name.as_bytes()) % (i32::MAX as u64)) as u32 + 1
}

pub(super) fn name_in(body: &Value) -> Option<String> {
    body["lora_name"].as_str().map(str::to_owned)
}

/// `status`, and what went wrong or which adapter it was.
pub(super) fn answer(name: Option<String>, result: Result<String, String>) -> Value {
    let (status, message) = match result {
        Ok(message) => ("success", message),
        Err(message) => {
            tracing::warn!(adapter = name, message, "adapter refused");
            ("error", message)
        }
    };
    let mut answer = json!({"status": status, "message": message});
    if let Some(name) = name {
        answer["lora_id"] = lora_id(&name).into();
        answer["lora_name"] = name.into();
    }
    answer
}

/// The workers of a process. They may end before it.
#[derive(Clone)]
pub(super) struct Group(Arc<[Weak<WorkerAdapters>]>);

impl Group {
    pub(super) fn of<'a>(workers: impl Iterator<Item = &'a Arc<WorkerAdapters>>) -> Self {
        Self(workers.map(Arc::downgrade).collect())
    }

    fn all(&self) -> Result<Vec<Arc<WorkerAdapters>>, String> {
        let all: Option<Vec<_>> = self.0.iter().map(Weak::upgrade).collect();
        all.ok_or_else(|| AdapterError::Gone.to_string())
    }

    /// Loads on all, or on none.
    pub(super) async fn load(&self, body: Value) -> Result<String, String> {
        let Load { lora_name: name, source } =
            serde_json::from_value(body).map_err(|error| error.to_string())?;
        if source.uri.is_empty() || source.uri.len() > MAX_URI {
            return Err(format!("source.uri has {} bytes: give 1 to {MAX_URI}", source.uri.len()));
        }
        let mut new: Vec<Arc<WorkerAdapters>> = Vec::new();
        for worker in self.all()? {
            match worker.load(&name, Some(&source.uri)).await {
                Ok(true) => new.push(worker),
                Ok(false) => {}
                Err(error) => {
                    for worker in new {
                        if let Err(error) = worker.unload(&name).await {
                            tracing::warn!(adapter = name, %error, "adapter stays on a worker");
                        }
                    }
                    return Err(error.to_string());
                }
            }
        }
        Ok(if new.is_empty() { "loaded already".to_owned() } else { "loaded".to_owned() })
    }

    /// Unloads on all; what one of them says against it keeps it on none of the others.
    pub(super) async fn unload(&self, body: Value) -> Result<String, String> {
        let Unload { lora_name: name } = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let mut first_error = None;
        for worker in self.all()? {
            if let Err(error) = worker.unload(&name).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or_else(|| Ok("unloaded".to_owned()), |error| Err(error.to_string()))
    }

    /// Those that any worker has, with their numbers.
    pub(super) async fn list(&self) -> Value {
        let mut names = BTreeSet::new();
        for worker in self.0.iter().filter_map(Weak::upgrade) {
            names.extend(worker.names().await);
        }
        let loras: serde_json::Map<String, Value> =
            names.into_iter().map(|name| (name.clone(), lora_id(&name).into())).collect();
        json!({"status": "success", "count": loras.len(), "loras": loras})
    }
}
