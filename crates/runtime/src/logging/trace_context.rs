use rand::Rng as _;
use std::fmt;

/// Header and metadata key of the trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Header and metadata key of the vendors' part of the trace context; passed on unread.
pub const TRACESTATE: &str = "tracestate";

/// A W3C trace context: which trace, which span of it, and the flags. Displays as a `traceparent` value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// A new trace, sampled.
    pub fn generate() -> Self {
        let mut random = rand::rng();
        Self {
            trace_id: random.random_range(1..=u128::MAX),
            span_id: random.random_range(1..=u64::MAX),
            flags: 1,
        }
    }

    /// Reads `version-trace-span-flags` (2, 32, 16 and 2 lower-case hex digits). A version above 00 may carry more after
    /// another dash. Zero ids, version `ff` and other widths are refused, as the recommendation says.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(5, '-');
        let version = hex::<2>(parts.next()?)?;
        let trace_id = hex::<32>(parts.next()?)?;
        let span_id = hex::<16>(parts.next()?)?;
        let flags = hex::<2>(parts.next()?)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0 {
            return None;
        }
        // The widths make these conversions exact.
        Some(Self { trace_id, span_id: span_id as u64, flags: flags as u8 })
    }

    /// The caller's context if it is valid, else a new trace.
    pub fn from_caller(traceparent: Option<&str>) -> Self {
        traceparent.and_then(Self::parse).unwrap_or_else(Self::generate)
    }

    /// A new span of the same trace, to be sent on.
    pub fn child(&self) -> Self {
        Self { span_id: rand::rng().random_range(1..=u64::MAX), ..*self }
    }

    /// The trace: 32 hex digits when displayed as `{:032x}`.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span: 16 hex digits when displayed as `{:016x}`.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Whether the caller records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

fn hex<const DIGITS: usize>(text: &str) -> Option<u128> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (text.len() == DIGITS && text.bytes().all(lower_hex)).then(|| u128::from_str_radix(text, 16).ok())?
}
