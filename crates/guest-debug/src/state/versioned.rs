//! The state in versionize's format, without its ways to panic.
//!
//! [`GuestDebugState`] implements `Versionize`, for a VMM that has it inside a larger struct. Read like that, it panics
//! at a version map that maps a type to a version which it does not have, and it reads whatever version was written as
//! the one that the caller names. [`write()`] and [`read()`] are for everybody else: the version is the state's own,
//! compared before anything else is decoded, and the bytes are a whole state and nothing more.
//!
//! ```text
//!   offset  bytes  little-endian
//!        0      4  version of the state, its first field
//!        4         the other fields as versionize writes them in that version
//! ```

use super::{GuestDebugState, STATE_VERSION};
use thiserror::Error;
use versionize::{VersionMap, Versionize, VersionizeError};

/// The longest input that is read: room for more than 100,000 software breakpoints and 512 vCPUs.
pub const MAX_LENGTH: usize = 16 << 20;

/// Why a state was not written or not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VersionedError {
    /// A newer crate wrote it.
    #[error("the debug state has version {found}, this build reads 1 to {STATE_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It is longer than any state.
    #[error("the debug state has {found} bytes, {MAX_LENGTH} at most are accepted")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It ends in its version.
    #[error("the debug state is cut short: its version takes 4 bytes, {found} are there")]
    Truncated {
        /// Bytes that are there.
        found: usize,
    },
    /// Something follows the state.
    #[error("{count} bytes follow the debug state")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// versionize refused.
    #[error("the debug state can't be coded: {0}")]
    Versionize(VersionizeError),
}

/// Writes a state, in the version that it has.
///
/// # Errors
///
/// [`VersionedError::Version`], [`VersionedError::TooLong`], and [`VersionedError::Versionize`] when a list is longer than
/// versionize writes: 10 MiB of elements in memory.
pub fn write(state: &GuestDebugState) -> Result<Vec<u8>, VersionedError> {
    let version = known(state.version)?;
    let mut bytes = Vec::new();
    state.serialize(&mut bytes, &version_map(), version).map_err(VersionedError::Versionize)?;
    if bytes.len() > MAX_LENGTH { Err(VersionedError::TooLong { found: bytes.len() }) } else { Ok(bytes) }
}

/// Reads a state. What it says is still unchecked; see [`super::check`].
///
/// # Errors
///
/// [`VersionedError`], for each way in which the bytes can be bad.
pub fn read(bytes: &[u8]) -> Result<GuestDebugState, VersionedError> {
    if bytes.len() > MAX_LENGTH {
        return Err(VersionedError::TooLong { found: bytes.len() });
    }
    let first = bytes.first_chunk().ok_or(VersionedError::Truncated { found: bytes.len() })?;
    let version = known(u32::from_le_bytes(*first))?;
    let mut rest = bytes;
    let state = GuestDebugState::deserialize(&mut rest, &version_map(), version).map_err(VersionedError::Versionize)?;
    match rest.len() {
        0 => Ok(state),
        count => Err(VersionedError::Trailing { count }),
    }
}

/// Which version of each type a version of the state has. A type that gets a field is entered here with it.
fn version_map() -> VersionMap {
    let mut map = VersionMap::new();
    map.new_version().set_type_version(GuestDebugState::type_id(), 2);
    map
}

fn known(version: u32) -> Result<u16, VersionedError> {
    let known = (1..=STATE_VERSION).contains(&version);
    u16::try_from(version).ok().filter(|_| known).ok_or(VersionedError::Version { found: version })
}
