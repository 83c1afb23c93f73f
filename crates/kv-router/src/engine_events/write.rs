//! Batches as engines write them: what a simulated engine sends, and what tests read.

use dynamo_tokens::TokenId;

/// Which of the two forms of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireForm {
    /// An array with the tag first.
    Array,
    /// A map with the tag under `type`, as recent releases of vLLM send.
    Map,
}

/// An event to write.
#[derive(Clone, Copy, Debug)]
pub enum WireEvent<'a> {
    /// Blocks that follow one another.
    Stored {
        /// First to last.
        block_hashes: &'a [u64],
        /// The block before the first one.
        parent: Option<u64>,
        /// The tokens of all blocks.
        tokens: &'a [TokenId],
        /// Tokens per block.
        block_size: u32,
        /// The adapter.
        lora_name: Option<&'a str>,
    },
    /// Blocks that are gone.
    Removed {
        /// Any order.
        block_hashes: &'a [u64],
    },
    /// All are gone.
    Cleared,
}

/// Appends a batch to `out`. Blocks lie in device memory.
pub fn write_batch(
    timestamp: f64,
    events: &[WireEvent<'_>],
    dp_rank: Option<u32>,
    form: WireForm,
    out: &mut Vec<u8>,
) {
    array(3, out);
    out.push(0xcb);
    out.extend_from_slice(&timestamp.to_be_bytes());
    array(events.len(), out);
    for event in events {
        match form {
            WireForm::Array => write_array(event, out),
            WireForm::Map => write_map(event, out),
        }
    }
    optional(dp_rank.map(u64::from), out);
}

fn write_array(event: &WireEvent<'_>, out: &mut Vec<u8>) {
    match *event {
        WireEvent::Stored { block_hashes, parent, tokens, block_size, lora_name } => {
            array(8, out);
            text("BlockStored", out);
            integers(block_hashes.iter().copied(), out);
            optional(parent, out);
            integers(tokens.iter().map(|&token| u64::from(token)), out);
            integer(u64::from(block_size), out);
            out.push(0xc0);
            text("GPU", out);
            optional_text(lora_name, out);
        }
        WireEvent::Removed { block_hashes } => {
            array(3, out);
            text("BlockRemoved", out);
            integers(block_hashes.iter().copied(), out);
            text("GPU", out);
        }
        WireEvent::Cleared => {
            array(1, out);
            text("AllBlocksCleared", out);
        }
    }
}

fn write_map(event: &WireEvent<'_>, out: &mut Vec<u8>) {
    match *event {
        WireEvent::Stored { block_hashes, parent, tokens, block_size, lora_name } => {
            out.push(0x88);
            pair("type", "BlockStored", out);
            text("block_hashes", out);
            integers(block_hashes.iter().copied(), out);
            text("parent_block_hash", out);
            optional(parent, out);
            text("token_ids", out);
            integers(tokens.iter().map(|&token| u64::from(token)), out);
            text("block_size", out);
            integer(u64::from(block_size), out);
            text("lora_id", out);
            out.push(0xc0);
            pair("medium", "GPU", out);
            text("lora_name", out);
            optional_text(lora_name, out);
        }
        WireEvent::Removed { block_hashes } => {
            out.push(0x83);
            pair("type", "BlockRemoved", out);
            text("block_hashes", out);
            integers(block_hashes.iter().copied(), out);
            pair("medium", "GPU", out);
        }
        WireEvent::Cleared => {
            out.push(0x81);
            pair("type", "AllBlocksCleared", out);
        }
    }
}

fn pair(key: &str, value: &str, out: &mut Vec<u8>) {
    text(key, out);
    text(value, out);
}

fn array(len: usize, out: &mut Vec<u8>) {
    match u16::try_from(len) {
        Ok(len @ 0..=15) => out.push(0x90 | len as u8),
        Ok(len) => {
            out.push(0xdc);
            out.extend_from_slice(&len.to_be_bytes());
        }
        // A slice of four thousand million elements does not come here: a batch is one step's.
        Err(_) => {
            out.push(0xdd);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

fn integers(values: impl ExactSizeIterator<Item = u64>, out: &mut Vec<u8>) {
    array(values.len(), out);
    for value in values {
        integer(value, out);
    }
}

fn integer(value: u64, out: &mut Vec<u8>) {
    if value < 0x80 {
        out.push(value as u8);
    } else if let Ok(value) = u8::try_from(value) {
        out.extend_from_slice(&[0xcc, value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(0xcd);
        out.extend_from_slice(&value.to_be_bytes());
    } else if let Ok(value) = u32::try_from(value) {
        out.push(0xce);
        out.extend_from_slice(&value.to_be_bytes());
    } else {
        out.push(0xcf);
        out.extend_from_slice(&value.to_be_bytes());
    }
}

fn optional(value: Option<u64>, out: &mut Vec<u8>) {
    match value {
        Some(value) => integer(value, out),
        None => out.push(0xc0),
    }
}

fn optional_text(value: Option<&str>, out: &mut Vec<u8>) {
    match value {
        Some(value) => text(value, out),
        None => out.push(0xc0),
    }
}

/// Names are short; of a longer one than the length can say, the rest is left out.
fn text(value: &str, out: &mut Vec<u8>) {
    let bytes = value.as_bytes();
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    match u8::try_from(bytes.len()) {
        Ok(len @ 0..=31) => out.push(0xa0 | len),
        Ok(len) => out.extend_from_slice(&[0xd9, len]),
        Err(_) => {
            out.push(0xda);
            out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}
