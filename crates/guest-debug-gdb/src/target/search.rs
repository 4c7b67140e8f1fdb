//! Searching memory.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::gate::{MAX_SEARCH, Search};
use crate::vm::{DebugVm, VmError};

/// Read at once. The pieces overlap by the pattern, less a byte.
const PIECE: u64 = 1 << 20;

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// First address at which the pattern is found in the memory that the client's current vCPU sees. What can't be read is
    /// an error, as it is to gdb's own search, if the pattern is not in front of it.
    pub(crate) fn search(&self, search: &Search) -> Result<Option<u64>, VmError> {
        let Search { address, length, ref pattern } = *search;
        if length > MAX_SEARCH {
            return Err(VmError::Unsupported(format!("a search goes through {MAX_SEARCH:#x} bytes at most")));
        }
        let (Some(first), Ok(overlap)) = (pattern.first(), u64::try_from(pattern.len().saturating_sub(1))) else {
            return Ok(None);
        };
        let mut done = 0;
        while length - done > overlap {
            let at = address.wrapping_add(done);
            let wanted = (length - done).min(PIECE + overlap);
            let data = self.read(self.current(), at, usize::try_from(wanted).unwrap_or(usize::MAX))?;
            if let Some(offset) = position(&data, *first, pattern) {
                return Ok(Some(at.wrapping_add(offset as u64)));
            }
            let read = data.len() as u64;
            if read < wanted {
                return Err(VmError::Unmapped(format!("nothing is readable at {:#x}", at.wrapping_add(read))));
            }
            done += wanted - overlap;
        }
        Ok(None)
    }
}

/// Where `pattern`, which begins with `first`, is in `data`.
fn position(data: &[u8], first: u8, pattern: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(offset) = data.get(from..)?.iter().position(|byte| *byte == first) {
        let at = from + offset;
        if data.get(at..)?.starts_with(pattern) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_where_they_begin() {
        let position = |data: &[u8], pattern: &[u8]| position(data, pattern[0], pattern);
        assert_eq!(position(b"aabaabc", b"aabc"), Some(3));
        assert_eq!(position(b"aabaab", b"aabc"), None);
        assert_eq!(position(b"c", b"c"), Some(0));
        assert_eq!(position(b"", b"c"), None);
    }
}
