use std::io::Write;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: BenchArgs,
}

fn plan(flags: &[&str]) -> Result<Plan, BenchError> {
    let flags = std::iter::once("bench").chain(flags.iter().copied());
    Plan::new(&Command::try_parse_from(flags).unwrap().args)
}

#[test]
fn the_flags_of_a_loop_exclude_each_other() {
    assert!(Command::try_parse_from(["bench", "--rate", "3", "--concurrency", "4"]).is_err());
    assert!(Command::try_parse_from(["bench", "--workers", "3"]).is_err());
    assert!(Command::try_parse_from(["bench", "--difference", "64,512", "--output-tokens", "4"]).is_err());
}

#[test]
fn without_flags_it_is_a_small_closed_loop() {
    let plan = plan(&[]).unwrap();
    assert_eq!(plan.shape, Shape::Closed { concurrency: 8 });
    assert_eq!((plan.request_count(), plan.window()), (Some(200), None));
    assert_eq!(plan.workload.output_tokens(0), 64);
}

#[test]
fn a_rate_with_a_duration_has_no_count() {
    let plan = plan(&["--rate", "50", "--duration", "2"]).unwrap();
    assert_eq!(plan.shape, Shape::Poisson { rate: 50.0 });
    assert_eq!((plan.request_count(), plan.window()), (None, Some(Duration::from_secs(2))));
}

#[test]
fn a_trace_runs_on_its_schedule_with_blocks_of_the_shrunk_size() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for timestamp in [0, 1000, 3000] {
        let line =
            format!(r#"{{"timestamp":{timestamp},"input_length":1,"output_length":80,"hash_ids":[1]}}"#);
        writeln!(file, "{line}").unwrap();
    }
    let path = file.path().to_str().unwrap();
    let plan = plan(&["--trace", path, "--shrink", "8", "--speedup", "10"]).unwrap();
    assert_eq!(plan.shape, Shape::Schedule);
    assert_eq!((plan.request_count(), plan.window()), (Some(3), Some(Duration::from_millis(300))));
    assert_eq!(plan.workload.output_tokens(0), 10);
    let Workload::Replay(replay) = plan.workload else { panic!("no replay") };
    assert_eq!((replay.block_tokens, replay.block_words), (64, 18));
}

#[test]
fn bad_values_name_their_flag() {
    for (flags, name) in [
        (["--shared-prefix", "2"], "--shared-prefix"),
        (["--rate", "0"], "--rate"),
        (["--rate", "NaN"], "--rate"),
        (["--timeout", "0"], "--timeout"),
        (["--duration", "-1"], "--duration"),
        (["--speedup", "0"], "--speedup"),
        (["--trace", "/nowhere"], "--trace"),
        (["--url", "https://x"], "--url"),
    ] {
        let flags: Vec<String> = vec![format!("{}={}", flags[0], flags[1])];
        let error = plan(&flags.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
        assert!(error.to_string().starts_with(name), "{flags:?}: {error}");
    }
}
