//! Of which policy class a request is.

use std::sync::atomic::{AtomicBool, Ordering};

use dynamo_kv_router::{ClassId, ClassQuery, UnknownClass};

use super::{RouteRequest, Router};

/// Whether a request's class that there is not was warned of: once, for clients may send such names by the thousand.
#[derive(Default)]
pub(super) struct ToldOfClass(AtomicBool);

impl Router {
    pub(super) fn class_of(&self, request: &RouteRequest<'_>) -> Result<ClassId, UnknownClass> {
        self.config.kv.queue.class_of(&ClassQuery {
            class: request.policy_class,
            model: &self.meters.model,
            isl_tokens: request.tokens.len(),
            priority_jump: request.priority_jump,
            strict_priority: request.strict_priority,
        })
    }

    /// The class of a request that came, which is counted where requests queue.
    pub(super) fn class_of_new(&self, request: &RouteRequest<'_>) -> ClassId {
        if !self.line.is_used() {
            return ClassId::DEFAULT;
        }
        let class = self.class_of(request).unwrap_or_else(|unknown| {
            self.meters.unknown_classes.inc();
            if !self.told_of_class.0.swap(true, Ordering::Relaxed) {
                // The name is a client's: no more of it than a name can have.
                let name: String = request.policy_class.unwrap_or_default().chars().take(64).collect();
                tracing::warn!(name, model = %self.meters.model, "{unknown}; it counts as `default`, others untold");
            }
            ClassId::DEFAULT
        });
        self.meters.received(class);
        class
    }
}

#[cfg(test)]
mod tests;
