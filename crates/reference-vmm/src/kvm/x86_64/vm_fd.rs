//! KVM's VM itself.

use super::{features, kvm_error};
use crate::error::VmError;
use crate::guest::Guest as _;
use crate::pc::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use guest_debug::X86_64;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Makes a VM with interrupt controllers and a timer, which KVM wants to have before vCPUs, after a look at what it will
/// need.
///
/// # Errors
///
/// [`VmError::Setting`] and [`VmError::MissingCapability`] for a host that can't have it, [`VmError::Os`].
pub(in crate::kvm) fn create(kvm: &Kvm, memory_mib: u64) -> Result<VmFd, VmError> {
    let end = X86_64::ram(memory_mib).last().map_or(0, |(address, length)| address.0 + length);
    let bits = features::physical_address_bits(kvm)?;
    if bits < 64 && end > 1 << bits {
        return Err(VmError::Setting {
            name: "--memory",
            value: memory_mib.to_string(),
            acceptable: format!("so much that it ends below 2^{bits} on this host"),
        });
    }
    for (capability, name) in [(Cap::Irqchip, "KVM_CAP_IRQCHIP"), (Cap::Pit2, "KVM_CAP_PIT2")] {
        if !kvm.check_extension(capability) {
            return Err(VmError::MissingCapability(name));
        }
    }
    let fd = kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?;
    fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    fd.set_tss_address(KVM_TSS as usize).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    fd.create_pit2(timer).map_err(kvm_error("KVM_CREATE_PIT2"))?;
    Ok(fd)
}
