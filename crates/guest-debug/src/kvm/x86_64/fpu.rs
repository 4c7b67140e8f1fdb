//! x87, SSE and AVX registers.
//!
//! MXCSR goes by `KVM_GET_XSAVE`: `struct kvm_fpu` has a field for it, which KVM neither fills nor reads
//! (kvm_arch_vcpu_ioctl_get_fpu in arch/x86/kvm/x86.c).

use super::os;
use crate::VcpuError;
use crate::x86_64::Reg;
use crate::x86_64::fpu::{abridged_tags, full_tags};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_fpu, kvm_xsave};
use kvm_ioctls::VcpuFd;

/// The longest of them.
const LONGEST: usize = 16;
/// Where the upper halves of YMM are in the standard form of XSAVE, and XSTATE_BV (SDM volume 1, 13.4).
const YMM_H: usize = 576;
const XSTATE_BV: usize = 512;
/// Where MXCSR is in it.
const MXCSR: usize = 24;
/// State components 1 and 2 of XSTATE_BV.
const SSE: u32 = 1 << 1;
const AVX: u32 = 1 << 2;
/// CPUID leaf 1, ECX: AVX.
const CPUID_AVX: u32 = 1 << 28;
const WORD: usize = size_of::<u32>();

pub(super) fn read(fd: &VcpuFd, reg: Reg) -> Result<Option<[u8; LONGEST]>, VcpuError> {
    if let Some((at, words, _)) = in_xsave(reg) {
        let xsave = fd.get_xsave().map_err(os("KVM_GET_XSAVE"))?;
        let mut value = [0; LONGEST];
        let words = xsave.region.iter().skip(at).take(words).flat_map(|word| word.to_le_bytes());
        value.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        return Ok(Some(value));
    }
    if !is_fpu(reg) {
        return Ok(None);
    }
    let fpu = fd.get_fpu().map_err(os("KVM_GET_FPU"))?;
    let word = |value: u32| {
        let mut bytes = [0; LONGEST];
        bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        bytes
    };
    Ok(Some(match reg {
        Reg::St(n) => fpu.fpr[usize::from(n & 7)],
        Reg::Xmm(n) => fpu.xmm[usize::from(n & 15)],
        Reg::Fctrl => word(fpu.fcw.into()),
        Reg::Fstat => word(fpu.fsw.into()),
        Reg::Ftag => word(full_tags(fpu.ftwx, fpu.fsw, &fpu.fpr).into()),
        Reg::Fop => word(fpu.last_opcode.into()),
        Reg::Fioff => word(fpu.last_ip as u32),
        Reg::Fiseg => word((fpu.last_ip >> 32) as u32),
        Reg::Fooff => word(fpu.last_dp as u32),
        _ => word((fpu.last_dp >> 32) as u32),
    }))
}

pub(super) fn write(fd: &VcpuFd, reg: Reg, value: &[u8]) -> Result<bool, VcpuError> {
    if let Some((at, words, component)) = in_xsave(reg) {
        let mut xsave = fd.get_xsave().map_err(os("KVM_GET_XSAVE"))?;
        let new =
            value.chunks_exact(WORD).filter_map(|bytes| bytes.first_chunk()).map(|word| u32::from_le_bytes(*word));
        xsave.region.iter_mut().skip(at).take(words).zip(new).for_each(|(to, word)| *to = word);
        if let Some(components) = xsave.region.get_mut(XSTATE_BV / WORD) {
            *components |= component;
        }
        set_xsave(fd, &xsave)?;
        return Ok(true);
    }
    if !is_fpu(reg) {
        return Ok(false);
    }
    let mut fpu = fd.get_fpu().map_err(os("KVM_GET_FPU"))?;
    put(&mut fpu, reg, value);
    fd.set_fpu(&fpu).map_err(os("KVM_SET_FPU"))?;
    Ok(true)
}

/// Whether the guest's CPU has AVX.
pub(super) fn has_avx(fd: &VcpuFd) -> Result<bool, VcpuError> {
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(os("KVM_GET_CPUID2"))?;
    Ok(cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_AVX != 0))
}

#[expect(unsafe_code, reason = "KVM_SET_XSAVE has no safe call, as its length depends on what was enabled")]
fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), VcpuError> {
    // SAFETY: KVM reads more than a `kvm_xsave` only where the process has asked for dynamic features (AMX) with
    // arch_prctl, and with those KVM_GET_XSAVE, which this was made by, would have been refused.
    unsafe { fd.set_xsave(xsave) }.map_err(os("KVM_SET_XSAVE"))
}

fn is_fpu(reg: Reg) -> bool {
    use Reg::{Fctrl, Fioff, Fiseg, Fooff, Fop, Foseg, Fstat, Ftag, St, Xmm};
    matches!(reg, St(_) | Xmm(_) | Fctrl | Fstat | Ftag | Fop | Fioff | Fiseg | Fooff | Foseg)
}

fn put(fpu: &mut kvm_fpu, reg: Reg, value: &[u8]) {
    let word = value.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let high = |old: u64| old & u64::from(u32::MAX) | u64::from(word) << 32;
    let low = |old: u64| old & !u64::from(u32::MAX) | u64::from(word);
    let copy = |to: &mut [u8; LONGEST]| to.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
    match reg {
        Reg::St(n) => copy(&mut fpu.fpr[usize::from(n & 7)]),
        Reg::Xmm(n) => copy(&mut fpu.xmm[usize::from(n & 15)]),
        Reg::Fctrl => fpu.fcw = word as u16,
        Reg::Fstat => fpu.fsw = word as u16,
        Reg::Ftag => fpu.ftwx = abridged_tags(word as u16),
        Reg::Fop => fpu.last_opcode = word as u16,
        Reg::Fioff => fpu.last_ip = low(fpu.last_ip),
        Reg::Fiseg => fpu.last_ip = high(fpu.last_ip),
        Reg::Fooff => fpu.last_dp = low(fpu.last_dp),
        _ => fpu.last_dp = high(fpu.last_dp),
    }
}

/// Where a register begins in XSAVE and how long it is there, in words, and the component that it belongs to.
fn in_xsave(reg: Reg) -> Option<(usize, usize, u32)> {
    match reg {
        Reg::Mxcsr => Some((MXCSR / WORD, 1, SSE)),
        Reg::YmmH(n) => Some(((YMM_H + usize::from(n & 15) * LONGEST) / WORD, LONGEST / WORD, AVX)),
        _ => None,
    }
}
