//! Guest memory in KVM, and which pages of it have changed: KVM's log of what the guest writes, and vm-memory's bitmap of
//! what the VMM writes.

use super::kvm_error;
use crate::error::VmError;
use crate::memory::{self, Ram};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

/// Begins or ends the log. Pages count as clean when it begins.
pub(super) fn set_logging(vm: &VmFd, ram: &Ram, on: bool) -> Result<(), VmError> {
    map_ram(vm, ram, on)?;
    memory::take_dirty(ram);
    Ok(())
}

/// The pages written since the last call, one bit for each, the lowest address in bit 0 of the first word.
pub(super) fn take(vm: &VmFd, ram: &Ram) -> Result<Vec<u64>, VmError> {
    // KVM first: what the VMM writes between the two calls is in the second one's answer, or in the next.
    let mut pages = Vec::new();
    for (slot, region) in (0..).zip(ram.iter()) {
        let size = usize::try_from(region.len()).unwrap_or(usize::MAX);
        pages.extend(vm.get_dirty_log(slot, size).map_err(kvm_error("KVM_GET_DIRTY_LOG"))?);
    }
    for (word, own) in pages.iter_mut().zip(memory::take_dirty(ram)) {
        *word |= own;
    }
    Ok(pages)
}

/// Gives the VM its memory, a slot for each region, or changes whether KVM logs what is written to it.
#[expect(unsafe_code, reason = "hands the mapping to KVM")]
pub(super) fn map_ram(vm: &VmFd, ram: &Ram, log: bool) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let host = ram
            .get_host_address(region.start_addr())
            .map_err(|error| VmError::Write { what: "RAM", reason: error.to_string() })?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped, with that size, for as long as the machine that owns both lives.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
