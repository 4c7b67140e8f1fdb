//! KVM's VM itself.

use super::kvm_error;
use crate::error::VmError;
use crate::layout::{self, RAM_BASE};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Makes an empty VM, after a look at what it will need.
///
/// # Errors
///
/// [`VmError::Setting`] and [`VmError::MissingCapability`] for a host that can't have it.
pub(in crate::kvm) fn create(kvm: &Kvm, memory_mib: u64) -> Result<VmFd, VmError> {
    // 0 where KVM can't say; its default, 40 bits, is then all there is.
    let bits = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
    let end = layout::ram_end(memory_mib << 20);
    if bits != 0 && bits < 64 && end > 1 << bits {
        return Err(VmError::Setting {
            name: "--memory",
            value: memory_mib.to_string(),
            acceptable: format!("at most {} MiB on this host", ((1 << bits) - RAM_BASE.min(1 << bits)) >> 20),
        });
    }
    if !kvm.check_extension(Cap::ArmPsci02) {
        return Err(VmError::MissingCapability("KVM_CAP_ARM_PSCI_0_2"));
    }
    kvm.create_vm_with_ipa_size(bits).map_err(kvm_error("KVM_CREATE_VM"))
}
