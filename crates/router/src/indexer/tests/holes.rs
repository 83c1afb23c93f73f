//! Messages that fall between a peer's dump and the first one that is heard.

use super::*;

/// The engine's message with this number: a block of its own after the one before.
fn numbered(sequence: u64) -> Delivery {
    let parent = sequence.checked_sub(1).map(|before| 100 + before);
    Delivery::Batch { sequence, events: vec![stored(parent, &[(100 + sequence, 100 + sequence)])] }
}

/// An engine that publishes in the order of numbers; who hears which message is for the test to say.
async fn hears(served: &Served, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        served.source.deliver(rank(7, 0), numbered(sequence)).await.unwrap();
    }
}

/// Waits until so many blocks of the engine's are known, from the first one on.
async fn holds(served: &Served, blocks: u64) {
    let hashes: Vec<u64> = (100..200).collect();
    let query = json!({"block_hashes": hashes, "model_name": "m"});
    let wanted = if blocks == 0 { json!({}) } else { json!({"7": {"0": blocks * 4}}) };
    served.until("/query_by_hash", &query, |answer| answer["scores"] == wanted).await;
}

async fn metric(served: &Served, name: &str) -> u64 {
    let (_, metrics) = served.call("GET", "/metrics", "").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

/// An indexer that has heard messages 0 to 3, and one that has taken over from it.
async fn two() -> (Served, Served) {
    let first = serve(config(&[])).await;
    first.healthy().await;
    assert_eq!(first.post("/register", engine(7)).await.0, 201);
    hears(&first, 0..4).await;
    holds(&first, 4).await;
    first.until("/workers", &Value::Null, |answer| answer[0]["listeners"]["0"]["last_batch"] == 3).await;
    let second = serve(config(&[format!("http://{}", first.address)])).await;
    second.healthy().await;
    holds(&second, 4).await;
    (first, second)
}

#[tokio::test]
async fn what_fell_between_is_got_from_the_peer_and_what_follows_is_applied_after_it() {
    let (first, second) = two().await;
    // The second one's subscription is late, and the peer a little behind it.
    hears(&first, 4..6).await;
    hears(&second, 7..9).await;
    hears(&first, 6..9).await;
    holds(&second, 9).await;
    assert_eq!(metric(&second, "dynamo_kvindexer_refills_total").await, 1);
    assert_eq!(metric(&second, "dynamo_kvindexer_lost_messages_total").await, 0);
    let both = [first.get("/workers").await.1, second.get("/workers").await.1];
    assert_eq!(both.map(|workers| workers[0]["listeners"]["0"]["last_batch"].clone()), [8, 8]);
}

#[tokio::test]
async fn messages_that_the_dump_has_too_change_nothing() {
    let (_first, second) = two().await;
    hears(&second, 2..6).await;
    holds(&second, 6).await;
    assert_eq!(metric(&second, "dynamo_kvindexer_refills_total").await, 0);
}

#[tokio::test]
async fn an_engine_that_begins_anew_meanwhile_leaves_nothing_behind() {
    let (_first, second) = two().await;
    hears(&second, [0]).await;
    holds(&second, 1).await;
}

#[tokio::test]
async fn a_hole_that_no_peer_fills_is_a_loss_and_the_rest_goes_on() {
    let (first, second) = two().await;
    let gone = json!({"instance_id": 7, "model_name": "m"});
    assert_eq!(first.post("/unregister", gone).await.0, 200);
    // It begins a prompt of its own, so that it fits whatever is missing.
    let event = stored(None, &[(100, 100), (101, 101), (102, 102), (103, 103), (104, 104)]);
    let late = Delivery::Batch { sequence: 6, events: vec![event] };
    second.source.deliver(rank(7, 0), late).await.unwrap();
    holds(&second, 5).await;
    assert_eq!(metric(&second, "dynamo_kvindexer_lost_messages_total").await, 2);
    assert_eq!(metric(&second, "dynamo_kvindexer_refills_total").await, 0);
}

#[tokio::test]
async fn a_rank_that_no_peer_knows_does_not_keep_others_from_what_they_lack() {
    let first = serve(config(&[])).await;
    first.healthy().await;
    for instance in [7, 8] {
        assert_eq!(first.post("/register", engine(instance)).await.0, 201);
        for sequence in 0..4 {
            first.source.deliver(rank(instance, 0), numbered(sequence)).await.unwrap();
        }
    }
    let has_all = |workers: &Value| (0..2).all(|at| workers[at]["listeners"]["0"]["last_batch"] == 3);
    first.until("/workers", &Value::Null, has_all).await;
    let second = serve(config(&[format!("http://{}", first.address)])).await;
    second.healthy().await;
    let gone = json!({"instance_id": 7, "model_name": "m"});
    assert_eq!(first.post("/unregister", gone).await.0, 200);
    second.source.deliver(rank(7, 0), numbered(6)).await.unwrap();
    let lost = async {
        while metric(&second, "dynamo_kvindexer_lost_messages_total").await < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), lost).await.unwrap();
    for sequence in 4..7 {
        first.source.deliver(rank(8, 0), numbered(sequence)).await.unwrap();
    }
    second.source.deliver(rank(8, 0), numbered(6)).await.unwrap();
    let hashes: Vec<u64> = (100..200).collect();
    let query = json!({"block_hashes": hashes, "model_name": "m"});
    second.until("/query_by_hash", &query, |answer| answer["scores"]["8"]["0"] == 7 * 4).await;
    assert_eq!(metric(&second, "dynamo_kvindexer_refills_total").await, 1);
}

#[tokio::test]
async fn a_peer_that_hears_the_engine_later_is_waited_for_before_its_dump_is_read() {
    let first = serve(config(&[])).await;
    first.healthy().await;
    assert_eq!(first.post("/register", engine(7)).await.0, 201);
    hears(&first, 0..4).await;
    holds(&first, 4).await;
    let second = serve(config(&[format!("http://{}", first.address)])).await;
    let adopted = async {
        while second.source.listens(rank(7, 0)).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), adopted).await.unwrap();
    hears(&second, 6..8).await;
    let late = async {
        // It has asked for the engines, and twice how far the peer is.
        let asked = "dynamo_kvindexer_requests_total{endpoint=\"/workers\",method=\"GET\"}";
        while metric(&first, asked).await < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(second.get("/health").await.0, 503);
        hears(&first, 4..8).await;
    };
    tokio::time::timeout(Duration::from_secs(20), late).await.unwrap();
    second.healthy().await;
    holds(&second, 8).await;
    assert_eq!(metric(&second, "dynamo_kvindexer_refills_total").await, 0);
}

#[tokio::test]
async fn what_waits_for_an_index_is_shown_by_model() {
    let served = serve(config(&[])).await;
    served.healthy().await;
    assert_eq!(served.post("/register", engine(7)).await.0, 201);
    let (_, metrics) = served.call("GET", "/metrics", "").await;
    for name in ["queued_messages", "index_queued_events", "index_queued_blocks", "index_broken"] {
        let line = format!("dynamo_kvindexer_{name}{{model=\"m\",routing_group=\"default\"}} 0");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    let gone = json!({"instance_id": 7, "model_name": "m"});
    assert_eq!(served.post("/unregister", gone).await.0, 200);
    let (_, metrics) = served.call("GET", "/metrics", "").await;
    assert!(!metrics.contains("dynamo_kvindexer_index_broken{"), "{metrics}");
}
