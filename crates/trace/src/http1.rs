//! The half of HTTP/1.1 that a client reads: a response in any cutting, without I/O.
//!
//! Fed with what a read brought, the parser hands the body's bytes on as slices of the very buffer it was given: nothing
//! is copied but the head.

/// Largest response head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Why a response could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not the start of an HTTP/1.x response.
    #[error("the answer does not start like HTTP/1.1: {0:?}")]
    NotHttp(String),
    /// The head is too large.
    #[error("the response head is over {MAX_HEAD_BYTES} bytes")]
    LongHead,
    /// A chunk's size line is malformed.
    #[error("malformed chunk in the response")]
    BadChunk,
    /// The body's length is malformed.
    #[error("malformed content-length in the response")]
    BadLength,
    /// Bytes after the end.
    #[error("{0} bytes follow the end of the response")]
    Surplus(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes left of a body of known length.
    Length(u64),
    /// Until the connection ends.
    UntilClose,
    /// In the digits of a chunk's size; the flag says whether one was seen.
    ChunkSize(u64, bool),
    /// After the digits, until the line ends.
    ChunkLine(u64),
    ChunkData(u64),
    /// The line end after a chunk's data.
    ChunkEnd,
    /// A trailer line; the flag says whether it has a character.
    Trailer(bool),
    Done,
}

/// Parses one response.
#[derive(Debug)]
pub struct ResponseParser {
    state: State,
    head: Vec<u8>,
    status: u16,
    close: bool,
    any: bool,
}

impl Default for ResponseParser {
    fn default() -> Self {
        Self { state: State::Head, head: Vec::new(), status: 0, close: false, any: false }
    }
}

impl ResponseParser {
    /// Gets ready for the next response on the same connection; buffers are kept.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.head.clear();
        (self.status, self.close, self.any) = (0, false, false);
    }

    /// The status code, 0 until the head is complete.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the whole response has been read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether any byte of a response came.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.any
    }

    /// Whether another request may follow on this connection.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        self.state == State::Done && !self.close
    }

    /// Takes the end of the connection; true if that is a proper end of this response.
    pub fn end_of_input(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.state == State::Done
    }

    /// Takes what was read and gives the body's bytes in it to `body`, in order.
    pub fn feed(&mut self, mut data: &[u8], mut body: impl FnMut(u16, &[u8])) -> Result<(), HttpError> {
        self.any |= !data.is_empty();
        while !data.is_empty() {
            match self.state {
                State::ChunkData(left) => {
                    let take = left.min(data.len() as u64) as usize;
                    body(self.status, &data[..take]);
                    data = &data[take..];
                    let left = left - take as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                }
                State::ChunkEnd => {
                    match data[0] {
                        b'\r' => {}
                        b'\n' => self.state = State::ChunkSize(0, false),
                        _ => return Err(HttpError::BadChunk),
                    }
                    data = &data[1..];
                }
                State::ChunkSize(size, seen) => {
                    let Some(digit) = (data[0] as char).to_digit(16) else {
                        if !seen {
                            return Err(HttpError::BadChunk);
                        }
                        self.state = State::ChunkLine(size);
                        continue;
                    };
                    if size >> 60 != 0 {
                        return Err(HttpError::BadChunk);
                    }
                    self.state = State::ChunkSize(size << 4 | u64::from(digit), true);
                    data = &data[1..];
                }
                State::ChunkLine(size) => {
                    // An extension is skipped, anything else is no size line.
                    match data[0] {
                        b'\n' if size == 0 => self.state = State::Trailer(false),
                        b'\n' => self.state = State::ChunkData(size),
                        b'\r' | b';' | b' ' | b'\t' => {}
                        byte if byte.is_ascii_control() => return Err(HttpError::BadChunk),
                        _ => {}
                    }
                    data = &data[1..];
                }
                State::Trailer(filled) => {
                    match data[0] {
                        b'\n' if !filled => self.state = State::Done,
                        b'\n' => self.state = State::Trailer(false),
                        b'\r' => {}
                        _ => self.state = State::Trailer(true),
                    }
                    data = &data[1..];
                }
                State::Length(left) => {
                    let take = left.min(data.len() as u64) as usize;
                    body(self.status, &data[..take]);
                    data = &data[take..];
                    let left = left - take as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                }
                State::UntilClose => {
                    body(self.status, data);
                    data = &[];
                }
                State::Head => data = self.feed_head(data)?,
                State::Done => return Err(HttpError::Surplus(data.len())),
            }
        }
        Ok(())
    }

    /// Collects the head, and returns what follows it.
    fn feed_head<'a>(&mut self, data: &'a [u8]) -> Result<&'a [u8], HttpError> {
        // The blank line may be cut anywhere: look again at the last three bytes that came before.
        let old = self.head.len();
        self.head.extend_from_slice(data);
        let from = old.saturating_sub(3);
        let Some(at) = memchr::memmem::find(&self.head[from..], b"\r\n\r\n") else {
            let start = &self.head[..self.head.len().min(7)];
            if !b"HTTP/1.".starts_with(start) {
                return Err(self.not_http());
            }
            return if self.head.len() > MAX_HEAD_BYTES { Err(HttpError::LongHead) } else { Ok(&[]) };
        };
        let end = from + at + 4;
        let rest = &data[end - old..];
        self.head.truncate(end);
        self.read_head()?;
        Ok(rest)
    }

    fn not_http(&self) -> HttpError {
        let start = &self.head[..self.head.len().min(40)];
        HttpError::NotHttp(String::from_utf8_lossy(start).into_owned())
    }

    fn read_head(&mut self) -> Result<(), HttpError> {
        let head = std::mem::take(&mut self.head);
        let mut lines = head.split(|b| *b == b'\n').map(|line| line.trim_ascii());
        let status = lines.next().filter(|line| line.starts_with(b"HTTP/1.")).and_then(|line| {
            let code = line.get(9..12)?;
            std::str::from_utf8(code).ok()?.parse::<u16>().ok()
        });
        let Some(status) = status else {
            self.head = head;
            return Err(self.not_http());
        };
        let (mut length, mut chunked) = (None, false);
        self.close = head.starts_with(b"HTTP/1.0");
        for line in lines {
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                let value = std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok());
                length = Some(value.ok_or(HttpError::BadLength)?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with(b"chunked");
            } else if name.eq_ignore_ascii_case(b"connection") {
                self.close = value.eq_ignore_ascii_case(b"close");
            }
        }
        self.head = head;
        self.head.clear();
        if (100..200).contains(&status) {
            return Ok(());
        }
        self.status = status;
        self.state = match (chunked, length) {
            _ if status == 204 || status == 304 => State::Done,
            (true, _) => State::ChunkSize(0, false),
            (false, Some(0)) => State::Done,
            (false, Some(length)) => State::Length(length),
            (false, None) => {
                self.close = true;
                State::UntilClose
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
