//! x87, SSE and AVX registers.
//!
//! Through KVM_GET_XSAVE and KVM_SET_XSAVE. KVM_SET_FPU leaves XSTATE_BV alone, so that what it writes is lost at the next
//! entry where the guest has not used the registers yet, and KVM_GET_FPU tells what they were before they were reset.

use super::os;
use crate::VcpuError;
use crate::x86_64::{Reg, xsave};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_xsave};
use kvm_ioctls::VcpuFd;

/// The longest of them.
const LONGEST: usize = 16;
/// CPUID leaf 1, ECX: AVX.
const CPUID_AVX: u32 = 1 << 28;

pub(super) fn read(fd: &VcpuFd, reg: Reg) -> Result<Option<[u8; LONGEST]>, VcpuError> {
    if is_fpu(reg) { Ok(xsave::read(&area(fd)?, reg)) } else { Ok(None) }
}

pub(super) fn write(fd: &VcpuFd, reg: Reg, value: &[u8]) -> Result<bool, VcpuError> {
    if !is_fpu(reg) {
        return Ok(false);
    }
    let mut area = area(fd)?;
    if !xsave::write(&mut area, reg, value) {
        return Ok(false);
    }
    let mut state = kvm_xsave::default();
    let words = area.chunks_exact(size_of::<u32>()).filter_map(|bytes| bytes.first_chunk());
    state.region.iter_mut().zip(words).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
    set_xsave(fd, &state)?;
    Ok(true)
}

/// Whether the guest's CPU has AVX.
pub(super) fn has_avx(fd: &VcpuFd) -> Result<bool, VcpuError> {
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(os("KVM_GET_CPUID2"))?;
    Ok(cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_AVX != 0))
}

fn area(fd: &VcpuFd) -> Result<Vec<u8>, VcpuError> {
    let state = fd.get_xsave().map_err(os("KVM_GET_XSAVE"))?;
    Ok(state.region.iter().flat_map(|word| word.to_le_bytes()).collect())
}

#[expect(unsafe_code, reason = "KVM_SET_XSAVE has no safe call, as its length depends on what was enabled")]
fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), VcpuError> {
    // SAFETY: KVM reads more than a `kvm_xsave` only where the process has asked for dynamic features (AMX) with
    // arch_prctl, and with those KVM_GET_XSAVE, which this was made by, would have been refused.
    unsafe { fd.set_xsave(xsave) }.map_err(os("KVM_SET_XSAVE"))
}

fn is_fpu(reg: Reg) -> bool {
    use Reg::{Fctrl, Fioff, Fiseg, Fooff, Fop, Foseg, Fstat, Ftag, Mxcsr, St, Xmm, YmmH};
    matches!(reg, St(_) | Xmm(_) | YmmH(_) | Mxcsr | Fctrl | Fstat | Ftag | Fop | Fioff | Fiseg | Fooff | Foseg)
}
