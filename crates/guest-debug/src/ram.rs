//! Guest memory by physical address, as the session uses it.

use thiserror::Error;
use vm_memory::GuestAddress;
#[cfg(feature = "address-space")]
use vm_memory::{Address, Bytes, GuestAddressSpace, GuestMemory, Permissions};

/// A range of guest-physical memory is not RAM.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("guest-physical memory {address:#x}, {length} bytes, is not RAM")]
pub struct RamError {
    /// First address of the range.
    pub address: u64,
    /// Its length in bytes.
    pub length: usize,
}

/// Guest memory behind an object-safe trait.
///
/// Every `GuestAddressSpace` of vm-memory implements it (with the feature `address-space`), so a VMM hands over its memory
/// as it is, and vm-memory's dirty bitmap sees every byte that is written.
pub trait GuestRam: Send + Sync {
    /// Fills `data` from `address`. Nothing is promised about `data` after an error.
    ///
    /// # Errors
    ///
    /// [`RamError`] when a byte of the range is not RAM.
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError>;

    /// Writes `data` at `address`, all of it or none.
    ///
    /// # Errors
    ///
    /// [`RamError`] when a byte of the range is not RAM; nothing was written then.
    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError>;

    /// Makes code that was just written visible to instruction fetches of every vCPU. Nothing to do where
    /// instruction caches are coherent with stores.
    fn sync_code(&self, address: GuestAddress, length: usize) {
        let _ = (address, length);
    }
}

#[cfg(feature = "address-space")]
impl<S> GuestRam for S
where
    S: GuestAddressSpace + Send + Sync,
{
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        let error = RamError { address: address.raw_value(), length: data.len() };
        let memory = self.memory();
        // As a rule one slice has it all, and is looked up once.
        if let Ok(mut slices) = memory.get_slices(address, data.len(), Permissions::Read)
            && let Some(Ok(slice)) = slices.next()
            && slice.len() == data.len()
        {
            return slice.read_slice(data, 0).map_err(|_| error);
        }
        memory.read_slice(data, address).map_err(|_| error)
    }

    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError> {
        let error = RamError { address: address.raw_value(), length: data.len() };
        let memory = self.memory();
        // As a rule one slice has it all, and is looked up once.
        if let Ok(mut slices) = memory.get_slices(address, data.len(), Permissions::Write)
            && let Some(Ok(slice)) = slices.next()
            && slice.len() == data.len()
        {
            return slice.write_slice(data, 0).map_err(|_| error);
        }
        if !memory.check_range(address, data.len(), Permissions::Write) {
            return Err(error);
        }
        memory.write_slice(data, address).map_err(|_| error)
    }

    // Elsewhere instruction caches are coherent with stores.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "aarch64"))]
    fn sync_code(&self, address: GuestAddress, length: usize) {
        if let Ok(slices) = self.memory().get_slices(address, length, Permissions::Read) {
            for slice in slices.flatten() {
                let guard = slice.ptr_guard();
                crate::kvm::sync_icache(guard.as_ptr(), slice.len());
            }
        }
    }
}
