use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a route's callback returns: JSON, or what went wrong.
pub type EngineRouteFuture = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

type Callback = Arc<dyn Fn(Value) -> EngineRouteFuture + Send + Sync>;

/// The engine's own administration routes, by name: `sleep`, `start_profile`, `control/drain`. Clones share them.
#[derive(Clone, Default)]
pub struct EngineRoutes {
    /// Bounded by what the engine's code registers.
    callbacks: Arc<Mutex<HashMap<String, Callback>>>,
}

impl EngineRoutes {
    /// Answers `/engine/<route>` by `callback`, which gets the request's JSON body, or `{}` if there is none. A route that is
    /// there already is replaced, with a warning.
    pub fn register<F, R>(&self, route: &str, callback: F)
    where
        F: Fn(Value) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let route = normal(route);
        let callback: Callback = Arc::new(move |body| Box::pin(callback(body)));
        if self.callbacks.lock().insert(route.to_owned(), callback).is_some() {
            tracing::warn!(route, "engine route replaced");
        }
    }

    /// Removes a route; returns whether it was there.
    pub fn remove(&self, route: &str) -> bool {
        self.callbacks.lock().remove(normal(route)).is_some()
    }

    /// Calls a route; none if there is no such one.
    pub(super) fn call(&self, route: &str, body: impl FnOnce() -> Value) -> Option<EngineRouteFuture> {
        let callback = self.callbacks.lock().get(normal(route)).cloned()?;
        Some(callback(body()))
    }

    pub(super) fn contains(&self, route: &str) -> bool {
        self.callbacks.lock().contains_key(normal(route))
    }
}

fn normal(route: &str) -> &str {
    route.trim_matches('/')
}
