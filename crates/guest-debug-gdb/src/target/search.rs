//! Searching memory.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::gate::{MAX_SEARCH, Search};
use crate::vm::{DebugVm, VmError};
use memchr::memmem::Finder;

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
        let Some(overlap) = pattern.len().checked_sub(1) else { return Ok(None) };
        let (overlap, finder) = (overlap as u64, Finder::new(pattern));
        let mut done = 0;
        while length - done > overlap {
            let at = address.wrapping_add(done);
            let wanted = (length - done).min(PIECE + overlap);
            let data = self.read(self.current(), at, usize::try_from(wanted).unwrap_or(usize::MAX))?;
            if let Some(offset) = finder.find(&data) {
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
