//! Why a peer's bytes are refused.

use std::error::Error;
use std::fmt;
use std::io;

use super::{Kind, MAX_PAYLOAD};

/// Why a peer's bytes were refused.
#[derive(Debug)]
pub enum ProtocolError {
    /// The connection failed.
    Io(io::Error),
    /// A kind that this version does not know.
    UnknownKind(u8),
    /// A payload longer than [`MAX_PAYLOAD`].
    TooLong(u32),
    /// A frame that does not belong here.
    Unexpected(Kind),
    /// The named field is cut off or not what it should be.
    Malformed(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection: {error}"),
            Self::UnknownKind(byte) => write!(f, "frame of unknown kind {byte}"),
            Self::TooLong(length) => write!(f, "payload of {length} bytes, at most {MAX_PAYLOAD} are accepted"),
            Self::Unexpected(kind) => write!(f, "unexpected {kind:?} frame"),
            Self::Malformed(field) => write!(f, "malformed field: {field}"),
        }
    }
}

impl Error for ProtocolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ProtocolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
