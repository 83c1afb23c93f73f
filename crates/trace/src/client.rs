//! Requests over a pool of connections.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::{
    connection::Connection,
    error::BenchError,
    failure::{Failure, FailureKind},
    meter::{Meter, Served},
    request::{RequestTemplate, get_request},
    target::Target,
    workload::Workload,
};

/// How long the server may take to list its models.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);

/// Where requests go, and the idle connections to there. There are never more of them than requests in flight at once.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) template: RequestTemplate,
    pub(crate) timeout: Duration,
    pub(crate) keep: bool,
    pub(crate) want_worker: bool,
    idle: Mutex<Vec<Connection>>,
}

/// One request to make.
pub(crate) struct Ask<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) index: u64,
    /// When it was due; without, it is due when it is sent.
    pub(crate) due: Option<Instant>,
}

impl Client {
    pub(crate) fn new(
        address: SocketAddr,
        template: RequestTemplate,
        timeout: Duration,
        keep: bool,
        want_worker: bool,
    ) -> Self {
        Self { address, template, timeout, keep, want_worker, idle: Mutex::new(Vec::new()) }
    }

    /// Makes a request and counts what comes of it.
    pub(crate) async fn ask(&self, meter: &Meter, ask: Ask<'_>) {
        let now = Instant::now();
        let origin = ask.due.unwrap_or(now);
        let tokens = ask.workload.output_tokens(ask.index);
        meter.sent(tokens, ask.due.map(|due| now.saturating_duration_since(due)));
        let answer = tokio::time::timeout(self.timeout, self.attempt(meter, &ask, origin, tokens)).await;
        match answer {
            Ok(Ok(served)) => meter.served(origin, &served),
            Ok(Err(failure)) => meter.failed(failure),
            Err(_) => {
                let message = format!("not complete after {:?}", self.timeout);
                meter.failed(Failure::new(FailureKind::Timeout, message));
            }
        }
    }

    async fn attempt(
        &self,
        meter: &Meter,
        ask: &Ask<'_>,
        origin: Instant,
        tokens: u32,
    ) -> Result<Served, Failure> {
        let idle = if self.keep { self.idle.lock().pop() } else { None };
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.open(meter).await?,
        };
        self.fill(&mut connection, ask, tokens);
        let mut answer = connection.exchange(meter, origin, || ()).await;
        if connection.is_used() && answer.as_ref().is_err_and(|failure| failure.stale) {
            // Closed by the server while idle, which it may do at any time: not its failure.
            meter.with(|counts| counts.reconnects += 1);
            connection = self.open(meter).await?;
            self.fill(&mut connection, ask, tokens);
            answer = connection.exchange(meter, origin, || ()).await;
        }
        if self.keep && connection.is_reusable() {
            self.idle.lock().push(connection);
        }
        answer
    }

    async fn open(&self, meter: &Meter) -> Result<Connection, Failure> {
        let connection = Connection::open(self.address, self.want_worker).await?;
        meter.with(|counts| counts.connections += 1);
        Ok(connection)
    }

    fn fill(&self, connection: &mut Connection, ask: &Ask<'_>, tokens: u32) {
        let Connection { body, out, .. } = connection;
        self.template.write(ask.workload, ask.index, tokens, body, out);
    }
}

/// The first address of the target.
pub(crate) async fn resolve(target: &Target) -> Result<SocketAddr, BenchError> {
    let connect = |why: String| BenchError::Connect { target: target.clone(), why };
    let mut found = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(|e| connect(e.to_string()))?;
    found.next().ok_or_else(|| connect("the name has no address".into()))
}

/// Asks for the models, which also shows that someone is there; returns the first.
pub(crate) async fn first_model(
    target: &Target,
    address: SocketAddr,
    headers: &[String],
) -> Result<String, BenchError> {
    #[derive(Deserialize)]
    struct Models {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let request = get_request(target, "/v1/models", headers)?;
    let none = |why: String| BenchError::NoModel { target: target.clone(), why };
    let mut connection = connect(target, address).await?;
    let (status, body) = tokio::time::timeout(MODELS_TIMEOUT, connection.fetch(&request))
        .await
        .map_err(|_| none(format!("no answer within {MODELS_TIMEOUT:?}")))?
        .map_err(|failure| none(failure.message))?;
    if status != 200 {
        return Err(none(format!("status {status}")));
    }
    let models: Models = serde_json::from_slice(&body).map_err(|e| none(e.to_string()))?;
    models.data.into_iter().next().map(|model| model.id).ok_or_else(|| none("its list is empty".into()))
}

/// Opens a connection, or says what to do.
pub(crate) async fn connect(target: &Target, address: SocketAddr) -> Result<Connection, BenchError> {
    let error = |failure: Failure| BenchError::Connect { target: target.clone(), why: failure.message };
    Connection::open(address, false).await.map_err(error)
}
