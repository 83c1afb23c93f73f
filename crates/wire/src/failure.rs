/// Texts of failures are cut to this many bytes, so that a frame always holds them.
pub(crate) const MAX_FAILURE_TEXT: usize = 1024;

/// How a stream failed, as the other end is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: FailureCode,
    /// The application's own code with [`FailureCode::Application`], the reason with [`FailureCode::Cancelled`],
    /// otherwise 0.
    pub detail: u16,
    /// For people; at most 1 KiB.
    pub text: String,
}

impl Failure {
    /// A failure without a detail.
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        Self { code, detail: 0, text: text.into() }
    }

    pub(crate) fn encode(&self, buffer: &mut Vec<u8>) {
        let mut end = self.text.len().min(MAX_FAILURE_TEXT);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        buffer.extend_from_slice(&self.code.to_wire().to_le_bytes());
        buffer.extend_from_slice(&self.detail.to_le_bytes());
        buffer.extend_from_slice(&self.text.as_bytes()[..end]);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ConnectionError> {
        let Some((&[c0, c1, d0, d1], text)) = bytes.split_first_chunk::<4>() else {
            return Err(ConnectionError::Malformed("failure"));
        };
        Ok(Self {
            code: FailureCode::from_wire(u16::from_le_bytes([c0, c1])),
            detail: u16::from_le_bytes([d0, d1]),
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

macro_rules! wire_codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A code of a later release.
            Other(u16),
        }

        impl $name {
            /// The number that stands for it in frames.
            pub fn to_wire(self) -> u16 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }

            /// What a number in a frame stands for.
            pub fn from_wire(code: u16) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

wire_codes! {
    /// The kinds of failure.
    FailureCode {
        /// Nothing is served at that path, or the process is going away.
        Unavailable = 1,
        /// A bound was hit at the serving end.
        Overloaded = 2,
        /// The request's time ran out.
        DeadlineExceeded = 3,
        /// Taken back; the detail is a [`CancelReason`].
        Cancelled = 4,
        /// The reader took nothing for longer than the stall limit.
        SlowReader = 5,
        /// The serving end let go of the stream without ending it.
        Incomplete = 6,
        /// A message was longer than the other end accepts.
        TooLarge = 7,
        /// The application's own failure.
        Application = 8,
    }
}

wire_codes! {
    /// Why a stream was cancelled.
    CancelReason {
        /// No reason was given.
        Unspecified = 0,
        /// Whoever asked went away.
        ClientGone = 1,
        /// The request's time ran out.
        DeadlineExceeded = 2,
        /// The reader was too slow.
        SlowReader = 3,
        /// The process is shutting down.
        Shutdown = 4,
        /// The connection was lost; never sent.
        Disconnected = 5,
        /// The rest of the answer is not needed.
        NotNeeded = 6,
    }
}

/// How much is left of a cancelled stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CancelKind {
    /// The serving end finishes early and ends the stream itself.
    Stop,
    /// The stream is gone at once; nothing more is sent on it.
    Kill,
}

/// Why a connection can't go on. All its streams are lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The first bytes are not this protocol's.
    #[error("the peer does not speak the request plane's protocol")]
    BadMagic,
    /// No protocol version in common.
    #[error("the peer speaks versions {min} to {max} of the request plane, this release only {ours}")]
    Version {
        /// The peer's oldest.
        min: u16,
        /// The peer's newest.
        max: u16,
        /// Ours.
        ours: u16,
    },
    /// No payload codec in common.
    #[error("no payload codec in common; the peer offers {0}")]
    NoCommonCodec(String),
    /// A limit in the hello that no stream could live with.
    #[error("the peer's hello grants a credit below the minimum")]
    CreditTooSmall,
    /// A frame over the maximum.
    #[error("the peer sent a frame of {0} bytes, more than the maximum")]
    FrameTooLarge(usize),
    /// A message over the negotiated maximum.
    #[error("the peer sent a message of {0} bytes, more than the maximum")]
    MessageTooLarge(u64),
    /// More bytes than were granted.
    #[error("the peer sent more bytes than it has credit for")]
    CreditExceeded,
    /// More credit than makes sense.
    #[error("the peer granted more credit than can be counted")]
    CreditOverflow,
    /// A stream id that was never opened, or that this end may not use so.
    #[error("the peer used stream {0} against the protocol")]
    BadStream(u32),
    /// A frame whose contents can't be read.
    #[error("the peer sent a malformed {0}")]
    Malformed(&'static str),
    /// No hello in time.
    #[error("the peer sent no hello in time")]
    HelloTimeout,
    /// No sign of life in time.
    #[error("the peer did not answer a ping in time")]
    PeerSilent,
}
