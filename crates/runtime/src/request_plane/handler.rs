use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Responder;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port` of a request plane.
    pub address: String,
    /// What is served there.
    pub path: String,
}

impl Target {
    /// Splits `host:port/path`, the form in which discovery records name an endpoint.
    pub fn parse(address: &str) -> Option<Self> {
        let (address, path) = address.split_once('/')?;
        address.contains(':').then(|| Self { address: address.to_owned(), path: path.to_owned() })
    }
}

/// A request as it is sent.
#[derive(Clone, Debug)]
pub struct OutgoingRequest {
    /// Names it in logs on both sides.
    pub id: Arc<str>,
    /// Opaque.
    pub payload: Bytes,
    /// Time for the whole answer; both ends give up when it is over.
    pub time_left: Option<Duration>,
    /// Trace context and the like; at most 16 KiB together with id and path.
    pub metadata: Vec<(String, String)>,
}

/// A request as it arrives.
#[derive(Clone, Debug)]
pub struct IncomingRequest {
    /// Names it in logs on both sides.
    pub id: Arc<str>,
    /// The path that it was sent to.
    pub path: Arc<str>,
    /// Opaque.
    pub payload: Bytes,
    /// When the other end no longer waits. The responder is cancelled then.
    pub deadline: Option<Instant>,
    /// Trace context and the like.
    pub metadata: Vec<(String, String)>,
}

/// Who answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Takes a request. Called on the connection's task, so it must not block. When it returns, the request counts as
    /// accepted, unless the responder was failed or dropped before.
    fn handle(&self, request: IncomingRequest, responder: Responder);
}

impl<F: Fn(IncomingRequest, Responder) + Send + Sync + 'static> Handler for F {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        self(request, responder);
    }
}

/// Calls a handler; a panic in it ends that request (its responder is dropped) and nothing else.
pub(super) fn call(handler: &dyn Handler, request: IncomingRequest, responder: Responder) {
    let id = request.id.clone();
    let call = std::panic::AssertUnwindSafe(|| handler.handle(request, responder));
    if std::panic::catch_unwind(call).is_err() {
        tracing::error!(request_id = %id, "a request handler panicked");
    }
}
