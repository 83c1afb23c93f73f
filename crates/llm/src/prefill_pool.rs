//! The workers that compute prompts for a model whose answers come from others.
//!
//! They register the model's card with the type `Prefill`, at an endpoint of their own, which has a router of its own. The
//! pool is there as soon as the first of them is, and a model without any has an empty one.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use dynamo_kv_router::{BusyThresholds, ConditionalDisagg};
use dynamo_runtime::{EndpointId, TaskScope};
use dynamo_tokens::BlockSize;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    routed_endpoint::{RoutedEndpoint, RoutingContext},
    router::{PrefilledBy, RouterMetrics},
    warmup::DUMP_PATIENCE,
    worker_sync::WorkerCards,
};

/// How long an endpoint that could not be followed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Who computes prompts where a model has prefill workers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DisaggConfig {
    /// A request fails if no prefill worker computes its prompt; otherwise the worker that answers does then.
    pub enforce: bool,
    /// Which prompts stay with the worker that answers; absent: none.
    pub conditional: Option<ConditionalDisagg>,
}

/// The prefill workers of one model.
pub(crate) struct PrefillPool {
    model: String,
    metrics: RouterMetrics,
    config: DisaggConfig,
    current: ArcSwapOption<Pool>,
    wanted: watch::Sender<Option<Wanted>>,
    /// Those that were set since the start.
    busy: Mutex<Option<BusyThresholds>>,
}

struct Pool {
    endpoint: EndpointId,
    routed: Arc<RoutedEndpoint>,
}

/// Who is registered, and where.
#[derive(Clone, PartialEq)]
struct Wanted {
    endpoint: EndpointId,
    cards: WorkerCards,
}

impl PrefillPool {
    /// Empty; follows those whom it is told of until `scope` is cancelled.
    pub(crate) fn start(
        context: &RoutingContext,
        config: DisaggConfig,
        model: &str,
        block_size: BlockSize,
        scope: TaskScope,
    ) -> Arc<Self> {
        let (wanted, changes) = watch::channel(None);
        let this = Arc::new(Self {
            model: model.to_owned(),
            metrics: context.metrics.clone(),
            config,
            current: ArcSwapOption::empty(),
            wanted,
            busy: Mutex::new(None),
        });
        let follow = this.clone().follow(Arc::new(context.of_prefill()), block_size, changes, scope.clone());
        scope.spawn("prefill-pool", follow);
        this
    }

    /// Who computes prompts.
    pub(crate) fn config(&self) -> &DisaggConfig {
        &self.config
    }

    /// The endpoint of the workers, if there are or were any.
    pub(crate) fn endpoint(&self) -> Option<EndpointId> {
        self.wanted.borrow().as_ref().map(|wanted| wanted.endpoint.clone())
    }

    /// Says who is registered, all at one endpoint.
    pub(crate) fn set_workers(&self, endpoint: EndpointId, cards: WorkerCards) {
        let wanted = Some(Wanted { endpoint, cards });
        self.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    /// Nobody is registered any more.
    pub(crate) fn clear_workers(&self) {
        self.wanted.send_if_modified(|known| match known {
            Some(wanted) if wanted.cards != WorkerCards::default() => {
                wanted.cards = WorkerCards::default();
                true
            }
            _ => false,
        });
    }

    /// The endpoint's router, if there are or were workers.
    pub(crate) fn routed(&self) -> Option<Arc<RoutedEndpoint>> {
        Some(self.current.load().as_ref()?.routed.clone())
    }

    /// The workers, if there are any.
    pub(crate) fn workers(&self) -> Option<Arc<RoutedEndpoint>> {
        self.routed().filter(|routed| routed.has_workers())
    }

    /// Sets the thresholds over which its workers take no more prompts, those of later ones included.
    pub(crate) fn set_busy_thresholds(&self, thresholds: BusyThresholds) {
        let mut busy = self.busy.lock();
        *busy = Some(thresholds);
        if let Some(routed) = self.routed() {
            // They were checked by the router of those who answer.
            let _ = routed.router.merge_busy_thresholds(thresholds);
        }
    }

    /// A prompt was computed.
    pub(crate) fn count(&self, by: PrefilledBy) {
        self.metrics.prefilled(&self.model, by);
    }

    async fn follow(
        self: Arc<Self>,
        context: Arc<RoutingContext>,
        block_size: BlockSize,
        mut changes: watch::Receiver<Option<Wanted>>,
        scope: TaskScope,
    ) {
        loop {
            let wanted = changes.borrow_and_update().clone();
            let followed = match wanted {
                Some(wanted) => self.go_to(&context, wanted, block_size, &scope).await,
                None => true,
            };
            let pause = async {
                match followed {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(PAUSE).await,
                }
            };
            tokio::select! {
                () = scope.cancelled() => return,
                () = pause => {}
                // The sender is here.
                _ = changes.changed() => {}
            }
        }
    }

    /// Whether the endpoint is followed.
    async fn go_to(
        &self,
        context: &Arc<RoutingContext>,
        wanted: Wanted,
        block_size: BlockSize,
        scope: &TaskScope,
    ) -> bool {
        let Wanted { endpoint, cards } = wanted;
        let current = self.current.load_full();
        let routed = match &current {
            Some(pool) if pool.endpoint == endpoint => pool.routed.clone(),
            _ => {
                let scope = scope.child("prefill");
                let starting =
                    RoutedEndpoint::start(context, &endpoint, &self.model, block_size, DUMP_PATIENCE, scope);
                match starting.await {
                    Ok(routed) => Arc::new(routed),
                    Err(error) => {
                        tracing::warn!(model = self.model, %endpoint, %error, "prefill workers cannot be followed; trying again");
                        return false;
                    }
                }
            }
        };
        routed.set_workers(cards);
        if current.as_ref().is_none_or(|pool| !Arc::ptr_eq(&pool.routed, &routed)) {
            tracing::info!(model = self.model, %endpoint, "prefill workers compute prompts");
            let busy = self.busy.lock();
            if let Some(thresholds) = *busy {
                let _ = routed.router.merge_busy_thresholds(thresholds);
            }
            self.current.store(Some(Arc::new(Pool { endpoint, routed })));
            drop(busy);
            if let Some(earlier) = current {
                earlier.routed.close();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
