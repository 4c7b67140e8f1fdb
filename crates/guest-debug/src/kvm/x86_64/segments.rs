//! Registers of `KVM_GET_SREGS`: segments, control registers, EFER, the IDT.

use super::os;
use crate::VcpuError;
use crate::x86_64::Reg;
use kvm_bindings::{kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// Whether it is one of them.
pub(super) fn has(reg: Reg) -> bool {
    value(kvm_sregs::default(), reg).is_some()
}

pub(super) fn get(fd: &VcpuFd) -> Result<kvm_sregs, VcpuError> {
    fd.get_sregs().map_err(os("KVM_GET_SREGS"))
}

pub(super) fn value(mut sregs: kvm_sregs, reg: Reg) -> Option<u64> {
    part_of_segment(&mut sregs, reg).or_else(|| field(&mut sregs, reg).copied())
}

pub(super) fn write(fd: &VcpuFd, reg: Reg, value: u64) -> Result<bool, VcpuError> {
    if !has(reg) {
        return Ok(false);
    }
    let mut sregs = get(fd)?;
    if let Some(now) = part_of_segment(&mut sregs, reg) {
        // A debugger writes all registers back for a call. Another selector alone would not load the segment.
        return if now == value { Ok(true) } else { Err(VcpuError::Unsupported("loading a segment")) };
    }
    if let Some(field) = field(&mut sregs, reg) {
        if *field == value {
            return Ok(true);
        }
        *field = value;
    }
    fd.set_sregs(&sregs).map_err(os("KVM_SET_SREGS"))?;
    Ok(true)
}

/// What a load of the segment writes, all of it at once.
fn part_of_segment(sregs: &mut kvm_sregs, reg: Reg) -> Option<u64> {
    if let Some(segment) = segment(sregs, reg) {
        return Some(segment.selector.into());
    }
    Some(match reg {
        Reg::CsBase => sregs.cs.base,
        Reg::CsAr => access_rights(&sregs.cs),
        Reg::SsBase => sregs.ss.base,
        Reg::SsAr => access_rights(&sregs.ss),
        _ => return None,
    })
}

fn segment(sregs: &mut kvm_sregs, reg: Reg) -> Option<&mut kvm_segment> {
    Some(match reg {
        Reg::Cs => &mut sregs.cs,
        Reg::Ss => &mut sregs.ss,
        Reg::Ds => &mut sregs.ds,
        Reg::Es => &mut sregs.es,
        Reg::Fs => &mut sregs.fs,
        Reg::Gs => &mut sregs.gs,
        _ => return None,
    })
}

fn field(sregs: &mut kvm_sregs, reg: Reg) -> Option<&mut u64> {
    Some(match reg {
        Reg::FsBase => &mut sregs.fs.base,
        Reg::GsBase => &mut sregs.gs.base,
        Reg::Cr0 => &mut sregs.cr0,
        Reg::Cr2 => &mut sregs.cr2,
        Reg::Cr3 => &mut sregs.cr3,
        Reg::Cr4 => &mut sregs.cr4,
        Reg::Cr8 => &mut sregs.cr8,
        Reg::Efer => &mut sregs.efer,
        Reg::IdtBase => &mut sregs.idt.base,
        _ => return None,
    })
}

/// In the layout of the VMCS (SDM table 24-2).
fn access_rights(segment: &kvm_segment) -> u64 {
    let fields = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (segment.present, 7),
        (segment.avl, 12),
        (segment.l, 13),
        (segment.db, 14),
        (segment.g, 15),
        (segment.unusable, 16),
    ];
    fields.into_iter().fold(0, |bits, (field, shift)| bits | u64::from(field) << shift)
}
