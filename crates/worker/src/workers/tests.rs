//! Workers of both halves of a request, over discovery and the request plane.

use std::time::Duration;

use dynamo_engine_api::{
    EngineOutput, PrefillResult, PreprocessedRequest, StopConditions, decode_output, encode_request,
};
use dynamo_runtime::{Query, Record, RuntimeConfig, WorkerId, request_plane::OutgoingRequest};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::test_member::{member, tiny_worker};

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

async fn workers(config: &RuntimeConfig, mode: DisaggregationMode, component: &str) -> Workers {
    tiny_worker(config, |worker| {
        worker.endpoint.component = component.to_owned();
        worker.engine.disaggregation_mode = mode;
        worker.loras = vec!["sql".to_owned()];
    })
    .await
}

/// The last output that somebody at an endpoint gives, and who.
async fn ask(
    asker: &DistributedRuntime,
    component: &str,
    request: &PreprocessedRequest,
) -> (EngineOutput, WorkerId) {
    let client = asker.client(EndpointId::new("ns", component, "generate"));
    client.wait_for_instances(PATIENCE).await.unwrap();
    let mut payload = Vec::new();
    encode_request(request, &mut payload);
    let request = OutgoingRequest {
        id: "test".into(),
        payload: payload.into(),
        time_left: Some(PATIENCE),
        metadata: vec![],
    };
    let mut opened = client.round_robin(request).await.unwrap();
    let mut output = EngineOutput::default();
    while let Some(item) = opened.stream.next().await {
        decode_output(&item.unwrap(), &mut output).unwrap();
    }
    (output, opened.instance.worker_id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefill_worker_registers_as_one_and_says_who_has_the_blocks() {
    let config = RuntimeConfig::process_local();
    let prefill = workers(&config, DisaggregationMode::Prefill, "prefill").await;
    let decode = workers(&config, DisaggregationMode::Decode, "backend").await;
    assert!(prefill.card().is_prefill() && !decode.card().is_prefill());
    let asker = member(&config, None).await;
    let mut roles = Vec::new();
    for record in asker.discovery().list(&Query::AllModels).await.unwrap() {
        let Record::Model(record) = record else { panic!("{record:?}") };
        let card: ModelCard = serde_json::from_value(record.card).unwrap();
        roles.push((record.endpoint.component, card.display_name.clone(), card.is_prefill()));
    }
    roles.sort();
    let role = |component: &str, name: &str, is_prefill| (component.to_owned(), name.to_owned(), is_prefill);
    let expected = [
        role("backend", "sql", false),
        role("backend", "tiny", false),
        role("prefill", "sql", true),
        role("prefill", "tiny", true),
    ];
    assert_eq!(roles, expected);

    let mut request = PreprocessedRequest {
        token_ids: (5..45).collect(),
        stop_conditions: StopConditions { max_tokens: Some(1), ..StopConditions::default() },
        ..PreprocessedRequest::default()
    };
    let (output, worker) = ask(&asker, "prefill", &request).await;
    let word = output.disaggregated_params.unwrap();
    let expected = json!({"kv_transfer_params": {
        "do_remote_prefill": true,
        "do_remote_decode": false,
        "remote_engine_id": worker.get().to_string(),
        "prompt_tokens": 40,
    }});
    assert_eq!(word, expected);

    request.prefill_result = Some(PrefillResult { disaggregated_params: word });
    let (output, _) = ask(&asker, "backend", &request).await;
    assert_eq!(output.disaggregated_params, None);
    let usage = output.completion_usage.unwrap();
    assert_eq!(usage.prompt_tokens_details.unwrap().cached_tokens, 36);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_knows_the_size_of_its_models_kv() {
    let config = RuntimeConfig::process_local();
    let workers = workers(&config, DisaggregationMode::Agg, "backend").await;
    let engine = workers.workers[0].engine.config();
    assert_eq!(engine.kv_bytes_per_token, Some(2 * 2 * 2 * 64 * 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_of_several_groups_reach_all_of_them() {
    let config = RuntimeConfig::process_local();
    let prefill = workers(&config, DisaggregationMode::Prefill, "prefill").await;
    let decode = workers(&config, DisaggregationMode::Agg, "backend").await;
    let mut config = config.clone();
    config.system.port = Some(0);
    let process = member(&config, None).await;
    decode.register_routes_with(&[&prefill], process.system());
    let ask = async {
        let mut connection = TcpStream::connect(process.system_address().unwrap()).await.unwrap();
        let request = "POST /engine/clear_kv_blocks HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await.unwrap();
    assert!(answer.contains(r#""workers":2"#), "{answer}");
}
