//! The `--workers` flag: `id[:dp]=tcp://host:port,…`.

use dynamo_kv_router::WorkerRank;

use super::source::{EndpointError, check_endpoint};

/// One engine of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Whose events.
    pub rank: WorkerRank,
    /// Where it publishes them.
    pub endpoint: String,
}

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerListError {
    /// An entry of another form.
    #[error("`{0}` is not id[:dp]=tcp://host:port")]
    Form(String),
    /// An id that is no number.
    #[error("`{0}`: the id, and the rank if there is one, must be numbers")]
    Number(String),
    /// No address.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The same id and rank again.
    #[error("instance {} dp_rank {} is named twice", .0.worker_id, .0.dp_rank)]
    Twice(WorkerRank),
}

/// Reads a list; empty entries do not count.
pub fn parse_workers(list: &str) -> Result<Vec<WorkerSpec>, WorkerListError> {
    let mut workers: Vec<WorkerSpec> = Vec::new();
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let form = || WorkerListError::Form(entry.to_owned());
        let number = |_| WorkerListError::Number(entry.to_owned());
        let (name, endpoint) = entry.split_once('=').ok_or_else(form)?;
        let (id, dp_rank) = name.split_once(':').unwrap_or((name, "0"));
        let worker_id = id.trim().parse().map_err(number)?;
        let dp_rank = dp_rank.trim().parse().map_err(number)?;
        let endpoint = endpoint.trim().to_owned();
        check_endpoint(&endpoint)?;
        let rank = WorkerRank { worker_id, dp_rank };
        if workers.iter().any(|known| known.rank == rank) {
            return Err(WorkerListError::Twice(rank));
        }
        workers.push(WorkerSpec { rank, endpoint });
    }
    Ok(workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_zero_unless_given() {
        let list = parse_workers("7=tcp://127.0.0.1:5557, 8:1=tcp://h:2,").unwrap();
        let spec = |worker_id, dp_rank, endpoint: &str| WorkerSpec {
            rank: WorkerRank { worker_id, dp_rank },
            endpoint: endpoint.to_owned(),
        };
        assert_eq!(list, [spec(7, 0, "tcp://127.0.0.1:5557"), spec(8, 1, "tcp://h:2")]);
        assert_eq!(parse_workers("").unwrap(), []);
    }

    #[test]
    fn errors_name_the_entry() {
        assert_eq!(parse_workers("7").unwrap_err(), WorkerListError::Form("7".into()));
        assert_eq!(parse_workers("x=tcp://h:1").unwrap_err(), WorkerListError::Number("x=tcp://h:1".into()));
        assert!(matches!(parse_workers("7=h:1").unwrap_err(), WorkerListError::Endpoint(_)));
        let rank = WorkerRank { worker_id: 7, dp_rank: 0 };
        assert_eq!(parse_workers("7=tcp://h:1,7:0=tcp://h:2").unwrap_err(), WorkerListError::Twice(rank));
    }
}
