//! Guest memory.

use crate::error::VmError;
use crate::layout::RAM_BASE;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Guest memory. Its bitmap sees every page that the VMM writes; KVM's dirty log sees those of the guest.
pub type Ram = GuestMemoryMmap<AtomicBitmap>;

/// Allocates `mib` MiB, one region from [`RAM_BASE`].
///
/// # Errors
///
/// [`VmError::Memory`] when the system does not give that much.
pub fn allocate(mib: u64) -> Result<Arc<Ram>, VmError> {
    let error = |reason: String| VmError::Memory { mib, reason };
    let bytes = mib.checked_mul(1 << 20).and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| error("the size does not fit in an address".to_owned()))?;
    let ram = Ram::from_ranges(&[(GuestAddress(RAM_BASE), bytes)]).map_err(|e| error(e.to_string()))?;
    Ok(Arc::new(ram))
}
