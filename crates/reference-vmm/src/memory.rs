//! Guest memory.

use crate::error::VmError;
use crate::layout::RAM_BASE;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// Guest memory. Its bitmap sees every page that the VMM writes; KVM's dirty log sees those of the guest.
pub type Ram = GuestMemoryMmap<AtomicBitmap>;

/// Bytes of a page, as bitmaps count them.
pub const PAGE: u64 = 4096;

/// Allocates `mib` MiB, one region from [`RAM_BASE`].
///
/// # Errors
///
/// [`VmError::Memory`] when the system does not give that much.
pub fn allocate(mib: u64) -> Result<Arc<Ram>, VmError> {
    allocate_at(RAM_BASE, mib)
}

/// The same from `base`.
///
/// # Errors
///
/// As [`allocate`].
pub fn allocate_at(base: u64, mib: u64) -> Result<Arc<Ram>, VmError> {
    let error = |reason: String| VmError::Memory { mib, reason };
    let bytes = mib.checked_mul(1 << 20).and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| error("the size does not fit in an address".to_owned()))?;
    let ram = Ram::from_ranges(&[(GuestAddress(base), bytes)]).map_err(|e| error(e.to_string()))?;
    Ok(Arc::new(ram))
}

/// Its size in bytes.
pub fn size(ram: &Ram) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
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
