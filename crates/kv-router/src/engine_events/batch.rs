//! A batch: `[time, events, rank]`.

use super::{EngineEvent, EngineEventDecoder, FilterReason};
use crate::msgpack::{Reader, WireError};

/// What a batch says beside its events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchInfo {
    /// When, in Unix seconds by the engine's clock.
    pub timestamp: f64,
    /// The data-parallel rank; none where the engine names none.
    pub dp_rank: Option<u32>,
}

impl EngineEventDecoder {
    /// Reads a batch and appends its events, converted. An event that is not what it should be is passed over and
    /// counted; after an error there is nothing more to read, and the events before it are there.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<EngineEvent>) -> Result<BatchInfo, WireError> {
        let mut reader = Reader::new(payload);
        let elements = reader.array()?;
        if elements < 2 {
            return Err(WireError::Missing);
        }
        let timestamp = reader.number()?;
        for _ in 0..reader.array()? {
            let start = reader;
            let outcome = self.event(&mut reader, out);
            self.counters.received += 1;
            match outcome {
                Ok(Ok(())) => self.counters.accepted += 1,
                Ok(Err(reason)) => self.counters.filter(reason),
                Err(_) => {
                    self.counters.filter(FilterReason::Malformed);
                    reader = start;
                    reader.skip()?;
                }
            }
        }
        let dp_rank = match elements {
            2 => None,
            _ if reader.take_nil() => None,
            _ => Some(reader.u32()?),
        };
        for _ in 3..elements {
            reader.skip()?;
        }
        reader.end()?;
        self.shrink();
        Ok(BatchInfo { timestamp, dp_rank })
    }
}
