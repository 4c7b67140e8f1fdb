//! Memory packets.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, MemoryAddress, VmError};
use guest_debug::{Gva, VcpuId};
use vm_memory::GuestAddress;

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// Reads what is readable from `address` on: a byte at least.
    pub(crate) fn read(&self, vcpu: VcpuId, address: u64, length: usize) -> Result<Vec<u8>, VmError> {
        let length = within_address_space(address, length);
        let mut bytes = self.vm.read_memory(self.place(vcpu, address), length)?;
        bytes.truncate(length);
        if bytes.is_empty() {
            return Err(VmError::Unmapped(format!("nothing is readable at {address:#x}")));
        }
        Ok(bytes)
    }

    /// The same, into the beginning of `data`.
    pub(super) fn read_memory(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> Result<usize, VmError> {
        let bytes = self.read(vcpu, address, data.len())?;
        if let Some(to) = data.get_mut(..bytes.len()) {
            to.copy_from_slice(&bytes);
        }
        Ok(bytes.len())
    }

    /// Writes all of `data` or nothing. An empty write asks whether such packets work, and nothing else.
    pub(super) fn write_memory(&self, vcpu: VcpuId, address: u64, data: &[u8]) -> Result<(), VmError> {
        if data.is_empty() {
            return Ok(());
        }
        if within_address_space(address, data.len()) < data.len() {
            return Err(VmError::Unmapped(format!("a write at {address:#x} leaves the address space")));
        }
        self.vm.write_memory(self.place(vcpu, address), data.to_vec())
    }

    fn place(&self, vcpu: VcpuId, address: u64) -> MemoryAddress {
        if self.client.physical {
            MemoryAddress::Physical(GuestAddress(address))
        } else {
            MemoryAddress::Virtual(vcpu, Gva(address))
        }
    }
}

/// `length`, cut where addresses end.
fn within_address_space(address: u64, length: usize) -> usize {
    // Bytes from `address` to the last one, less one so that it fits.
    let after = u64::MAX - address;
    usize::try_from(after).map_or(length, |after| length.min(after.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_where_addresses_end() {
        assert_eq!(within_address_space(0, 16), 16);
        assert_eq!(within_address_space(u64::MAX, 16), 1);
        assert_eq!(within_address_space(u64::MAX - 15, 16), 16);
    }
}
