use super::*;

/// Feeds in pieces of `step` bytes; returns the body or the error.
fn parse(response: &[u8], step: usize) -> Result<(ResponseParser, Vec<u8>), HttpError> {
    let (mut parser, mut out) = (ResponseParser::default(), Vec::new());
    for piece in response.chunks(step) {
        parser.feed(piece, |_, bytes| out.extend_from_slice(bytes))?;
    }
    Ok((parser, out))
}

const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
    5\r\nhello\r\nA;ext=1\r\n, chunked!\r\n0\r\nx-trailer: 1\r\n\r\n";

#[test]
fn any_cutting_of_a_chunked_body_reads_the_same() {
    for step in 1..=CHUNKED.len() {
        let (parser, body) = parse(CHUNKED, step).unwrap();
        assert_eq!(body, b"hello, chunked!", "step {step}");
        assert!(parser.is_done() && parser.keeps_alive());
        assert_eq!(parser.status(), 200);
    }
}

#[test]
fn a_body_of_known_length_ends_by_itself() {
    let response = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\ngone";
    for step in 1..=response.len() {
        let (parser, body) = parse(response, step).unwrap();
        assert_eq!((parser.status(), body.as_slice()), (404, b"gone".as_slice()));
        assert!(parser.is_done() && !parser.keeps_alive());
    }
}

#[test]
fn a_body_without_length_ends_with_the_connection() {
    let (mut parser, body) = parse(b"HTTP/1.1 200 OK\r\n\r\nabc", 4).unwrap();
    assert_eq!(body, b"abc");
    assert!(!parser.is_done());
    assert!(parser.end_of_input() && !parser.keeps_alive());
}

#[test]
fn a_cut_chunked_body_is_not_complete() {
    let (mut parser, _) = parse(&CHUNKED[..CHUNKED.len() - 2], 7).unwrap();
    assert!(!parser.end_of_input());
}

#[test]
fn an_interim_response_is_skipped() {
    let response = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let (parser, body) = parse(response, 5).unwrap();
    assert_eq!((parser.status(), body.as_slice()), (200, b"ok".as_slice()));
}

#[test]
fn a_parser_is_used_again_after_a_reset() {
    let (mut parser, _) = parse(CHUNKED, 9).unwrap();
    parser.reset();
    assert!(!parser.has_started());
    let mut out = Vec::new();
    parser.feed(CHUNKED, |_, bytes| out.extend_from_slice(bytes)).unwrap();
    assert_eq!(out, b"hello, chunked!");
}

#[test]
fn nonsense_is_an_error() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let with = |tail: &[u8]| [head.as_slice(), tail].concat();
    assert!(matches!(parse(b"SSH-2.0-x\r\n", 64), Err(HttpError::NotHttp(_))));
    assert_eq!(parse(&with(b"zz\r\n"), 3).err(), Some(HttpError::BadChunk));
    assert_eq!(parse(&with(b"2\r\nabX"), 64).err(), Some(HttpError::BadChunk));
    assert_eq!(parse(&with(b"ffffffffffffffffff\r\n"), 64).err(), Some(HttpError::BadChunk));
    assert_eq!(parse(&with(b"0\r\n\r\nmore"), 64).err(), Some(HttpError::Surplus(4)));
    let long = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 70_000]].concat();
    assert_eq!(parse(&long, 4096).err(), Some(HttpError::LongHead));
    assert_eq!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", 64).err(), Some(HttpError::BadLength));
}
