//! How often blocks were asked for.

use super::*;

const BOTH: [(u64, u64); 2] = [(100, LOCAL[0]), (101, LOCAL[1])];

/// An indexer that counts uses for longer than a test takes, with an engine.
async fn counting() -> Served {
    let index = IndexChoice::new(1, Some(Duration::from_secs(3600))).unwrap();
    let served = serve(IndexerConfig { index, ..config(&[]) }).await;
    served.healthy().await;
    assert_eq!(served.post("/register", engine(7)).await.0, 201);
    served
}

impl Served {
    /// Applies an event; the wait for it is no use of any block.
    async fn apply(&self, event: (StorageTier, KvCacheEventData), blocks: usize) {
        self.source.deliver(rank(7, 0), batch(vec![event])).await.unwrap();
        let line =
            format!("dynamo_kvindexer_index_blocks{{model=\"m\",routing_group=\"default\"}} {blocks}\n");
        let look = async {
            while !self.call("GET", "/metrics", "").await.1.contains(&line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look).await.expect("the event is applied");
    }

    async fn frequencies(&self, path: &str, query: &Value) -> Value {
        let (status, mut answer) = self.post(path, query.clone()).await;
        assert_eq!(status, 200, "{answer}");
        answer["frequencies"].take()
    }
}

#[tokio::test]
async fn answers_say_how_often_blocks_were_asked_for_before() {
    let served = counting().await;
    served.apply(stored(None, &BOTH), 2).await;
    let whole = json!({"token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], "model_name": "m"});
    let first = json!({"block_hashes": [LOCAL[0]], "model_name": "m"});
    let other = json!({"token_ids": [5, 6, 7, 8], "model_name": "m"});
    for (path, query, expected) in [
        ("/query", &whole, json!([])),
        ("/query_by_hash", &first, json!([1])),
        ("/query", &whole, json!([2, 1])),
        ("/query", &other, json!([])),
        ("/query", &whole, json!([3, 2])),
    ] {
        assert_eq!(served.frequencies(path, query).await, expected, "{path} {query}");
    }
    let removed = KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(101)] };
    served.apply((StorageTier::Device, removed), 1).await;
    assert_eq!(served.frequencies("/query", &whole).await, json!([4]));
    served.apply(stored(Some(100), &BOTH[1..]), 2).await;
    assert_eq!(served.frequencies("/query", &whole).await, json!([5]), "uses went with the block");
    assert_eq!(served.frequencies("/query", &whole).await, json!([6, 1]));
}

#[tokio::test]
async fn an_indexer_without_a_window_counts_nothing() {
    for threads in [1, 2] {
        let index = IndexChoice::new(threads, None).unwrap();
        let served = serve(IndexerConfig { index, ..config(&[]) }).await;
        served.healthy().await;
        assert_eq!(served.post("/register", engine(7)).await.0, 201);
        served.apply(stored(None, &BOTH), 2).await;
        let query = json!({"block_hashes": LOCAL, "model_name": "m"});
        for _ in 0..2 {
            assert_eq!(served.frequencies("/query_by_hash", &query).await, json!([]));
        }
    }
}
