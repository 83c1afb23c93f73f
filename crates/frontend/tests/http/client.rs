//! A client that shows bytes as they are.

use std::{collections::HashMap, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::server::PATIENCE;

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// The data of all events.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.text().split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap_or(event).to_owned()).collect()
    }

    /// The streamed text.
    pub(crate) fn streamed_text(&self) -> String {
        let events = self.events().into_iter().filter(|event| event.starts_with('{'));
        let chunks = events.map(|event| serde_json::from_str::<Value>(&event).unwrap());
        chunks
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub(crate) async fn post(&mut self, body: &Value) {
        let body = serde_json::to_vec(body).unwrap();
        self.send("POST", "/v1/chat/completions", &[("content-type", "application/json")], &body).await;
    }

    /// One answer, to its end.
    pub(crate) async fn answer(&mut self) -> Answer {
        timeout(PATIENCE, self.read_answer()).await.expect("no whole answer came")
    }

    /// The head of an answer.
    pub(crate) async fn head(&mut self) -> (u16, HashMap<String, String>) {
        timeout(PATIENCE, self.read_head()).await.expect("no head came")
    }

    /// Whether the server has closed the connection (it is read until then).
    pub(crate) async fn closed(&mut self) {
        let read =
            async { while self.stream.read_buf(&mut self.buffer).await.is_ok_and(|count| count > 0) {} };
        timeout(PATIENCE, read).await.expect("the connection was not closed");
    }

    /// Reads until `text` has come.
    pub(crate) async fn until(&mut self, text: &str) {
        let read = async {
            while !self.buffer.windows(text.len()).any(|window| window == text.as_bytes()) {
                self.more().await;
            }
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{text:?} did not come"));
    }

    async fn read_answer(&mut self) -> Answer {
        let (status, headers) = self.read_head().await;
        let body = if headers.get("transfer-encoding").is_some_and(|it| it == "chunked") {
            let mut body = Vec::new();
            loop {
                let line = self.take_until(b"\r\n").await;
                let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
                let chunk = self.take(size + 2).await;
                if size == 0 {
                    break body;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            self.take(length).await
        };
        Answer { status, headers, body }
    }

    async fn read_head(&mut self) -> (u16, HashMap<String, String>) {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n").await).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        (status, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    async fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.more().await;
        }
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            self.more().await;
        }
        self.buffer.drain(..count).collect()
    }

    async fn more(&mut self) {
        let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
        assert!(count > 0, "the connection ended early after {:?}", String::from_utf8_lossy(&self.buffer));
    }
}

/// A chat request with these fields more.
pub(crate) fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, body: &Value) -> Answer {
    let mut client = Client::connect(address).await;
    client.post(body).await;
    client.answer().await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.send("GET", path, &[], b"").await;
    client.answer().await
}
