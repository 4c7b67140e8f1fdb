//! Registers that are MSRs.

use super::os;
use crate::VcpuError;
use crate::x86_64::Reg;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub(super) fn read(fd: &VcpuFd, reg: Reg) -> Result<Option<u64>, VcpuError> {
    let Some(mut msrs) = list(reg, 0)? else { return Ok(None) };
    // KVM answers how many it has read.
    match fd.get_msrs(&mut msrs).map_err(os("KVM_GET_MSRS"))? {
        0 => Err(VcpuError::NoSuchRegister(reg.into())),
        _ => Ok(msrs.as_slice().first().map(|entry| entry.data)),
    }
}

pub(super) fn write(fd: &VcpuFd, reg: Reg, value: u64) -> Result<bool, VcpuError> {
    let Some(msrs) = list(reg, value)? else { return Ok(false) };
    match fd.set_msrs(&msrs).map_err(os("KVM_SET_MSRS"))? {
        0 => Err(VcpuError::Unsupported("that value of the register")),
        _ => Ok(true),
    }
}

fn list(reg: Reg, data: u64) -> Result<Option<Msrs>, VcpuError> {
    let index = match reg {
        Reg::KGsBase => 0xc000_0102,
        Reg::Lstar => 0xc000_0082,
        Reg::Fmask => 0xc000_0084,
        _ => return Ok(None),
    };
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    Msrs::from_entries(&[entry]).map(Some).map_err(|_| VcpuError::Unsupported("a list of one MSR"))
}
