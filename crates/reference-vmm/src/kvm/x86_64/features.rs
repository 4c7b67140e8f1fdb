//! What every vCPU is given when it is made.

use super::kvm_error;
use crate::error::VmError;
use crate::kvm::Vcpu;
use crate::state::x86_64::{CpuidLeaf, Features as Saved};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// MAXPHYADDR of a CPU that does not say (SDM volume 3, 4.1.4).
const PHYSICAL_BITS: u32 = 36;

/// MSRs of Hyper-V, which this VMM does not offer to its guests: some count time, and not every KVM has them.
const HYPERV: RangeInclusive<u32> = 0x4000_0000..=0x4000_0fff;

/// CPUID, the rate of the time-stamp counter where it is not for the host to choose, and what KVM has to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kvm) struct Features {
    saved: Saved,
    kept: Kept,
}

/// Registers that not every host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The MSRs that KVM lists, but for those of Hyper-V.
    pub(super) msrs: Arc<[u32]>,
    /// Whether it has XCRs.
    pub(super) xcrs: bool,
}

impl Kept {
    fn by(kvm: &Kvm) -> Result<Self, VmError> {
        let list = kvm.get_msr_index_list().map_err(kvm_error("KVM_GET_MSR_INDEX_LIST"))?;
        let msrs = list.as_slice().iter().copied().filter(|index| !HYPERV.contains(index));
        Ok(Self { msrs: msrs.collect(), xcrs: kvm.check_extension(Cap::Xcrs) })
    }
}

impl Features {
    /// Everything that KVM offers.
    pub(in crate::kvm) fn of_host(kvm: &Kvm, _: &VmFd) -> Result<Self, VmError> {
        Ok(Self { saved: Saved { cpuid: offered(kvm)?, tsc_khz: None }, kept: Kept::by(kvm)? })
    }

    /// Those that a saved VM had.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] when this host does not offer one of them.
    pub(in crate::kvm) fn saved(saved: &Saved, kvm: &Kvm, _: &VmFd) -> Result<Self, VmError> {
        saved.fit(&offered(kvm)?)?;
        Ok(Self { saved: saved.clone(), kept: Kept::by(kvm)? })
    }

    /// What was made of it.
    pub(in crate::kvm) fn describe(&self, vcpus: &[Arc<Vcpu>]) -> Result<Saved, VmError> {
        let Saved { cpuid, tsc_khz } = self.saved.clone();
        // KVM does not say where the host's counter is unstable.
        let own = vcpus.first().and_then(|vcpu| vcpu.lock().get_tsc_khz().ok()).filter(|khz| *khz != 0);
        Ok(Saved { cpuid, tsc_khz: tsc_khz.or(own) })
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Gives them to a new vCPU.
    pub(super) fn give(&self, fd: &VcpuFd, index: u32) -> Result<(), VmError> {
        let leaves = self.saved.cpuid.iter().map(|leaf| with_id(*leaf, index).into());
        let cpuid = CpuId::from_entries(&leaves.collect::<Vec<kvm_cpuid_entry2>>());
        let cpuid = cpuid.map_err(|error| VmError::Write { what: "CPUID", reason: error.to_string() })?;
        fd.set_cpuid2(&cpuid).map_err(kvm_error("KVM_SET_CPUID2"))?;
        let Some(wanted) = self.saved.tsc_khz else { return Ok(()) };
        let own = fd.get_tsc_khz().ok();
        if own != Some(wanted) {
            fd.set_tsc_khz(wanted).map_err(|error| VmError::State {
                field: "machine.tsc_khz".to_owned(),
                value: wanted.to_string(),
                acceptable: format!("what this host can scale its own rate to, {own:?} ({error})"),
            })?;
        }
        Ok(())
    }
}

/// MAXPHYADDR.
pub(super) fn physical_address_bits(kvm: &Kvm) -> Result<u32, VmError> {
    let leaf = offered(kvm)?.into_iter().find(|leaf| leaf.function == 0x8000_0008);
    Ok(leaf.map_or(PHYSICAL_BITS, |leaf| leaf.eax & 0xff))
}

fn offered(kvm: &Kvm) -> Result<Vec<CpuidLeaf>, VmError> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
    // KVM tells the ids of the CPU that it was asked on.
    Ok(cpuid.as_slice().iter().map(|leaf| with_id(leaf.into(), 0)).collect())
}

/// The APIC ids of that vCPU.
fn with_id(leaf: CpuidLeaf, index: u32) -> CpuidLeaf {
    match leaf.function {
        // The initial APIC id, in bits 31:24.
        1 => CpuidLeaf { ebx: leaf.ebx & 0x00ff_ffff | index << 24, ..leaf },
        // The x2APIC id.
        0xb | 0x1f => CpuidLeaf { edx: index, ..leaf },
        _ => leaf,
    }
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: CpuidLeaf) -> Self {
        let CpuidLeaf { function, index, flags, eax, ebx, ecx, edx } = leaf;
        Self { function, index, flags, eax, ebx, ecx, edx, ..Self::default() }
    }
}
