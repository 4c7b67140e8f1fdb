//! Saved x86_64 vCPUs.

use super::FrozenVcpu;
use super::inspected::Inspected;
use super::report::{Hex, PstateReport, RflagsReport};
use crate::state::x86_64::{Features, SegmentState, VcpuState};
use guest_debug::state::WatchState;
use guest_debug::x86_64::mode::{CodeRegisters, CodeSegment, Mode};
use guest_debug::x86_64::{Reg, VaBits, dbgreg, watch, xsave};
use guest_debug::{DebugCaps, DebugVcpu as _, X86_64};

// KVM_MP_STATE_UNINITIALIZED and KVM_MP_STATE_INIT_RECEIVED: it waits for INIT, or for SIPI. By their numbers, because the kernel's
// bindings are a dependency on hosts with KVM alone.
const WAITING: [u32; 2] = [1, 2];

/// CPUID leaf 1, ECX: AVX.
const CPUID_AVX: u32 = 1 << 28;

const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;

const IF: u64 = 1 << 9;

impl Inspected for X86_64 {
    fn is_powered_on(vcpu: &VcpuState) -> bool {
        !WAITING.contains(&vcpu.mp_state)
    }

    fn registers(vcpu: VcpuState, features: &Features) -> Vec<(Reg, Vec<u8>)> {
        let has_avx = features.cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_AVX != 0);
        let avx = if has_avx { &Reg::AVX[..] } else { &[] };
        let all = [&Reg::CORE[..], &Reg::SSE, &Reg::SEGMENTS, &Reg::SYSTEM, &Reg::HIDDEN, avx];
        let value = |reg: &Reg| {
            let mut bytes = match integer(&vcpu, *reg) {
                Some(value) => value.to_le_bytes().to_vec(),
                None => xsave::read(&vcpu.xsave, *reg)?.to_vec(),
            };
            bytes.resize(reg.size(), 0);
            Some((*reg, bytes))
        };
        all.into_iter().flatten().filter_map(value).collect()
    }

    fn sp(vcpu: &FrozenVcpu<Self>) -> Option<u64> {
        vcpu.get_u64(Reg::Rsp).ok()
    }

    fn pstate(_: &FrozenVcpu<Self>) -> Option<PstateReport> {
        None
    }

    fn rflags(vcpu: &FrozenVcpu<Self>) -> Option<RflagsReport> {
        let get = |reg| vcpu.get_u64(reg).ok();
        let rflags = get(Reg::Eflags)?;
        let (cr0, efer, cs, base) = (get(Reg::Cr0)?, get(Reg::Efer)?, get(Reg::Cs)?, get(Reg::CsBase)?);
        let code = CodeRegisters { cr0, efer, rflags, cs, base, access_rights: get(Reg::CsAr)? };
        let CodeSegment { mode, cpl, .. } = CodeSegment::new(&code);
        let mode = match mode {
            Mode::Real => "real",
            Mode::Virtual8086 => "virtual-8086",
            Mode::Protected => "protected",
            Mode::Compatibility => "compatibility",
            Mode::Bits64 => "64-bit",
        };
        Some(RflagsReport { value: Hex(rflags), mode, cpl, interrupts: rflags & IF != 0 })
    }

    /// Every CPU has as many.
    fn caps(_: &FrozenVcpu<Self>) -> DebugCaps {
        DebugCaps { guest_debug: true, hw_bps: dbgreg::SLOTS, hw_wps: dbgreg::SLOTS, control_flags: 0 }
    }

    fn slots(watch: &WatchState) -> usize {
        let plan = watch::plan(watch.kind, watch.address, watch.length, VaBits::Bits57);
        plan.map_or(0, |plan| plan.slots.len())
    }

    fn original(saved: &[u8; 4]) -> &[u8] {
        saved.split_at(1).0
    }

    fn instruction(_: [u8; 4]) -> Option<Hex> {
        None
    }
}

/// What is no part of the XSAVE area, if the vCPU has it.
fn integer(vcpu: &VcpuState, reg: Reg) -> Option<u64> {
    let VcpuState { regs, sregs, .. } = vcpu;
    let selector = |segment: SegmentState| u64::from(segment.selector);
    let msr = |index| vcpu.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value);
    Some(match reg {
        Reg::Rax => regs.rax,
        Reg::Rbx => regs.rbx,
        Reg::Rcx => regs.rcx,
        Reg::Rdx => regs.rdx,
        Reg::Rsi => regs.rsi,
        Reg::Rdi => regs.rdi,
        Reg::Rbp => regs.rbp,
        Reg::Rsp => regs.rsp,
        Reg::R(8) => regs.r8,
        Reg::R(9) => regs.r9,
        Reg::R(10) => regs.r10,
        Reg::R(11) => regs.r11,
        Reg::R(12) => regs.r12,
        Reg::R(13) => regs.r13,
        Reg::R(14) => regs.r14,
        Reg::R(15) => regs.r15,
        Reg::Rip => regs.rip,
        Reg::Eflags => regs.rflags,
        Reg::Cs => selector(sregs.cs),
        Reg::Ss => selector(sregs.ss),
        Reg::Ds => selector(sregs.ds),
        Reg::Es => selector(sregs.es),
        Reg::Fs => selector(sregs.fs),
        Reg::Gs => selector(sregs.gs),
        Reg::FsBase => sregs.fs.base,
        Reg::GsBase => sregs.gs.base,
        Reg::Cr0 => sregs.cr0,
        Reg::Cr2 => sregs.cr2,
        Reg::Cr3 => sregs.cr3,
        Reg::Cr4 => sregs.cr4,
        Reg::Cr8 => sregs.cr8,
        Reg::Efer => sregs.efer,
        Reg::CsBase => sregs.cs.base,
        Reg::CsAr => sregs.cs.access.into(),
        Reg::SsBase => sregs.ss.base,
        Reg::SsAr => sregs.ss.access.into(),
        Reg::IdtBase => sregs.idt.base,
        Reg::KGsBase => msr(KERNEL_GS_BASE)?,
        Reg::Lstar => msr(LSTAR)?,
        Reg::Fmask => msr(FMASK)?,
        _ => return None,
    })
}
