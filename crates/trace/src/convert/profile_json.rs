//! A NeMo Agent Toolkit profile (`all_requests_profiler_traces.json`): one JSON list of any size, step by step.
//!
//! The file is `[{"request_number": n, "intermediate_steps": [{…}, …]}, …]`. Only the structure is followed here; each
//! step's bytes are handed out as soon as it ends. After a broken structure, reading goes on at the next
//! `"request_number"`.

use std::io::{self, Read};

/// Longest step: a prompt of millions of tokens fits.
const MAX_STEP_BYTES: usize = 64 << 20;
/// Deepest nesting; nobody writes deeper by hand or by program.
const MAX_DEPTH: usize = 512;
const CHUNK_BYTES: usize = 1 << 16;
/// Longest key that is told from others; longer ones are cut.
const MAX_KEY_BYTES: usize = 32;
/// Where to go on after a broken structure.
const LANDMARK: &[u8] = b"\"request_number\"";

/// What comes next in a profile.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// A step of the current request, see [`ProfileReader::step`]; it starts at this line.
    Step(u64),
    /// The current request is over.
    RequestEnd,
    /// The structure is broken at this line. The current request is over, too.
    Broken(u64, String),
    /// The file ends in the middle of something.
    Cut,
    /// The file is over.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    None,
    Number,
    Steps,
}

pub(super) struct ProfileReader<R> {
    reader: R,
    chunk: Vec<u8>,
    at: usize,
    filled: usize,
    line: u64,
    stack: Vec<u8>,
    in_string: bool,
    escaped: bool,
    /// In a request's own object: whether a string is a key, and which key the value belongs to.
    expect_key: bool,
    reading_key: bool,
    key: Key,
    name: Vec<u8>,
    number: Option<u64>,
    step: Vec<u8>,
    step_line: u64,
    in_step: bool,
    /// How much of the landmark was just read, while looking for it.
    searching: Option<usize>,
    started: bool,
    over: bool,
}

impl<R: Read> ProfileReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            chunk: vec![0; CHUNK_BYTES],
            at: 0,
            filled: 0,
            line: 1,
            stack: Vec::new(),
            in_string: false,
            escaped: false,
            expect_key: false,
            reading_key: false,
            key: Key::None,
            name: Vec::new(),
            number: None,
            step: Vec::new(),
            step_line: 1,
            in_step: false,
            searching: None,
            started: false,
            over: false,
        }
    }

    /// The bytes of the step that was announced last.
    pub(super) fn step(&self) -> &[u8] {
        &self.step
    }

    /// The current request's number, if it came by.
    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    pub(super) fn next(&mut self) -> io::Result<Piece> {
        loop {
            if self.at == self.filled {
                (self.at, self.filled) = (0, self.reader.read(&mut self.chunk)?);
                if self.filled == 0 {
                    let cut = !self.over && (!self.stack.is_empty() || !self.started);
                    self.over = true;
                    return Ok(if cut { Piece::Cut } else { Piece::End });
                }
            }
            if let Some(piece) = self.take() {
                return Ok(piece);
            }
        }
    }

    /// Takes one byte, or a run of them within a string.
    fn take(&mut self) -> Option<Piece> {
        if self.in_string {
            self.take_string();
            return self.too_long();
        }
        let byte = self.chunk[self.at];
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
        }
        if let Some(read) = self.searching {
            self.search(byte, read);
            return None;
        }
        if self.in_step {
            self.step.push(byte);
        }
        let depth = self.stack.len();
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => None,
            _ if !self.started && byte != b'[' => Some(
                self.broken("the file is not a list of requests, as a NeMo Agent Toolkit profile is".into()),
            ),
            b'"' => {
                self.in_string = true;
                self.reading_key = depth == 2 && self.expect_key;
                if self.reading_key {
                    self.name.clear();
                }
                None
            }
            b'{' | b'[' => self.open(byte),
            b'}' | b']' => self.close(byte),
            b',' => {
                if depth == 2 {
                    (self.expect_key, self.key) = (true, Key::None);
                }
                None
            }
            b':' => {
                if depth == 2 {
                    self.expect_key = false;
                }
                None
            }
            b'0'..=b'9' if depth == 2 && self.key == Key::Number => {
                let digit = u64::from(byte - b'0');
                self.number = Some(self.number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
                None
            }
            _ => self.too_long(),
        }
    }

    fn open(&mut self, byte: u8) -> Option<Piece> {
        self.started = true;
        let is_step = byte == b'{' && self.stack == *b"[{[" && self.key == Key::Steps;
        if is_step {
            self.step.clear();
            self.step.push(byte);
            (self.in_step, self.step_line) = (true, self.line);
        }
        self.stack.push(byte);
        if self.stack.len() == 2 {
            (self.expect_key, self.key, self.number) = (true, Key::None, None);
        }
        if self.stack.len() > MAX_DEPTH { Some(self.broken("it is nested too deeply".into())) } else { None }
    }

    fn close(&mut self, byte: u8) -> Option<Piece> {
        let opened = if byte == b'}' { b'{' } else { b'[' };
        if self.stack.pop() != Some(opened) {
            return Some(self.broken(format!("{} closes what is not open", byte as char)));
        }
        match self.stack.len() {
            3 if self.in_step => {
                self.in_step = false;
                Some(Piece::Step(self.step_line))
            }
            1 => Some(Piece::RequestEnd),
            _ => None,
        }
    }

    /// Takes a run of a string's bytes, and what ends it if that is in the chunk.
    fn take_string(&mut self) {
        let rest = &self.chunk[self.at..self.filled];
        let run = if self.escaped { 0 } else { memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len()) };
        // The byte after the run ends the string, or begins an escape, or is the escaped one.
        let taken = &rest[..(run + 1).min(rest.len())];
        self.line += memchr::memchr_iter(b'\n', taken).count() as u64;
        if self.in_step {
            self.step.extend_from_slice(taken);
        }
        if self.reading_key {
            let room = MAX_KEY_BYTES.saturating_sub(self.name.len());
            self.name.extend_from_slice(&rest[..run.min(room)]);
        }
        self.at += taken.len();
        match rest.get(run) {
            _ if self.escaped => self.escaped = false,
            Some(b'\\') => self.escaped = true,
            Some(_) => {
                self.in_string = false;
                if self.reading_key {
                    self.key = match self.name.as_slice() {
                        b"request_number" => Key::Number,
                        b"intermediate_steps" => Key::Steps,
                        _ => Key::None,
                    };
                }
            }
            None => {}
        }
    }

    fn too_long(&mut self) -> Option<Piece> {
        if self.in_step && self.step.len() > MAX_STEP_BYTES {
            let line = self.step_line;
            let why = format!("a step is over {MAX_STEP_BYTES} bytes: perhaps a quote is missing");
            self.broken(String::new());
            return Some(Piece::Broken(line, why));
        }
        None
    }

    /// Gives the structure up, and starts to look for the next request.
    fn broken(&mut self, why: String) -> Piece {
        self.stack.clear();
        (self.in_string, self.escaped, self.in_step) = (false, false, false);
        (self.searching, self.started) = (Some(0), true);
        Piece::Broken(self.line, why)
    }

    fn search(&mut self, byte: u8, read: usize) {
        let read = match byte {
            byte if byte == LANDMARK[read] => read + 1,
            b'"' => 1,
            _ => 0,
        };
        self.searching = Some(read);
        if read == LANDMARK.len() {
            self.searching = None;
            self.stack.extend_from_slice(b"[{");
            (self.expect_key, self.key, self.number) = (false, Key::Number, None);
        }
    }
}
