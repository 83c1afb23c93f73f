use dynamo_frontend::fake::{FakeModel, Script};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, ask, chat, get},
    server::Server,
};

async fn server() -> Server {
    Server::start(vec![FakeModel::new("m", Script::of(&["a"]))]).await
}

async fn post(server: &Server, body: &[u8]) -> Answer {
    let mut client = Client::connect(server.address).await;
    client.send("POST", "/busy_threshold", &[("content-type", "application/json")], body).await;
    client.answer().await
}

async fn post_json(server: &Server, body: Value) -> Answer {
    post(server, &serde_json::to_vec(&body).unwrap()).await
}

#[tokio::test]
async fn busy_thresholds_are_read_and_set_one_by_one() {
    let server = server().await;
    let unset = json!({"model": "m", "active_decode_blocks_threshold": null,
        "active_prefill_tokens_threshold": null, "active_prefill_tokens_threshold_frac": null});
    assert_eq!(post_json(&server, json!({"model": "m"})).await.json(), unset);
    post_json(&server, json!({"model": "m", "active_decode_blocks_threshold": 0.9})).await;
    let set = post_json(&server, json!({"model": "m", "active_prefill_tokens_threshold": 1000})).await;
    assert_eq!(set.status, 200);
    let list = get(server.address, "/busy_threshold").await.json();
    assert_eq!(list, json!({"thresholds": [set.json()]}));
    assert_eq!(list["thresholds"][0]["active_decode_blocks_threshold"], 0.9);
    assert_eq!(list["thresholds"][0]["active_prefill_tokens_threshold"], 1000);
    for (body, status) in [
        (json!({"model": "m", "active_decode_blocks_threshold": 1.1}), 400),
        (json!({"model": "m", "active_prefill_tokens_threshold_frac": -1}), 400),
        (json!({"model": "x", "active_decode_blocks_threshold": 0.1}), 404),
        (json!({"model": "m", "active_decode_blocks_threshold": "half"}), 422),
        (json!({"active_decode_blocks_threshold": 0.5}), 422),
    ] {
        let refused = post_json(&server, body.clone()).await;
        assert_eq!(refused.status, status, "{body}");
        assert!(refused.json()["error"].is_string());
    }
    assert_eq!(post(&server, b"{").await.status, 422);
    assert_eq!(get(server.address, "/busy_threshold").await.json(), list, "nothing of it was set");
}

#[tokio::test]
async fn who_asks_for_an_instance_gets_its_name_and_the_prompt_in_tokens() {
    let server = server().await;
    let asks = json!({"annotations": ["query_instance_id:"], "backend_instance_id": 9});
    let answer = ask(server.address, &chat(json!({"nvext": asks}))).await;
    assert_eq!((answer.status, &answer.json()["choices"]), (200, &json!([])));
    let nvext = &answer.json()["nvext"];
    assert_eq!(
        (&nvext["worker_id"]["decode_worker_id"], &nvext["token_ids"]),
        (&json!(9), &json!([1, 2, 3]))
    );
    let streamed = ask(server.address, &chat(json!({"nvext": asks, "stream": true}))).await;
    let events = streamed.events();
    assert_eq!((events.len(), events[1].as_str()), (2, "[DONE]"));
    let event: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!((&event["object"], &event["nvext"]), (&json!("chat.completion.chunk"), nvext));
    assert_eq!(server.records[0].started(), 0, "nothing was generated");
}
