//! The first frame of each direction: version, codecs, limits.

use crate::{
    Config, ConnectionError,
    frame::{self, Reader},
};

const MAGIC: [u8; 4] = *b"DYRP";
/// The version spoken. A later release lists it as its oldest until nothing speaks it any more.
pub(crate) const VERSION: u16 = 1;
/// Codec names in a hello; more are cut, so that the frame always holds them.
const MAX_CODECS: usize = 16;
const MAX_CODEC_NAME: usize = 64;

const FIELD_CODECS: u16 = 1;
const FIELD_MAX_MESSAGE: u16 = 2;
const FIELD_STREAM_CREDIT: u16 = 3;
const FIELD_CONNECTION_CREDIT: u16 = 4;
const FIELD_MAX_STREAMS: u16 = 5;

/// What the peer allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerLimits {
    pub(crate) codec: String,
    pub(crate) max_message: u32,
    pub(crate) stream_credit: u32,
    pub(crate) connection_credit: u32,
    pub(crate) max_streams: u32,
}

pub(crate) fn encode(config: &Config, buffer: &mut Vec<u8>) {
    let start = frame::begin(buffer, frame::HELLO, 0, 0);
    buffer.extend_from_slice(&MAGIC);
    buffer.extend_from_slice(&VERSION.to_le_bytes());
    buffer.extend_from_slice(&VERSION.to_le_bytes());
    let codecs: Vec<&str> = config
        .codecs
        .iter()
        .map(String::as_str)
        .filter(|name| name.len() <= MAX_CODEC_NAME)
        .take(MAX_CODECS)
        .collect();
    field(buffer, FIELD_CODECS, codecs.join(",").as_bytes());
    field(buffer, FIELD_MAX_MESSAGE, &config.max_message.to_le_bytes());
    field(buffer, FIELD_STREAM_CREDIT, &config.stream_credit.to_le_bytes());
    field(buffer, FIELD_CONNECTION_CREDIT, &config.connection_credit.to_le_bytes());
    field(buffer, FIELD_MAX_STREAMS, &config.max_streams.to_le_bytes());
    frame::end(buffer, start);
}

fn field(buffer: &mut Vec<u8>, tag: u16, value: &[u8]) {
    buffer.extend_from_slice(&tag.to_le_bytes());
    buffer.extend_from_slice(&(value.len() as u16).to_le_bytes());
    buffer.extend_from_slice(value);
}

pub(crate) fn decode(payload: &[u8], config: &Config) -> Result<PeerLimits, ConnectionError> {
    let mut reader = Reader::new(payload, "hello");
    if reader.take(4).ok() != Some(&MAGIC) {
        return Err(ConnectionError::BadMagic);
    }
    let (min, max) = (reader.u16()?, reader.u16()?);
    if min > VERSION || max < VERSION {
        return Err(ConnectionError::Version { min, max, ours: VERSION });
    }
    let mut codecs = "";
    let (mut max_message, mut stream_credit, mut connection_credit, mut max_streams) = (0, 0, 0, 0);
    while !reader.is_empty() {
        let (tag, len) = (reader.u16()?, reader.u16()?);
        let mut value = Reader::new(reader.take(usize::from(len))?, "hello");
        match tag {
            FIELD_CODECS => codecs = value.text(usize::from(len))?,
            FIELD_MAX_MESSAGE => max_message = value.u32()?,
            FIELD_STREAM_CREDIT => stream_credit = value.u32()?,
            FIELD_CONNECTION_CREDIT => connection_credit = value.u32()?,
            FIELD_MAX_STREAMS => max_streams = value.u32()?,
            // A later release's field.
            _ => {}
        }
    }
    if stream_credit < Config::MIN_CREDIT || connection_credit < Config::MIN_CREDIT {
        return Err(ConnectionError::CreditTooSmall);
    }
    let codec = config
        .codecs
        .iter()
        .find(|ours| codecs.split(',').any(|theirs| theirs == ours.as_str()))
        .ok_or_else(|| ConnectionError::NoCommonCodec(codecs.chars().take(MAX_CODEC_NAME).collect()))?;
    Ok(PeerLimits { codec: codec.clone(), max_message, stream_credit, connection_credit, max_streams })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HEADER_LEN;

    #[test]
    fn unknown_fields_are_skipped() {
        let config = Config::standard();
        let mut bytes = Vec::new();
        encode(&config, &mut bytes);
        field(&mut bytes, 999, b"later");
        let limits = decode(&bytes[HEADER_LEN..], &config).unwrap();
        assert_eq!(limits.stream_credit, config.stream_credit);
        assert_eq!(limits.max_streams, config.max_streams);
        assert_eq!(limits.codec, "opaque");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let config = Config::standard();
        let hello = |config: &Config| {
            let mut bytes = Vec::new();
            encode(config, &mut bytes);
            bytes.split_off(HEADER_LEN)
        };
        assert_eq!(decode(b"GET / HTTP/1.1", &config), Err(ConnectionError::BadMagic));
        let mut newer = hello(&config);
        newer[4..8].copy_from_slice(&[2, 0, 3, 0]);
        assert_eq!(decode(&newer, &config), Err(ConnectionError::Version { min: 2, max: 3, ours: 1 }));
        let other = Config { codecs: vec!["other".into()], ..config.clone() };
        assert_eq!(decode(&hello(&other), &config), Err(ConnectionError::NoCommonCodec("other".into())));
        let tiny = Config { stream_credit: 1, ..config.clone() };
        assert_eq!(decode(&hello(&tiny), &config), Err(ConnectionError::CreditTooSmall));
    }

    #[test]
    fn our_preference_decides_the_codec() {
        let ours = Config { codecs: vec!["b".into(), "a".into()], ..Config::standard() };
        let theirs = Config { codecs: vec!["a".into(), "b".into()], ..Config::standard() };
        let mut bytes = Vec::new();
        encode(&theirs, &mut bytes);
        assert_eq!(decode(&bytes[HEADER_LEN..], &ours).unwrap().codec, "b");
    }
}
