use std::path::{Path, PathBuf};

use clap::Parser;
use tempfile::TempDir;

use super::*;
use crate::{mooncake::TraceRequest, turns::Turns};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    trace: TraceArgs,
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Vec<TraceRequest> {
        read_trace(&self.path(name)).unwrap()
    }

    /// Runs a command line; words that begin with `@` are files of the folder.
    fn run(&self, line: &str) -> Result<u8, TraceToolError> {
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        });
        run_trace(Cli::try_parse_from(std::iter::once("trace".to_owned()).chain(words)).unwrap().trace)
    }
}

fn exists(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.len() > 0)
}

#[test]
fn what_one_command_makes_the_others_take() {
    let folder = Folder::new();
    let sine = "sine --output-file @sine.jsonl --isl1 100 --isl2 700 --total-blocks 20 --block-size 128";
    assert_eq!(folder.run(sine).unwrap(), 0);
    assert_eq!(folder.run("validate --input-file @sine.jsonl --block-size 128").unwrap(), 0);
    let synthesize = "synthesize --input-file @sine.jsonl --num-requests 300 --block-size 128";
    assert_eq!(folder.run(synthesize).unwrap(), 0);
    assert_eq!(folder.read("sine_synth.jsonl").len(), 300);
    assert_eq!(folder.run("validate --input-file @sine_synth.jsonl --block-size 128").unwrap(), 0);
    folder
        .run("stretch --input-file @sine_synth.jsonl --output-file @slow.jsonl --duration-ms 9000")
        .unwrap();
    assert_eq!(folder.read("slow.jsonl").last().unwrap().timestamp, Some(9000.0));
    let duplicate =
        "duplicate --input-file @slow.jsonl --output-file @twice.jsonl --copies 2 --length-factor 3";
    folder.run(duplicate).unwrap();
    let (once, twice) = (folder.read("slow.jsonl"), folder.read("twice.jsonl"));
    assert_eq!((twice.len(), twice[0].hash_ids.len()), (600, 3 * once[0].hash_ids.len()));
    let analyze = "analyze --input-file @twice.jsonl --block-size 128 --json @a.json --html @a.html";
    assert_eq!(folder.run(analyze).unwrap(), 0);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("a.json")).unwrap()).unwrap();
    assert_eq!(json["requests"], 600);
    let html = std::fs::read_to_string(folder.path("a.html")).unwrap();
    assert!(html.matches("<svg").count() == 5 && !html.contains("http") && !html.contains("NaN"));
}

#[test]
fn faults_end_with_2_and_what_is_right_can_be_kept() {
    let folder = Folder::new();
    let good = "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1]}\n";
    folder.write("bad.jsonl", &format!("{good}oh\n"));
    assert_eq!(folder.run("validate --input-file @bad.jsonl").unwrap(), 2);
    assert_eq!(folder.run("validate --input-file @bad.jsonl --salvage @good.jsonl").unwrap(), 0);
    assert_eq!(folder.read("good.jsonl").len(), 1);
    folder.write("none.jsonl", "oh\n");
    assert_eq!(folder.run("validate --input-file @none.jsonl --salvage @nothing.jsonl").unwrap(), 2);
    assert!(!exists(&folder.path("nothing.jsonl")));
}

#[test]
fn burstgpt_and_agent_profiles_are_converted_by_name() {
    let folder = Folder::new();
    folder.write("burst.csv", "Timestamp,Model,Request tokens,Response tokens\n1,x,300,5\n2,x,y,5\n");
    assert_eq!(folder.run("convert burstgpt --input-file @burst.csv").unwrap(), 2);
    assert_eq!(folder.run("convert burstgpt --input-file @burst.csv --salvage").unwrap(), 0);
    assert_eq!(folder.read("burst_mooncake.jsonl")[0].hash_ids.len(), 3);
    let columns =
        "event_timestamp,example_number,prompt_tokens,completion_tokens,llm_text_input,UUID,event_type";
    let rows = "1,0,,,hello there,a,LLM_START\n2,0,5,6,,a,LLM_END\n3,0,,,hello there you,b,LLM_START\n4,0,5,6,,b,LLM_END\n";
    folder.write("flat.csv", &format!("{columns}\n{rows}"));
    assert_eq!(
        folder.run("convert nat --input-file @flat.csv --output-file @flat.jsonl --delay 20").unwrap(),
        0
    );
    let turns = folder.read("flat.jsonl");
    assert_eq!((turns.len(), turns[1].delay), (2, Some(20.0)));
    assert_eq!(Turns::of(&turns).starts(), [0]);
}

#[test]
fn wrong_flags_say_what_to_give() {
    let folder = Folder::new();
    folder.write(
        "t.jsonl",
        "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1]}\n",
    );
    for (line, told) in [
        ("synthesize --input-file @t.jsonl --speedup-ratio 0", "--speedup-ratio: 0 is not a number above 0"),
        ("stretch --input-file @t.jsonl --output-file @t.jsonl --factor 2", "it is the input, too"),
        ("stretch --input-file @t.jsonl --output-file @u.jsonl --duration-ms 5", "same timestamp"),
        ("sine --request-rate-min 9 --request-rate-max 3", "--request-rate-max: 3 is not from 9"),
        ("analyze --input-file @missing.jsonl", "cannot read the trace"),
        ("convert nat --input-file @t.jsonl --tokenizer @missing", "missing"),
    ] {
        let error = folder.run(line).unwrap_err();
        assert!(error.to_string().contains(told), "{line}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}
