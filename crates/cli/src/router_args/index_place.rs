//! Where the prefix index is: flags and variables.

use dynamo_llm::{IndexPlace, IndexPlaceError};
use dynamo_runtime::config::{Key, Layers};

const SERVE: Key = Key::new("serve-indexer").env(&["DYN_SERVE_INDEXER"]).expects("true or false");
const REMOTE: Key = Key::new("use-remote-indexer").env(&["DYN_USE_REMOTE_INDEXER"]).expects("true or false");

/// Flags of where the prefix index is.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct IndexPlaceArgs {
    /// kv: answer routers of other processes with this one's index of what workers have cached [env: DYN_SERVE_INDEXER]
    #[arg(long)]
    serve_indexer: bool,
    /// kv: keep no index, and ask one that a process with --serve-indexer has, in turn where there are several
    /// [env: DYN_USE_REMOTE_INDEXER]
    #[arg(long)]
    use_remote_indexer: bool,
}

impl IndexPlaceArgs {
    pub(super) fn resolve(&self, layers: &mut Layers<'_>) -> anyhow::Result<IndexPlace> {
        let serve = layers.switch(&SERVE, self.serve_indexer.then_some(true), false)?;
        let remote = layers.switch(&REMOTE, self.use_remote_indexer.then_some(true), false)?;
        let place: Result<IndexPlace, IndexPlaceError> = IndexPlace::of_flags(serve, remote);
        Ok(place?)
    }
}
