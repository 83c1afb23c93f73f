//! A small server that answers like an OpenAI-compatible one, well or badly.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How the server answers one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    /// As asked, one event a write.
    Good,
    /// As asked, the whole answer in one write.
    AtOnce,
    /// As asked, in writes of so many bytes, whatever they cut.
    Cut(usize),
    /// A status with a body.
    Status(u16),
    /// The connection ends after some events.
    Dropped,
    /// Ends well, without `[DONE]`.
    NoDone,
    /// An error event.
    ErrorEvent,
    /// No usage at the end.
    NoUsage,
    /// The usage is no usage.
    OddUsage,
    /// Half the tokens.
    Short,
    /// Good, but the connection is closed afterwards without saying so.
    ThenClosed,
    /// Something that is not HTTP.
    Garbage,
    /// The first event, then silence.
    Stuck,
    /// Good, after a pause.
    Slow(Duration),
}

/// What arrived: the bodies of the requests, in order.
pub(crate) type Seen = Arc<Mutex<Vec<serde_json::Value>>>;

/// Starts a server whose n-th request (from 0, in order of arrival) is answered as `script` says.
pub(crate) fn serve(script: impl Fn(usize) -> Answer + Send + Sync + 'static) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, script) = (Seen::default(), Arc::new(script));
    let all = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (seen, script) = (all.clone(), script.clone());
            thread::spawn(move || while connection(&stream, &seen, &*script).is_some() {});
        }
    });
    (address, seen)
}

fn connection(mut stream: &TcpStream, seen: &Seen, script: &dyn Fn(usize) -> Answer) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    if first.starts_with("GET /v1/models ") {
        let body = r#"{"object":"list","data":[{"id":"first"},{"id":"second"}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        return stream.write_all((head + body).as_bytes()).ok();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let asked = body["max_tokens"].as_u64()?;
    let index = {
        let mut seen = seen.lock().unwrap();
        seen.push(body);
        seen.len() - 1
    };
    answer(stream, script(index), asked, index)
}

fn answer(mut stream: &TcpStream, answer: Answer, asked: u64, index: usize) -> Option<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let event = |json: &str| chunk(&format!("data: {json}\n\n"));
    let role = event(
        r#"{"id":"x","choices":[{"delta":{"role":"assistant","content":""}}],"nvext":{"worker_id":7}}"#,
    );
    let token = event(r#"{"id":"x","choices":[{"delta":{"content":"wörd"}}]}"#);
    let usage = |tokens: u64| {
        let details = r#""prompt_tokens_details":{"cached_tokens":25}"#;
        event(&format!(
            r#"{{"id":"x","choices":[],"usage":{{"prompt_tokens":100,"completion_tokens":{tokens},{details}}}}}"#
        ))
    };
    let (done, end) = (chunk("data: [DONE]\n\n"), "0\r\n\r\n".to_owned());
    let tokens = if answer == Answer::Short { asked / 2 } else { asked };
    let mut pieces = vec![head.to_owned(), role];
    pieces.extend((0..tokens).map(|_| token.clone()));
    match answer {
        Answer::Status(code) => {
            let body = format!(r#"{{"error":"refused {index}"}}"#);
            pieces = vec![format!("HTTP/1.1 {code} No\r\ncontent-length: {}\r\n\r\n{body}", body.len())];
        }
        Answer::Dropped | Answer::Stuck => {}
        Answer::Garbage => pieces = vec!["SSH-2.0-OpenSSH\r\n".into()],
        Answer::NoDone => pieces.extend([usage(tokens), end]),
        Answer::ErrorEvent => pieces.extend([event(r#"{"error":{"message":"worker lost"}}"#), done, end]),
        Answer::NoUsage => pieces.extend([done, end]),
        Answer::OddUsage => pieces.extend([event(r#"{"choices":[],"usage":{"tokens":"many"}}"#), done, end]),
        _ => pieces.extend([usage(tokens), done, end]),
    }
    if let Answer::Slow(pause) = answer {
        thread::sleep(pause);
    }
    match answer {
        Answer::AtOnce => stream.write_all(pieces.concat().as_bytes()).ok()?,
        Answer::Cut(size) => {
            for piece in pieces.concat().as_bytes().chunks(size) {
                stream.write_all(piece).ok()?;
            }
        }
        _ => {
            for piece in pieces {
                stream.write_all(piece.as_bytes()).ok()?;
            }
        }
    }
    match answer {
        Answer::Dropped | Answer::Garbage | Answer::ThenClosed => {
            stream.shutdown(std::net::Shutdown::Both).ok();
            None
        }
        // Until the client goes away.
        Answer::Stuck => stream.read(&mut [0; 1]).ok().filter(|n| *n > 0).map(|_| ()),
        _ => Some(()),
    }
}
