//! Conversions take the same memory whatever the size of their input. One test, so that nothing else runs in its process.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{self, BufReader, Read};

use dynamo_trace::{BurstGpt, Nat, PromptBlocks, convert_burstgpt, convert_nat};

/// Bytes of each input. By hand, `DYN_TEST_STREAM_MB=500` makes it large.
fn input_bytes() -> usize {
    let megabytes = std::env::var("DYN_TEST_STREAM_MB").ok().and_then(|text| text.parse().ok());
    megabytes.unwrap_or(24usize) << 20
}

/// What may come on top while a stream passes: buffers, the allocator's own, and pages of code first touched.
const ROOM_BYTES: usize = 6 << 20;

/// An input that is made as it is read.
struct Stream<F> {
    make: F,
    number: u64,
    left: usize,
    pending: Vec<u8>,
    at: usize,
}

impl<F: FnMut(u64) -> String> Stream<F> {
    fn new(left: usize, make: F) -> Self {
        Self { make, number: 0, left, pending: Vec::new(), at: 0 }
    }
}

impl<F: FnMut(u64) -> String> Read for Stream<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.pending.len() {
            if self.left == 0 {
                return Ok(0);
            }
            (self.pending, self.at) = ((self.make)(self.number).into_bytes(), 0);
            self.left = self.left.saturating_sub(self.pending.len());
            self.number += 1;
        }
        let count = buffer.len().min(self.pending.len() - self.at);
        buffer[..count].copy_from_slice(&self.pending[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// The most memory that this process ever had.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn burstgpt(bytes: usize) -> u64 {
    let rows = Stream::new(bytes, |number| match number {
        0 => "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n".into(),
        row => format!("{row},ChatGPT,{},5,10,\"API log\"\n", 1 + row % 4000),
    });
    let options = BurstGpt {
        model: None,
        log_type: None,
        num_prompt: None,
        speed_ratio: 1.0,
        block_size: 128,
        num_hash_blocks: 10_000,
        seed: 1,
    };
    let done = convert_burstgpt(BufReader::new(rows), &options, &mut io::sink()).unwrap();
    assert!(done.faults.is_empty(), "{}", done.faults);
    done.requests
}

fn profile(bytes: usize) -> u64 {
    let runs = Stream::new(bytes, |number| {
        let mut run = if number == 0 { "[".to_owned() } else { ",\n".to_owned() };
        run.push_str(&format!("{{\"request_number\": {number}, \"intermediate_steps\": ["));
        for call in 0..8 {
            let prompt = format!("run {number}, call {call}, ").repeat(40 * (call + 1));
            run.push_str(&format!(
                "{}{{\"payload\": {{\"event_type\": \"LLM_START\", \"event_timestamp\": {number}.{call}, \"UUID\": \"{call}\", \
                 \"metadata\": {{\"chat_inputs\": [{{\"content\": \"{prompt}\"}}]}}}}}},\
                 {{\"payload\": {{\"event_type\": \"LLM_END\", \"event_timestamp\": {number}.{call}5, \"UUID\": \"{call}\", \
                 \"usage_info\": {{\"token_usage\": {{\"prompt_tokens\": 9, \"completion_tokens\": 4}}}}}}}}",
                if call == 0 { "" } else { "," }
            ));
        }
        run.push_str("]}");
        run
    });
    let options = Nat { num_requests: None, skip_requests: 0, delay: 500.0 };
    let done = convert_nat(runs, &options, &PromptBlocks::new(64, None), &mut io::sink()).unwrap();
    assert!(done.faults.is_empty(), "{}", done.faults);
    done.requests
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let bytes = input_bytes();
    // The first megabyte fills buffers and touches the code.
    let (few_rows, few_calls) = (burstgpt(1 << 20), profile(1 << 20));
    let before = peak_bytes();
    let (rows, calls) = (burstgpt(bytes), profile(bytes));
    assert!(rows > few_rows * 15 && calls > few_calls * 15, "{rows} rows and {calls} calls");
    let grown = peak_bytes() - before;
    assert!(grown < ROOM_BYTES, "{grown} bytes more for {bytes} bytes of each input");
}
