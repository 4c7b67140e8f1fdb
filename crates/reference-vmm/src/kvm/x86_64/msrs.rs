//! A vCPU's MSRs. KVM lists more than it lets be read or written: what the CPU, or the vCPU's CPUID, does not have is an
//! error, and ends the whole call behind those that went well.

use super::kvm_error;
use crate::error::VmError;
use crate::state::x86_64::MsrState;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// It is written last: KVM starts the timer then, by the counter and the local APIC.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
pub(super) const TSC: u32 = 0x10;

/// The kernel takes fewer than 256 at once.
const AT_ONCE: usize = 128;

/// Reads those that can be read, in the order in which they are written.
pub(super) fn read(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrState>, VmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest.iter().take(AT_ONCE).map(|index| entry(*index, 0)).collect();
        let mut msrs = list(&asked)?;
        let count = fd.get_msrs(&mut msrs).map_err(kvm_error("KVM_GET_MSRS"))?;
        let read = msrs.as_slice().iter().take(count);
        found.extend(read.map(|entry| MsrState { index: entry.index, value: entry.data }));
        // Over the one that can't be.
        let over = if count < asked.len() { count + 1 } else { count };
        rest = rest.get(over..).unwrap_or_default();
    }
    found.sort_by_key(|msr| msr.index == TSC_DEADLINE);
    Ok(found)
}

/// Writes those that have another value; answers those that the vCPU can't have.
pub(super) fn write<'a>(fd: &VcpuFd, state: &'a [MsrState]) -> Result<Vec<&'a MsrState>, VmError> {
    let indices: Vec<_> = state.iter().map(|msr| msr.index).collect();
    let now = read(fd, &indices)?;
    // Some can be read and not written: they are the CPU's, and the same. The counter goes on meanwhile.
    let changed: Vec<_> = state.iter().filter(|msr| msr.index == TSC || !now.contains(msr)).collect();
    let mut refused = Vec::new();
    let mut rest = changed.as_slice();
    while !rest.is_empty() {
        let asked: Vec<_> = rest.iter().take(AT_ONCE).map(|msr| entry(msr.index, msr.value)).collect();
        let count = fd.set_msrs(&list(&asked)?).map_err(kvm_error("KVM_SET_MSRS"))?;
        if count < asked.len() {
            refused.extend(rest.get(count));
        }
        let over = if count < asked.len() { count + 1 } else { count };
        rest = rest.get(over..).unwrap_or_default();
    }
    Ok(refused)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..kvm_msr_entry::default() }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, VmError> {
    Msrs::from_entries(entries).map_err(|error| VmError::Write { what: "a list of MSRs", reason: error.to_string() })
}
