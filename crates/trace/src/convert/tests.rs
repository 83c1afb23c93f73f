use std::io::{BufReader, Read};

use serde_json::{Value, json};

use super::*;
use crate::{mooncake::TraceRequest, validate::validate};

const BURST: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
    5,ChatGPT,472,18,490,Conversation log\n\
    45,GPT-4,1087,230,1317,Conversation log\n\
    45,ChatGPT,417,276,693,API log\n\
    50,ChatGPT,417,0,417,API log\n";

fn options() -> BurstGpt {
    BurstGpt {
        model: None,
        log_type: None,
        num_prompt: None,
        speed_ratio: 1.0,
        block_size: 128,
        num_hash_blocks: 10_000,
        seed: 1,
    }
}

fn burst(text: &str, options: &BurstGpt) -> (Conversion, Vec<TraceRequest>) {
    let mut out = Vec::new();
    let done = convert_burstgpt(text.as_bytes(), options, &mut out).unwrap();
    (done, requests(&out))
}

fn requests(lines: &[u8]) -> Vec<TraceRequest> {
    lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| TraceRequest::parse(l).unwrap()).collect()
}

#[test]
fn burstgpt_rows_become_requests() {
    let (done, made) = burst(BURST, &options());
    assert_eq!((done.requests, done.left_out["no tokens (a failed request)"]), (3, 1));
    assert_eq!(made.iter().map(|r| r.timestamp.unwrap()).collect::<Vec<_>>(), [0.0, 40_000.0, 40_000.0]);
    assert_eq!(made.iter().map(|r| r.hash_ids.len()).collect::<Vec<_>>(), [4, 9, 4]);
    let (_, only) = burst(BURST, &BurstGpt { model: Some("GPT-4".into()), speed_ratio: 4.0, ..options() });
    assert_eq!((only.len(), only[0].output_length, only[0].timestamp), (1, 230, Some(0.0)));
    // A row's blocks depend on the seed and the row, not on what was taken before.
    assert_eq!(only[0].hash_ids, made[1].hash_ids);
    let (_, api) =
        burst(BURST, &BurstGpt { log_type: Some("API log".into()), num_prompt: Some(1), ..options() });
    assert_eq!(api.len(), 1);
}

#[test]
fn bad_burstgpt_rows_are_named_and_cut_ones_salvaged() {
    let bad = "60,ChatGPT,many,3,3,API log\n61,ChatGPT,3\n44,ChatGPT,5,5,10,API log\n62,ChatGPT,5,5,10,API log\n63,Chat";
    let (done, made) = burst(&format!("{BURST}{bad}"), &options());
    let named: Vec<u64> = done.faults.named.iter().map(|fault| fault.line).collect();
    assert_eq!((named, done.truncated, made.len()), (vec![6, 7, 8], true, 4));
    let error = convert_burstgpt("a,b\n1,2\n".as_bytes(), &options(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("Timestamp"), "{error}");
}

fn start(uuid: &str, time: f64, messages: &[&str]) -> Value {
    let inputs: Vec<Value> = messages.iter().map(|text| json!({"type": "human", "content": text})).collect();
    json!({"parent_id": "root", "payload": {"event_type": "LLM_START", "event_timestamp": time, "UUID": uuid,
        "name": "llama \"quoted\" \\", "metadata": {"chat_inputs": inputs}, "usage_info": null}})
}

fn end(uuid: &str, time: f64, prompt: u32, completion: u32) -> Value {
    json!({"payload": {"event_type": "LLM_END", "event_timestamp": time, "UUID": uuid,
        "usage_info": {"token_usage": {"prompt_tokens": prompt, "completion_tokens": completion}}}})
}

fn run(number: u32, began: f64) -> Value {
    let (system, question) = ("s".repeat(64), format!("question {number}"));
    let later = format!("{question} answer");
    json!({"request_number": number, "intermediate_steps": [
        {"payload": {"event_type": "WORKFLOW_START", "event_timestamp": began, "UUID": "w"}},
        start("b", began + 2.0, &[&system, &later]),
        start("a", began + 1.0, &[&system, &question]),
        end("a", began + 3.0, 20, 7),
        end("b", began + 4.0, 22, 9),
        end("b", began + 5.0, 22, 9),
        start("open", began + 6.0, &["x"]),
    ], "extra": {"request_number": [1, {"intermediate_steps": [{}]}]}})
}

const NAT: Nat = Nat { num_requests: None, skip_requests: 0, delay: 500.0 };

fn nat(text: &[u8], options: &Nat) -> (Conversion, Vec<TraceRequest>) {
    let blocks = PromptBlocks::new(4, None);
    let mut results = [1, 7, 1 << 16].map(|cut| {
        let mut out = Vec::new();
        let input = Cut { text, at: 0, cut };
        (convert_nat(input, options, &blocks, &mut out).unwrap(), requests(&out))
    });
    // However the file comes in, the result is the same.
    assert_eq!(results[0], results[2]);
    assert_eq!(results[1], results[2]);
    std::mem::take(&mut results[2])
}

struct Cut<'a> {
    text: &'a [u8],
    at: usize,
    cut: usize,
}

