//! Registers of `KVM_GET_REGS`.

use super::os;
use crate::VcpuError;
use crate::x86_64::Reg;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;

/// Bits of RFLAGS that are not in EFLAGS are reserved.
const EFLAGS: u64 = u32::MAX as u64;

/// Whether it is one of them.
pub(super) fn has(reg: Reg) -> bool {
    field(&mut kvm_regs::default(), reg).is_some()
}

pub(super) fn get(fd: &VcpuFd) -> Result<kvm_regs, VcpuError> {
    fd.get_regs().map_err(os("KVM_GET_REGS"))
}

pub(super) fn value(mut regs: kvm_regs, reg: Reg) -> Option<u64> {
    field(&mut regs, reg).copied()
}

pub(super) fn write(fd: &VcpuFd, reg: Reg, value: u64) -> Result<bool, VcpuError> {
    if !has(reg) {
        return Ok(false);
    }
    let mut regs = get(fd)?;
    if let Some(field) = field(&mut regs, reg) {
        *field = if reg == Reg::Eflags { *field & !EFLAGS | value & EFLAGS } else { value };
    }
    fd.set_regs(&regs).map_err(os("KVM_SET_REGS"))?;
    Ok(true)
}

fn field(regs: &mut kvm_regs, reg: Reg) -> Option<&mut u64> {
    Some(match reg {
        Reg::Rax => &mut regs.rax,
        Reg::Rbx => &mut regs.rbx,
        Reg::Rcx => &mut regs.rcx,
        Reg::Rdx => &mut regs.rdx,
        Reg::Rsi => &mut regs.rsi,
        Reg::Rdi => &mut regs.rdi,
        Reg::Rbp => &mut regs.rbp,
        Reg::Rsp => &mut regs.rsp,
        Reg::R(8) => &mut regs.r8,
        Reg::R(9) => &mut regs.r9,
        Reg::R(10) => &mut regs.r10,
        Reg::R(11) => &mut regs.r11,
        Reg::R(12) => &mut regs.r12,
        Reg::R(13) => &mut regs.r13,
        Reg::R(14) => &mut regs.r14,
        Reg::R(15) => &mut regs.r15,
        Reg::Rip => &mut regs.rip,
        Reg::Eflags => &mut regs.rflags,
        _ => return None,
    })
}
