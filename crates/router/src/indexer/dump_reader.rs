//! Reads a peer's dump piece by piece, as it comes: events are handed on as soon as each is complete.
//!
//! The form is `{"model:group": {"block_size": n, "events": [event, …]}, …}`. Only its frame is walked here, byte by byte;
//! each event is one JSON value of its own.

use dynamo_engine_api::RouterEvent;

use super::registry::ModelKey;

/// One event's text at most: other indexers write all blocks of a rank in one.
const MAX_EVENT: usize = 512 << 20;
/// A name's or a number's text at most.
const MAX_FIELD: usize = 4096;

/// Why bytes are not a dump.
#[derive(Debug, thiserror::Error)]
pub(super) enum DumpError {
    #[error("the dump is not of the form of a dump: {0}")]
    Form(&'static str),
    #[error("an event of the dump does not read: {0}")]
    Event(#[from] serde_json::Error),
    #[error("the dump ended in the middle")]
    Unfinished,
}

/// What a dump consists of.
#[derive(Debug, PartialEq)]
pub(super) enum DumpItem {
    /// The events that follow are of this model.
    Model { key: ModelKey, block_size: u32 },
    /// An event.
    Event(RouterEvent),
}

/// The state between two pieces.
#[derive(Default)]
pub(super) struct DumpReader {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The text of the current event, or of the current name or number, where it began in an earlier piece.
    carried: Vec<u8>,
    /// The last string at depth 1 and 2.
    model: Option<String>,
    field: Option<String>,
    block_size: Option<u32>,
    announced: bool,
    finished: bool,
}

/// Depths: in the outer object, in a model's object, in its list of events, in an event.
const OUTER: usize = 1;
const MODEL: usize = 2;
const EVENTS: usize = 3;

impl DumpReader {
    /// Takes the next piece, and calls `each` for what became complete.
    pub(super) fn feed(&mut self, piece: &[u8], each: &mut impl FnMut(DumpItem)) -> Result<(), DumpError> {
        // Where in this piece the text that is being gathered begins.
        let mut from = 0;
        let mut at = 0;
        while at < piece.len() {
            let byte = piece[at];
            at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth < EVENTS {
                            self.gather(&piece[from..at - 1], MAX_FIELD)?;
                            self.string()?;
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    if self.depth < EVENTS {
                        from = at;
                        self.carried.clear();
                    }
                }
                b'{' | b'[' => {
                    if self.depth == EVENTS {
                        from = at - 1;
                        self.carried.clear();
                        self.announce(each)?;
                    }
                    self.open(byte)?;
                }
                b'}' | b']' => {
                    if self.depth == MODEL {
                        self.gather(&piece[from..at - 1], MAX_FIELD)?;
                        self.number()?;
                        self.announce(each)?;
                    }
                    self.depth = self.depth.checked_sub(1).ok_or(DumpError::Form("too many brackets"))?;
                    match self.depth {
                        EVENTS => {
                            self.gather(&piece[from..at], MAX_EVENT)?;
                            each(DumpItem::Event(serde_json::from_slice(&self.carried)?));
                            self.carried.clear();
                        }
                        OUTER => (self.model, self.block_size, self.announced) = (None, None, false),
                        0 => self.finished = true,
                        _ => {}
                    }
                    if self.depth <= EVENTS {
                        from = at;
                    }
                }
                b',' if self.depth == MODEL => {
                    self.gather(&piece[from..at - 1], MAX_FIELD)?;
                    self.number()?;
                    from = at;
                }
                b':' if self.depth == MODEL => {
                    self.carried.clear();
                    from = at;
                }
                _ => {}
            }
        }
        let gathers = self.depth > EVENTS || (self.depth < EVENTS && self.in_string) || self.depth == MODEL;
        if gathers {
            let most = if self.depth > EVENTS { MAX_EVENT } else { MAX_FIELD };
            self.gather(&piece[from..], most)?;
        }
        Ok(())
    }

    /// All pieces were fed.
    pub(super) fn finish(self) -> Result<(), DumpError> {
        if self.finished { Ok(()) } else { Err(DumpError::Unfinished) }
    }

    fn gather(&mut self, text: &[u8], most: usize) -> Result<(), DumpError> {
        if self.carried.len() + text.len() > most {
            return Err(DumpError::Form("too long"));
        }
        self.carried.extend_from_slice(text);
        Ok(())
    }

    fn open(&mut self, bracket: u8) -> Result<(), DumpError> {
        let expected = match self.depth {
            0 if self.finished => return Err(DumpError::Form("something follows")),
            0 | OUTER => bracket == b'{',
            MODEL => bracket == b'[' && self.field.as_deref() == Some("events"),
            EVENTS => bracket == b'{',
            _ => true,
        };
        self.depth += 1;
        if expected { Ok(()) } else { Err(DumpError::Form("another bracket was expected")) }
    }

    /// A string at the depth of names ended; it is in `carried`, without its quotes.
    fn string(&mut self) -> Result<(), DumpError> {
        let mut quoted = vec![b'"'];
        quoted.append(&mut self.carried);
        quoted.push(b'"');
        let text = serde_json::from_slice(&quoted)?;
        match self.depth {
            OUTER => self.model = Some(text),
            MODEL => self.field = Some(text),
            _ => return Err(DumpError::Form("a string where an object was expected")),
        }
        Ok(())
    }

    /// A value in a model's object ended; if it is the block size, it is in `carried`.
    fn number(&mut self) -> Result<(), DumpError> {
        if self.field.as_deref() == Some("block_size") {
            let size = std::str::from_utf8(&self.carried).ok().and_then(|text| text.trim().parse().ok());
            self.block_size = Some(size.ok_or(DumpError::Form("block_size is not a number"))?);
        }
        self.field = None;
        self.carried.clear();
        Ok(())
    }

    /// Says whose events follow, once.
    fn announce(&mut self, each: &mut impl FnMut(DumpItem)) -> Result<(), DumpError> {
        if std::mem::replace(&mut self.announced, true) {
            return Ok(());
        }
        let block_size = self.block_size.ok_or(DumpError::Form("block_size must come before events"))?;
        let name = self.model.as_deref().unwrap_or_default();
        // A group has no colon, and a model may.
        let (model_name, group) = name.rsplit_once(':').ok_or(DumpError::Form("a name without a group"))?;
        let key = ModelKey { model_name: model_name.to_owned(), routing_group: group.to_owned() };
        each(DumpItem::Model { key, block_size });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBSERVED: &str = r#"{"m:default":{"block_size":4,"events":[{"worker_id":7,"storage_tier":"device","residency_domain":"worker","event":{"event_id":0,"data":{"stored":{"parent_hash":null,"start_position":null,"blocks":[{"block_hash":100,"tokens_hash":14643705804678351452,"mm_extra_info":null},{"block_hash":101,"tokens_hash":16777012769546811212,"mm_extra_info":null}]}},"dp_rank":0}},{"worker_id":8,"event":{"event_id":1,"data":"cleared"}}]}, "o\"{[:x:g": {"block_size": 16 ,"events":[]},"e:f":{"events":[],"block_size":8}}"#;

    fn read(text: &str, piece: usize) -> Result<Vec<DumpItem>, DumpError> {
        let mut reader = DumpReader::default();
        let mut items = Vec::new();
        for piece in text.as_bytes().chunks(piece) {
            reader.feed(piece, &mut |item| items.push(item))?;
        }
        reader.finish()?;
        Ok(items)
    }

    #[test]
    fn any_cutting_of_a_dump_reads_the_same() {
        let whole = read(OBSERVED, usize::MAX).unwrap();
        assert_eq!(whole.len(), 5);
        let model = |name: &str, group: &str, block_size| DumpItem::Model {
            key: ModelKey { model_name: name.into(), routing_group: group.into() },
            block_size,
        };
        assert_eq!(whole[0], model("m", "default", 4));
        assert_eq!(whole[3], model("o\"{[:x", "g", 16));
        assert_eq!(whole[4], model("e", "f", 8));
        let DumpItem::Event(event) = &whole[1] else { panic!("{whole:?}") };
        assert_eq!((event.worker_id, event.event.event_id), (7, 0));
        for size in 1..OBSERVED.len() {
            assert_eq!(read(OBSERVED, size).unwrap(), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn nothing_is_a_dump_too() {
        assert_eq!(read("{}\n", 1).unwrap(), []);
    }

    #[test]
    fn what_is_no_dump_or_not_all_of_it_is_an_error() {
        for text in [
            "",
            "{",
            "[]",
            "{\"m:g\":{\"block_size\":4,\"events\":[",
            "{\"m:g\":[]}",
            "{}{}",
            "{}}",
            "{\"m\":{\"block_size\":4}}",
        ] {
            assert!(read(text, 3).is_err(), "{text}");
        }
        for end in 1..OBSERVED.len() {
            assert!(read(&OBSERVED[..end], 7).is_err(), "cut at {end}");
        }
    }
}
