//! Gives the model's files to frontends that do not have the model's folder.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use dynamo_llm::{ModelCard, ModelFile};
use dynamo_runtime::{
    TaskScope,
    request_plane::{Handler, IncomingRequest, Responder},
};

use crate::handler::{INTERNAL, INVALID_REQUEST, failure};

/// Bytes per item: small enough that a frontend's first tokens are not behind it for long.
const PIECE_BYTES: usize = 256 << 10;

/// Answers a file's checksum, as the card writes it, with the file's bytes in pieces.
pub struct ModelFileHandler {
    files: Arc<HashMap<String, ModelFile>>,
    scope: TaskScope,
}

impl ModelFileHandler {
    /// Only the files that the card names are given.
    pub fn new(card: &ModelCard, scope: TaskScope) -> Self {
        let files = card.files().map(|(_, file)| (file.checksum.clone(), file.clone())).collect();
        Self { files: Arc::new(files), scope }
    }
}

impl Handler for ModelFileHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let wanted = std::str::from_utf8(&request.payload).ok().and_then(|checksum| self.files.get(checksum));
        let Some(file) = wanted.cloned() else {
            return responder.fail(failure(INVALID_REQUEST, "the model has no such file"));
        };
        self.scope.spawn("model-file", send(file, responder));
    }
}

async fn send(file: ModelFile, responder: Responder) {
    let path = file.path.clone();
    let read = tokio::task::spawn_blocking(move || file.read_in_place()).await;
    let bytes = match read {
        Ok(Ok(bytes)) => Bytes::from(bytes),
        Ok(Err(error)) => {
            tracing::warn!(%error, "a model file changed or went since it was registered");
            return responder.fail(failure(INTERNAL, error.to_string()));
        }
        Err(error) => return responder.fail(failure(INTERNAL, error.to_string())),
    };
    tracing::debug!(path, bytes = bytes.len(), "sending a model file");
    send_pieces(bytes, responder).await;
}

/// Sends bytes as items of at most [`PIECE_BYTES`], each when there is room for it.
pub(crate) async fn send_pieces(mut rest: Bytes, mut responder: Responder) {
    while !rest.is_empty() {
        let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
        if responder.send(piece).await.is_err() {
            tracing::debug!("a peer left before it had all of an answer");
            return;
        }
    }
    responder.finish();
}
