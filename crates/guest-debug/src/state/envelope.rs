//! A container for the state, for VMMs whose snapshots have none of their own.
//!
//! ```text
//!   offset  bytes  little-endian
//!        0      8  magic, "GDBGSTAT"
//!        8      2  version of the envelope, 1
//!       10      2  architecture: 1 aarch64, 2 x86_64
//!       12      4  version of the state
//!       16      8  length of the payload
//!       24      4  CRC-32 (IEEE 802.3) of bytes 0 to 23 and the payload
//!       28         payload: the state as JSON
//! ```
//!
//! Everything before the payload is looked at first, so that a state of a newer crate or of another architecture is
//! refused by name, and nothing large is read or decoded because of a number in a file. The checksum finds damage; it is
//! no protection against somebody who means harm, for which every field is checked later.

use super::{Architecture, GuestDebugState, STATE_VERSION};
use std::io::Read;
use thiserror::Error;

/// The first bytes of every envelope.
pub const MAGIC: [u8; 8] = *b"GDBGSTAT";
/// Version of the envelope itself.
pub const ENVELOPE_VERSION: u16 = 1;
/// The longest payload that is accepted: room for more than 100,000 software breakpoints and 512 vCPUs.
pub const MAX_PAYLOAD: u64 = 16 << 20;

const HEADER: usize = 28;
const SUMMED: usize = 24;

/// Why an envelope was not written or not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Reading failed.
    #[error("the debug state can't be read: {0}")]
    Io(#[from] std::io::Error),
    /// It ends too early.
    #[error("the debug state is cut short: {needed} bytes are needed, {found} are there")]
    Truncated {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// It is something else.
    #[error("not a debug state: it begins with {found:02x?} instead of {MAGIC:02x?}")]
    Magic {
        /// Its first bytes.
        found: [u8; 8],
    },
    /// The envelope is of a kind that this crate does not know.
    #[error("the envelope has version {found}, this build reads {ENVELOPE_VERSION}")]
    EnvelopeVersion {
        /// Its version.
        found: u16,
    },
    /// The architecture is none that this crate knows.
    #[error("the debug state is of architecture {found}; 1 (aarch64) and 2 (x86_64) are known")]
    Architecture {
        /// Its number.
        found: u16,
    },
    /// A newer crate wrote the state.
    #[error("the debug state has version {found}, this build reads 1 to {STATE_VERSION}")]
    StateVersion {
        /// Its version.
        found: u32,
    },
    /// The payload is longer than any state.
    #[error("the debug state has {found} bytes, {MAX_PAYLOAD} at most are accepted")]
    TooLong {
        /// Its length.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error("the debug state is damaged: its checksum is {found:#010x}, that of its bytes is {computed:#010x}")]
    Checksum {
        /// The one in the header.
        found: u32,
        /// The one of the bytes.
        computed: u32,
    },
    /// The payload is not a state.
    #[error("the debug state can't be decoded: {0}")]
    Payload(#[from] serde_json::Error),
    /// The payload is not even text.
    #[error("the debug state can't be decoded: byte {offset} of it is not UTF-8")]
    Text {
        /// Offset in the payload.
        offset: usize,
    },
    /// Header and payload contradict each other.
    #[error("the debug state's header and payload differ in {field}")]
    Mismatch {
        /// The field.
        field: &'static str,
    },
}

/// Writes a state.
///
/// # Errors
///
/// [`EnvelopeError::TooLong`].
pub fn seal(state: &GuestDebugState) -> Result<Vec<u8>, EnvelopeError> {
    let payload = serde_json::to_vec(state)?;
    let length = payload.len() as u64;
    if length > MAX_PAYLOAD {
        return Err(EnvelopeError::TooLong { found: length });
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(ENVELOPE_VERSION.to_le_bytes());
    bytes.extend(number(state.architecture).to_le_bytes());
    bytes.extend(state.version.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    let sum = checksum(&bytes, &payload);
    bytes.extend(sum.to_le_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

/// Reads a state, and not a byte behind it. What it says is still unchecked; see [`super::check`].
///
/// # Errors
///
/// [`EnvelopeError`], for each way in which the bytes can be bad.
pub fn open(mut reader: impl Read) -> Result<GuestDebugState, EnvelopeError> {
    let header: [u8; HEADER] = read_exactly(&mut reader, HEADER as u64, 0)?
        .try_into()
        .map_err(|short: Vec<u8>| EnvelopeError::Truncated { needed: HEADER as u64, found: short.len() as u64 })?;
    let magic: [u8; 8] = part(&header, 0);
    if magic != MAGIC {
        return Err(EnvelopeError::Magic { found: magic });
    }
    let version = u16::from_le_bytes(part(&header, 8));
    if version != ENVELOPE_VERSION {
        return Err(EnvelopeError::EnvelopeVersion { found: version });
    }
    let architecture = match u16::from_le_bytes(part(&header, 10)) {
        1 => Architecture::Aarch64,
        2 => Architecture::X86_64,
        found => return Err(EnvelopeError::Architecture { found }),
    };
    let found = u32::from_le_bytes(part(&header, 12));
    if !(1..=STATE_VERSION).contains(&found) {
        return Err(EnvelopeError::StateVersion { found });
    }
    let length = u64::from_le_bytes(part(&header, 16));
    if length > MAX_PAYLOAD {
        return Err(EnvelopeError::TooLong { found: length });
    }
    let payload = read_exactly(&mut reader, length, HEADER as u64)?;
    let found = u32::from_le_bytes(part(&header, 24));
    let computed = checksum(header.split_at(SUMMED).0, &payload);
    if found != computed {
        return Err(EnvelopeError::Checksum { found, computed });
    }
    let text = str::from_utf8(&payload).map_err(|error| EnvelopeError::Text { offset: error.valid_up_to() })?;
    let state: GuestDebugState = serde_json::from_str(text)?;
    if state.architecture != architecture {
        return Err(EnvelopeError::Mismatch { field: "architecture" });
    }
    Ok(state)
}

/// The next `length` bytes; memory is taken as they come, `before` of them having come already.
fn read_exactly(reader: impl Read, length: u64, before: u64) -> Result<Vec<u8>, EnvelopeError> {
    let mut bytes = Vec::new();
    let found = reader.take(length).read_to_end(&mut bytes)? as u64;
    if found < length {
        return Err(EnvelopeError::Truncated { needed: before + length, found: before + found });
    }
    Ok(bytes)
}

fn part<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    // Every offset above is inside the header.
    std::array::from_fn(|index| header.get(at + index).copied().unwrap_or_default())
}

fn number(architecture: Architecture) -> u16 {
    match architecture {
        Architecture::Aarch64 => 1,
        Architecture::X86_64 => 2,
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}
