//! One model made ready.

use std::sync::Arc;

use dynamo_runtime::{EndpointId, RecordKey, TaskScope, WorkerId};
use dynamo_tokens::BlockSize;

use crate::{
    ModelCard, ModelInfo,
    adapters::AdapterCards,
    catalog::{Builder, unix_seconds},
    files::MAX_FILE_BYTES,
    keeper::Registered,
    model::RoutedModel,
    model_fetch::collect_files,
    prefill_pool::PrefillPool,
    preprocess::{LoadError, Preprocessor},
    routed_endpoint::{FollowError, RoutedEndpoint},
    router::{Router, WorkerType},
    warmup::DUMP_PATIENCE,
    worker_sync::{WorkerCard, WorkerCards},
};

/// Why a model could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("{file} is not on this host, and the worker did not give it: {error}")]
    Fetch { file: &'static str, error: String },
    #[error("{file} has {size} bytes; model files of more than {MAX_FILE_BYTES} bytes are not taken")]
    TooLarge { file: &'static str, size: u64 },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("kv_cache_block_size is 0")]
    NoBlockSize,
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error("{0}")]
    Internal(String),
}

/// A model that can be asked.
pub(crate) struct ServedModel {
    model: Arc<RoutedModel>,
    endpoint: EndpointId,
    checksum: String,
    routed: RoutedEndpoint,
}

impl ServedModel {
    /// Gets the files, from `sources` if they are not on this host, reads them, and begins to follow the workers.
    pub(crate) async fn build(
        builder: &Builder,
        first: &Registered,
        sources: &[WorkerId],
        scope: TaskScope,
    ) -> Result<Self, BuildError> {
        let Registered { endpoint, card, checksum, .. } = first;
        let block_size = BlockSize::new(card.kv_cache_block_size).ok_or(BuildError::NoBlockSize)?;
        let files = collect_files(builder, card, endpoint, sources).await?;
        let loading = card.clone();
        let preprocessor = tokio::task::spawn_blocking(move || Preprocessor::load(&loading, &files))
            .await
            .map_err(|error| BuildError::Internal(error.to_string()))??;
        let (routing, name) = (&builder.routing, &card.display_name);
        let starting =
            RoutedEndpoint::start(routing, endpoint, name, block_size, DUMP_PATIENCE, scope.clone());
        let routed = starting.await?;
        let prefill = PrefillPool::start(routing, builder.disagg, name, block_size, scope);
        let model = RoutedModel {
            info: info_of(card),
            preprocessor: Arc::new(preprocessor),
            router: routed.router.clone(),
            client: routed.client.clone(),
            prefill,
            tokenizing: builder.tokenizing.clone(),
            adapter: None,
        };
        let (endpoint, checksum) = (endpoint.clone(), checksum.clone());
        Ok(Self { model: Arc::new(model), endpoint, checksum, routed })
    }

    pub(crate) fn model(&self) -> Arc<RoutedModel> {
        self.model.clone()
    }

    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.model.router
    }

    /// Workers that are routed to as if they held nothing, for what they hold is not known.
    pub(crate) fn cold_workers(&self) -> usize {
        let prefill = self.model.prefill.routed();
        self.routed.warmup().cold_workers() + prefill.map_or(0, |routed| routed.warmup().cold_workers())
    }

    pub(crate) fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// Whether a worker serves this very model: what was tokenized for one must fit the others.
    pub(crate) fn accepts(&self, registered: &Registered) -> bool {
        !registered.is_adapter
            && !registered.card.is_prefill()
            && registered.checksum == self.checksum
            && registered.endpoint == self.endpoint
    }

    /// Whether requests go to somebody, also if only to workers in doubt.
    pub(crate) fn has_workers(&self) -> bool {
        self.routed.has_workers()
    }

    /// Whether it is there for requests: as many workers have been there as they are to wait for.
    pub(crate) fn has_begun(&self) -> bool {
        self.routed.has_begun()
    }

    /// Says which workers have registered it, with what adapters, and which have registered something else under its name.
    pub(crate) fn set_workers<'a>(
        &self,
        own: &[&'a Registered],
        foreign: &[&Registered],
        adapters: &AdapterCards<'a>,
    ) {
        let others = foreign.iter().filter(|registered| registered.endpoint == self.endpoint);
        let cards = WorkerCards {
            own: own.iter().map(|registered| worker_card(registered, adapters)).collect(),
            others: others.map(|registered| registered.incarnation.worker_id.get()).collect(),
        };
        self.routed.set_workers(cards);
    }

    /// Says which workers have registered to compute prompts for its name. They are all at one endpoint: at that of those before
    /// them, if one is left there, or else at the first one's. Returns the records of those that are not used.
    pub(crate) fn set_prefill_workers<'a>(
        &self,
        registered: Vec<(&'a RecordKey, &'a Registered)>,
        adapters: &AdapterCards<'a>,
    ) -> Vec<&'a RecordKey> {
        let pool = &self.model.prefill;
        let fits = |it: &Registered| {
            it.checksum == self.checksum && it.endpoint.namespace == self.endpoint.namespace
        };
        let (fitting, mut unused): (Vec<_>, Vec<_>) = registered.into_iter().partition(|(_, it)| fits(it));
        let known = pool.endpoint().filter(|known| fitting.iter().any(|(_, it)| it.endpoint == *known));
        let Some(endpoint) = known.or_else(|| Some(fitting.first()?.1.endpoint.clone())) else {
            pool.clear_workers();
            return unused.into_iter().map(|(key, _)| key).collect();
        };
        let (own, elsewhere): (Vec<_>, Vec<_>) =
            fitting.into_iter().partition(|(_, it)| it.endpoint == endpoint);
        let own = own.into_iter().map(|(_, it)| worker_card(it, adapters)).collect();
        pool.set_workers(endpoint, WorkerCards { own, ..WorkerCards::default() });
        unused.extend(elsewhere);
        unused.into_iter().map(|(key, _)| key).collect()
    }

    /// Its routers, with what their workers do: of those who answer, and of those who compute prompts for them, if there are
    /// or were any.
    pub(crate) fn routers(&self) -> Vec<(Arc<Router>, WorkerType)> {
        let prefill = self.model.prefill.routed();
        let prefill = prefill.map(|routed| (routed.router.clone(), WorkerType::Prefill));
        [(self.model.router.clone(), WorkerType::Decode)].into_iter().chain(prefill).collect()
    }

    /// Ends its tasks. Requests that run go on to their end.
    pub(crate) fn close(&self) {
        self.routed.close();
    }
}

fn worker_card(registered: &Registered, adapters: &AdapterCards<'_>) -> (u64, WorkerCard) {
    let card = WorkerCard {
        epoch: registered.incarnation.epoch.get(),
        runtime_config: registered.card.runtime_config.clone(),
        adapters: adapters.names_of(&registered.endpoint, registered.incarnation),
    };
    (registered.incarnation.worker_id.get(), card)
}

fn info_of(card: &ModelCard) -> ModelInfo {
    let runtime = &card.runtime_config;
    ModelInfo {
        id: card.display_name.clone(),
        created: unix_seconds(),
        context_length: card.context_length,
        kv_block_size: card.kv_cache_block_size,
        total_kv_blocks: runtime.total_kv_blocks,
        max_num_seqs: runtime.max_num_seqs,
        max_num_batched_tokens: runtime.max_num_batched_tokens,
        migration_limit: card.migration_limit,
    }
}