impl Read for Cut<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.cut.min(buffer.len()).min(self.text.len() - self.at);
        buffer[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[test]
fn an_agents_calls_become_the_turns_of_a_session() {
    let profile = serde_json::to_string_pretty(&json!([run(0, 100.0), run(1, 160.0)])).unwrap();
    let (done, made) = nat(profile.as_bytes(), &NAT);
    assert!(done.faults.is_empty() && !done.truncated, "{}", done.faults);
    assert_eq!((done.requests, done.sessions), (4, 2));
    assert_eq!((done.left_out["an end without a start"], done.left_out["a start without an end"]), (2, 2));
    let sessions: Vec<&str> = made.iter().map(|r| r.session_id.as_deref().unwrap()).collect();
    assert_eq!(sessions, ["conv_0", "conv_0", "conv_1", "conv_1"]);
    let times: Vec<_> = made.iter().map(|r| (r.timestamp, r.delay)).collect();
    assert_eq!(times, [(Some(0.0), None), (None, Some(500.0)), (Some(60_000.0), None), (None, Some(500.0))]);
    // "a" ended first. 64 + 1 + 10 bytes are 19 of the tokens that stand in for a tokenizer's.
    assert_eq!((made[0].output_length, made[0].input_length, made[0].hash_ids.len()), (7, 19, 5));
    assert_eq!(made[0].hash_ids[..4], made[2].hash_ids[..4]);
    assert_ne!(made[0].hash_ids[4], made[2].hash_ids[4]);
    let (_, some) = nat(profile.as_bytes(), &Nat { num_requests: Some(1), skip_requests: 1, ..NAT });
    assert_eq!(
        some.iter().map(|r| r.session_id.as_deref().unwrap()).collect::<Vec<_>>(),
        ["conv_1", "conv_1"]
    );
}

#[test]
fn a_converted_profile_is_a_valid_trace() {
    let profile = json!([run(0, 100.0), run(1, 160.0), run(2, 90.0)]).to_string();
    let mut out = Vec::new();
    let done = convert_nat(profile.as_bytes(), &NAT, &PromptBlocks::new(4, None), &mut out).unwrap();
    assert_eq!(done.moved, 1);
    let found = validate(out.as_slice(), 4, None).unwrap();
    assert!(found.faults.is_empty(), "{}", found.faults);
    assert_eq!((found.requests, found.sessions), (6, 3));
}

#[test]
fn a_cut_off_profile_gives_what_was_whole() {
    let profile = json!([run(0, 100.0), run(1, 160.0)]).to_string();
    let whole_first = profile.find("\"request_number\":1").unwrap();
    for cut in [1, whole_first - 5, whole_first + 30, profile.len() - 1] {
        let (done, made) = nat(&profile.as_bytes()[..cut], &NAT);
        assert!(done.truncated, "cut at {cut}");
        assert_eq!(made.len() >= 2, cut >= whole_first - 5, "cut at {cut}");
    }
}

#[test]
fn a_broken_run_is_named_and_the_next_one_read() {
    let good = run(1, 160.0).to_string();
    let wrong_type = run(0, 100.0).to_string().replacen("\"UUID\":\"a\"", "\"UUID\":5", 1);
    let broken = format!("[\n{wrong_type},\n{{\"request_number\":7,\"intermediate_steps\":[{{}}}},\n{good}]");
    let (done, made) = nat(broken.as_bytes(), &NAT);
    let named: Vec<u64> = done.faults.named.iter().map(|fault| fault.line).collect();
    assert_eq!(named, [2, 3], "{}", done.faults);
    assert_eq!(made.last().unwrap().session_id.as_deref(), Some("conv_1"));
    let error =
        convert_nat("{\"a\": 1}".as_bytes(), &NAT, &PromptBlocks::new(4, None), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("line 1: the file is not a list"), "{error}");
}

#[test]
fn the_flat_form_gives_the_same() {
    let text = "x".repeat(70);
    let csv = format!(
        "event_timestamp,example_number,prompt_tokens,completion_tokens,total_tokens,llm_text_input,llm_name,UUID,event_type\n\
         100.5,0,,,,\"{text}, \"\"hi\"\"\nthere\",m,u1,LLM_START\n\
         101.5,0,20,7,27,,m,u1,LLM_END\n\
         101.6,0,,,,,,t,TOOL_START\n\
         160.0,1,0,0,0,\"{text}, \"\"hi\"\"\nyou\",m,u2,LLM_START\n\
         161.0,1,20.0,9.0,29,,m,u2,LLM_END\n\
         162.0,1,oh,9.0,29,,m,u3,LLM_END\n\
         162.0,1,5"
    );
    let (mut out, blocks) = (Vec::new(), PromptBlocks::new(4, None));
    let done = convert_nat_csv(BufReader::new(csv.as_bytes()), &NAT, &blocks, &mut out).unwrap();
    let made = requests(&out);
    assert_eq!((done.requests, done.sessions, done.truncated), (2, 2, true));
    assert_eq!(done.faults.named[0].line, 9);
    assert_eq!(made[1].timestamp, Some(59_500.0));
    assert_eq!((made[0].hash_ids[..4] == made[1].hash_ids[..4], made[0].output_length), (true, 7));
}
