//! Hints of a request that name the router itself: whoever sends it here takes the router for a worker.

use dynamo_engine_api::PreprocessedRequest;

/// Forgets the hints if they name the worker `own_id`; whether they did. Another worker's name is a wish of the client's,
/// and stays.
pub(crate) fn forget_own(request: &mut PreprocessedRequest, own_id: u64) -> bool {
    let names_own = request.routing.worker_id == Some(own_id);
    if names_own {
        request.routing.worker_id = None;
        request.routing.dp_rank = None;
        request.routing.estimated_prefix_hit_blocks = None;
    }
    names_own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_another_worker_stays() {
        let mut request = PreprocessedRequest::default();
        request.routing.worker_id = Some(8);
        request.routing.dp_rank = Some(1);
        assert!(!forget_own(&mut request, 7));
        assert_eq!(request.routing.worker_id, Some(8));
        assert!(forget_own(&mut request, 8));
        assert_eq!((request.routing.worker_id, request.routing.dp_rank), (None, None));
    }
}
