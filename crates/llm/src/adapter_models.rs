//! Adapters as models: views on the models of their bases.

use std::sync::Arc;

use crate::{
    ModelInfo,
    adapters::AdapterCard,
    catalog::{Adapters, Models, unix_seconds},
    model::RoutedModel,
    served_model::ServedModel,
};

/// An adapter that can be asked as a model.
pub(crate) struct AdapterModel {
    base: Arc<ServedModel>,
    adapter: Arc<str>,
    model: Arc<RoutedModel>,
}

impl AdapterModel {
    pub(crate) fn new(base: Arc<ServedModel>, card: &AdapterCard<'_>) -> Self {
        let adapter: Arc<str> = card.adapter.into();
        let of_base = base.model();
        let info =
            ModelInfo { id: card.card.display_name.clone(), created: unix_seconds(), ..of_base.info.clone() };
        let model = Arc::new(of_base.with_adapter(info, adapter.clone()));
        Self { base, adapter, model }
    }

    /// Its model, while a worker that is routed to has the adapter.
    pub(crate) fn model(&self) -> Option<&Arc<RoutedModel>> {
        self.is_there().then_some(&self.model)
    }

    /// Whether a worker that is routed to has the adapter, be it in doubt.
    pub(crate) fn is_there(&self) -> bool {
        self.base.has_begun() && self.base.router().has_adapter(&self.adapter)
    }

    /// Whether it is a view on this very model.
    pub(crate) fn is_on(&self, base: &Arc<ServedModel>) -> bool {
        Arc::ptr_eq(&self.base, base)
    }

    /// As requests name it to the engine.
    pub(crate) fn adapter(&self) -> &str {
        &self.adapter
    }

    pub(crate) fn base(&self) -> &Arc<ServedModel> {
        &self.base
    }
}

/// Adapters that become models.
pub(crate) struct AddedAdapters<'a> {
    known: Arc<Adapters>,
    /// The known and the new ones, if there are any new ones.
    pub(crate) changed: Option<Adapters>,
    pub(crate) refused: Vec<AdapterCard<'a>>,
}

impl<'a> AddedAdapters<'a> {
    pub(crate) fn over(known: Arc<Adapters>) -> Self {
        Self { known, changed: None, refused: Vec::new() }
    }

    /// A worker of `base` has an adapter.
    pub(crate) fn add(&mut self, card: &AdapterCard<'a>, base: &Arc<ServedModel>, models: &Models) {
        let name = &card.card.display_name;
        let known = self.changed.as_ref().unwrap_or(&self.known).get(name);
        let same = |known: &Arc<AdapterModel>| known.is_on(base) && known.adapter() == card.adapter;
        if models.contains_key(name) || known.is_some_and(|known| !same(known)) {
            self.refused.push(*card);
        } else if known.is_none() {
            tracing::info!(model = name, base = base.model().info.id, "adapter is a model");
            let adapters = self.changed.get_or_insert_with(|| Adapters::clone(&self.known));
            adapters.insert(name.clone(), Arc::new(AdapterModel::new(base.clone(), card)));
        }
    }
}
