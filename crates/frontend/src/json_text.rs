//! Text into JSON strings, at the speed of copying.

use bytes::BytesMut;

/// How a byte looks inside a JSON string: zero: as it is; `u`: as `\u00XX`; else: after a backslash.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[0x08] = b'b';
    table[0x0c] = b'f';
    table
};
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as the inside of a JSON string, without the quotes. Allocates only where the buffer grows.
pub(crate) fn push_escaped(out: &mut BytesMut, text: &str) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        match escape {
            b'u' => {
                let low = HEX[usize::from(byte & 0x0f)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], low]);
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = BytesMut::new();
        push_escaped(&mut out, text);
        format!("\"{}\"", std::str::from_utf8(&out).unwrap())
    }

    #[test]
    fn every_character_of_the_first_planes_reads_back() {
        let all: String = (0..0x1_1000).filter_map(char::from_u32).collect();
        assert_eq!(serde_json::from_str::<String>(&escaped(&all)).unwrap(), all);
    }

    #[test]
    fn short_texts_agree_with_serde() {
        for text in ["", "plain", "\"", "\\", "a\nb\r\t\u{8}\u{c}\u{0}\u{1f}\u{7f}", "日本語 \"x\"", "end\\"]
        {
            assert_eq!(escaped(text), serde_json::to_string(text).unwrap());
        }
    }
}
