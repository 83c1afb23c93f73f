//! A blocking HTTP/1.1 client: small, and it sees when each event of a stream came.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// No test waits longer for a byte.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One `data:` line of a stream.
#[derive(Debug)]
pub struct Event {
    /// When it was read.
    pub at: Instant,
    /// What follows `data: `.
    pub data: String,
}

impl Event {
    /// The text of the first choice.
    pub fn content(&self) -> Option<String> {
        let chunk: Value = serde_json::from_str(&self.data).ok()?;
        Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())
    }
}

/// A streamed chat completion that is being read. Dropping it closes the connection.
pub struct ChatStream {
    reader: BufReader<TcpStream>,
    /// The status code.
    pub status: u16,
    chunk_left: usize,
    done: bool,
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_LIMIT))?;
    Ok(stream)
}

fn send(address: &str, method: &str, path: &str, body: &[u8]) -> io::Result<BufReader<TcpStream>> {
    let mut stream = connect(address)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    Ok(BufReader::new(stream))
}

fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => return Ok((status, headers)),
        }
    }
}

/// One request on a connection of its own.
fn request(address: &str, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let mut reader = send(address, method, path, body)?;
    let (status, headers) = read_head(&mut reader)?;
    let mut body = String::new();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        let mut stream = ChatStream { reader, status, chunk_left: 0, done: false };
        while let Some(line) = stream.line()? {
            body.push_str(&line);
        }
    } else {
        reader.read_to_string(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

/// `GET path`.
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    request(address, "GET", path, b"")
}

/// `POST path`.
pub fn post(address: &str, path: &str, body: &Value) -> io::Result<Answer> {
    request(address, "POST", path, body.to_string().as_bytes())
}

/// `DELETE path`.
pub fn delete(address: &str, path: &str) -> io::Result<Answer> {
    request(address, "DELETE", path, b"")
}

/// Starts a streamed answer of `max_tokens` tokens; `more` adds fields to the body.
pub fn stream_chat(address: &str, prompt: &str, max_tokens: u32, more: &Value) -> io::Result<ChatStream> {
    let mut body = json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    let mut reader = send(address, "POST", "/v1/chat/completions", body.to_string().as_bytes())?;
    let (status, _) = read_head(&mut reader)?;
    Ok(ChatStream { reader, status, chunk_left: 0, done: false })
}

impl ChatStream {
    /// The next line of the chunked body, its end included; `None` after the last chunk.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        while !self.done {
            if self.chunk_left == 0 {
                let mut size = String::new();
                if self.reader.read_line(&mut size)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.chunk_left = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
                if self.chunk_left == 0 {
                    self.done = true;
                    break;
                }
            }
            let taken = (&mut self.reader).take(self.chunk_left as u64).read_until(b'\n', &mut line)?;
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.chunk_left -= taken;
            if self.chunk_left == 0 {
                self.reader.read_exact(&mut [0; 2])?;
            }
            if line.ends_with(b"\n") {
                return Ok(Some(String::from_utf8(line).map_err(io::Error::other)?));
            }
        }
        Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
    }

    /// The next event; `None` at the end of the body.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        while let Some(line) = self.line()? {
            if let Some(data) = line.strip_prefix("data:") {
                return Ok(Some(Event { at: Instant::now(), data: data.trim().to_owned() }));
            }
        }
        Ok(None)
    }

    /// Reads on until a chunk has text; false if the stream ended before.
    pub fn first_token(&mut self) -> io::Result<bool> {
        while let Some(event) = self.next_event()? {
            if event.content().is_some_and(|text| !text.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All events to the end of the body.
    pub fn rest(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next_event()? {
            events.push(event);
        }
        Ok(events)
    }
}
