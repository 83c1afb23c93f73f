use clap::Parser;
use dynamo_runtime::config::Env;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    engine: EngineArgs,
}

fn resolve(args: &[&str]) -> anyhow::Result<WorkerConfig> {
    let model = ["test", "--model-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-llama")];
    let args = Command::try_parse_from(model.iter().chain(args))?;
    args.engine.resolve(&mut Layers::new(&Env::default(), None), Some("ns"))
}

#[test]
fn a_role_has_a_name_and_an_older_spelling_and_its_endpoint() {
    for (args, mode, endpoint) in [
        (&[][..], DisaggregationMode::Agg, "dyn://ns.backend.generate"),
        (&["--disaggregation-mode", "prefill"], DisaggregationMode::Prefill, "dyn://ns.prefill.generate"),
        (&["--is-prefill-worker"], DisaggregationMode::Prefill, "dyn://ns.prefill.generate"),
        (&["--disaggregation-mode=decode"], DisaggregationMode::Decode, "dyn://ns.backend.generate"),
        (&["--is-decode-worker"], DisaggregationMode::Decode, "dyn://ns.backend.generate"),
        (
            &["--is-prefill-worker", "--endpoint=dyn://a.b.c", "--disaggregation-mode=prefill"],
            DisaggregationMode::Prefill,
            "dyn://a.b.c",
        ),
    ] {
        let config = resolve(args).unwrap();
        assert_eq!(config.engine.disaggregation_mode, mode, "{args:?}");
        assert_eq!(config.endpoint, EndpointId::parse(endpoint), "{args:?}");
    }
}

#[test]
fn roles_that_contradict_one_another_are_refused() {
    for args in [
        &["--is-prefill-worker", "--is-decode-worker"][..],
        &["--disaggregation-mode", "decode", "--is-prefill-worker"],
        &["--disaggregation-mode", "agg", "--is-decode-worker"],
    ] {
        let error = resolve(args).unwrap_err().to_string();
        assert!(error.contains("a worker has one role; give --disaggregation-mode alone"), "{error}");
    }
    let error = resolve(&["--disaggregation-mode", "both"]).unwrap_err().to_string();
    assert!(error.contains("give agg, prefill or decode"), "{error}");
}

#[test]
fn what_a_hand_over_costs_can_be_given() {
    let engine = resolve(&[]).unwrap().engine;
    assert_eq!((engine.kv_transfer_bandwidth, engine.kv_bytes_per_token), (64.0, None));
    let args = ["--kv-transfer-bandwidth", "12.5", "--kv-bytes-per-token", "1000"];
    let engine = resolve(&args).unwrap().engine;
    assert_eq!((engine.kv_transfer_bandwidth, engine.kv_bytes_per_token), (12.5, Some(1000)));
    assert!(resolve(&["--kv-transfer-bandwidth=-1"]).is_err());
}
