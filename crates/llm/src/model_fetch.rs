//! Gets the files of a model: from this host, or from a worker.

use std::{sync::Arc, time::Duration};

use dynamo_runtime::{
    Client, EndpointId, WorkerId,
    request_plane::{OutgoingRequest, StreamError},
};

use crate::{
    MODEL_FILES_ENDPOINT, ModelCard, ModelFile, catalog::Builder, files::MAX_FILE_BYTES,
    preprocess::ModelFiles, served_model::BuildError,
};

/// How long a worker whose card is known may take to be known as an instance too.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a file may be on its way: the largest at 1 MB/s.
const TRANSFER: Duration = Duration::from_secs(300);

/// Every file of the card. Those that are not on this host come from the first of `sources` that gives them.
pub(crate) async fn collect_files(
    builder: &Builder,
    card: &Arc<ModelCard>,
    endpoint: &EndpointId,
    sources: &[WorkerId],
) -> Result<ModelFiles, BuildError> {
    let client =
        builder.runtime.client(EndpointId { endpoint: MODEL_FILES_ENDPOINT.to_owned(), ..endpoint.clone() });
    let mut files = ModelFiles::new();
    for (kind, file) in card.files() {
        let (cache, wanted) = (builder.cache.clone(), file.clone());
        let found = tokio::task::spawn_blocking(move || cache.find(&wanted))
            .await
            .map_err(|error| BuildError::Internal(error.to_string()))?;
        let bytes = match found {
            Some(bytes) => bytes,
            None => fetch(builder, &client, kind.file_name(), file, sources).await?,
        };
        files.push((kind, bytes));
    }
    Ok(files)
}

async fn fetch(
    builder: &Builder,
    client: &Client,
    name: &'static str,
    file: &ModelFile,
    sources: &[WorkerId],
) -> Result<Vec<u8>, BuildError> {
    if file.size > MAX_FILE_BYTES {
        return Err(BuildError::TooLarge { file: name, size: file.size });
    }
    let mut last = "no worker has registered it any more".to_owned();
    for &worker in sources {
        match fetch_from(builder, client, file, worker).await {
            Ok(bytes) => {
                tracing::info!(file = name, bytes = bytes.len(), "model file fetched from a worker");
                return Ok(bytes);
            }
            Err(error) => last = format!("worker {worker:x}: {error}"),
        }
    }
    Err(BuildError::Fetch { file: name, error: last })
}

/// Gets, checks and keeps a file.
async fn fetch_from(
    builder: &Builder,
    client: &Client,
    file: &ModelFile,
    worker: WorkerId,
) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut changes = client.watch();
    let known = changes.wait_for(|instances| instances.iter().any(|it| it.worker_id() == worker));
    // Without it the request says what is wrong.
    let _ = tokio::time::timeout(PATIENCE, known).await;
    let request = OutgoingRequest {
        id: "model-file".into(),
        payload: file.checksum.clone().into_bytes().into(),
        time_left: Some(TRANSFER),
        metadata: Vec::new(),
    };
    let mut stream = client.direct(request, worker).await.map_err(|error| text(&error))?.stream;
    let mut bytes = Vec::with_capacity(usize::try_from(file.size).unwrap_or(0));
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error: StreamError| text(&error))?;
        if (bytes.len() + piece.len()) as u64 > file.size {
            return Err("it sends more bytes than the card says".to_owned());
        }
        bytes.extend_from_slice(&piece);
    }
    let (cache, file) = (builder.cache.clone(), file.clone());
    let keeping = tokio::task::spawn_blocking(move || {
        let bytes = file.check(bytes).map_err(|error| error.to_string())?;
        if let Err(error) = cache.keep(&file, &bytes) {
            tracing::warn!(%error, "a model file could not be cached on this host");
        }
        Ok(bytes)
    });
    keeping.await.map_err(|error| text(&error))?
}
