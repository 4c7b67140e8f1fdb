//! Guest memory.
//!
//! Snapshots, migrations and dirty bitmaps count it in offsets from its first byte, its regions one behind the other
//! without the gaps between them.

use crate::error::VmError;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// Guest memory. Its bitmap sees every page that the VMM writes; KVM's dirty log sees those of the guest.
pub type Ram = GuestMemoryMmap<AtomicBitmap>;

/// Bytes of a page, as bitmaps count them.
pub const PAGE: u64 = 4096;

/// Allocates guest memory: address and length of each region, in the order of their addresses, all multiples of 1 MiB.
///
/// # Errors
///
/// [`VmError::Memory`] when the system does not give that much.
pub fn allocate(regions: &[(GuestAddress, u64)]) -> Result<Arc<Ram>, VmError> {
    let mib = regions.iter().fold(0_u64, |sum, (_, length)| sum.saturating_add(*length)) >> 20;
    let error = |reason: String| VmError::Memory { mib, reason };
    let sized = regions.iter().map(|(address, length)| Ok((*address, usize::try_from(*length)?)));
    let sized: Result<Vec<_>, std::num::TryFromIntError> = sized.collect();
    let ram = Ram::from_ranges(&sized.map_err(|e| error(e.to_string()))?).map_err(|e| error(e.to_string()))?;
    Ok(Arc::new(ram))
}

/// Its size in bytes.
pub fn size(ram: &Ram) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Where the bytes from an offset on are: in each region that has some of them, their address and which of them these are.
/// Bytes behind the end of memory are nowhere.
pub fn pieces(ram: &Ram, offset: u64, length: u64) -> impl Iterator<Item = (GuestAddress, Range<usize>)> + '_ {
    let end = offset.saturating_add(length);
    let mut region_start = 0;
    ram.iter().filter_map(move |region| {
        let start = region_start;
        region_start += region.len();
        let (from, to) = (offset.max(start), end.min(region_start));
        let address = region.start_addr().checked_add(from.checked_sub(start)?)?;
        let range = usize::try_from(from - offset).ok()?..usize::try_from(to.checked_sub(offset)?).ok()?;
        (!range.is_empty()).then_some((address, range))
    })
}

/// The pages that the VMM has written since the last call, one bit for each, the lowest address in bit 0 of the first
/// word.
pub fn take_dirty(ram: &Ram) -> Vec<u64> {
    // A region is a multiple of 1 MiB, so it fills its words.
    ram.iter().flat_map(|region: &GuestRegionMmap<AtomicBitmap>| (**region).bitmap().get_and_reset()).collect()
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Without an early end inside a block, so that the compiler makes vectors of it.
    bytes.chunks(PAGE as usize).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn offsets_go_on_behind_a_gap() {
        let ram = allocate(&[(GuestAddress(0), 2 * MIB), (GuestAddress(16 * MIB), MIB)]).unwrap();
        assert_eq!(size(&ram), 3 * MIB);
        let at = |offset, length| {
            pieces(&ram, offset, length).map(|(at, range)| (at.0, range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(at(0, 2 * MIB), [(0, 0, 2 << 20)]);
        assert_eq!(at(2 * MIB - 4, 12), [(2 * MIB - 4, 0, 4), (16 * MIB, 4, 12)]);
        assert_eq!(at(3 * MIB - 1, 9), [(17 * MIB - 1, 0, 1)]);
        assert_eq!(at(3 * MIB, 1), []);
        assert_eq!(at(u64::MAX, u64::MAX), []);
        assert_eq!(at(5, 0), []);
    }
}
