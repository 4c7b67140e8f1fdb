//! Taking an exception to EL1 in the guest's place.
//!
//! A debug exception that belongs to the guest (a BRK of its own, its own watchpoint) must look as if the CPU had taken
//! it. What that changes is laid down in the Arm ARM: J1.1.2 `AArch64.TakeException`, and D1.3 for the vectors.

use crate::arm64::Pstate;
use crate::arm64::syndrome::{Syndrome, ec};
use thiserror::Error;

/// SCTLR_EL1.SPAN: PSTATE.PAN is left alone when an exception is taken.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: PSTATE.SSBS after an exception.
const SCTLR_DSSBS: u64 = 1 << 44;
/// SCTLR_EL1.SPINTMASK: PSTATE.ALLINT is clear after an exception.
const SCTLR_SPINTMASK: u64 = 1 << 62;
/// VBAR_EL1 bits 10:0 are not part of the base.
const VBAR_BASE: u64 = !0x7ff;

/// Why an exception cannot be taken to EL1 in AArch64 state.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ExceptionError {
    /// The vCPU is in no state from which an exception goes to EL1 using AArch64.
    #[error("no exception to AArch64 EL1 from {0}: the vCPU must be at EL0, EL1t or EL1h, or in AArch32 user mode")]
    Mode(Pstate),
}

/// The processor features that decide about PSTATE after an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_MTE.
    pub mte: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_NMI.
    pub nmi: bool,
    /// FEAT_EBEP.
    pub ebep: bool,
}

impl Features {
    /// Features from the vCPU's ID_AA64PFR1_EL1, ID_AA64MMFR1_EL1 and ID_AA64DFR1_EL1.
    pub const fn new(pfr1: u64, mmfr1: u64, dfr1: u64) -> Self {
        const fn field(register: u64, low: u32) -> bool {
            register >> low & 0xf != 0
        }
        Self {
            pan: field(mmfr1, 20),
            mte: field(pfr1, 8),
            ssbs: field(pfr1, 4),
            nmi: field(pfr1, 36),
            ebep: field(dfr1, 48),
        }
    }
}

/// Register values after the exception was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The vector.
    pub pc: u64,
    /// PSTATE in the handler.
    pub pstate: Pstate,
    /// ELR_EL1: where the handler returns to.
    pub elr: u64,
    /// SPSR_EL1: PSTATE before the exception.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, `None` for an exception that leaves it alone.
    pub far: Option<u64>,
}

/// Takes a synchronous exception to EL1.
///
/// `pc` is the preferred return address: for every debug exception that of the instruction that raised it, except
/// after a software step, where it is the next one. `pstate` goes to SPSR as it is, so a debugger's own single-step
/// bit must not be in it. `far` is `None` for an exception that reports no address, a BRK for example.
///
/// PSTATE.EXLOCK is left clear: it is 1 only with a guarded control stack, which KVM gives to no guest whose
/// exceptions are taken here.
///
/// # Errors
///
/// [`ExceptionError::Mode`] where the exception would go elsewhere: AArch32 EL1, EL2, EL3 and reserved modes.
pub fn take_to_el1(
    pstate: Pstate,
    pc: u64,
    vbar: u64,
    sctlr: u64,
    esr: u64,
    far: Option<u64>,
    features: Features,
) -> Result<Entry, ExceptionError> {
    let offset = match pstate.0 & (Pstate::NRW | Pstate::MODE) {
        Pstate::EL1T => 0x000,
        Pstate::EL1H => 0x200,
        Pstate::EL0T => 0x400,
        // AArch32 user mode under an AArch64 kernel.
        Pstate::NRW => 0x600,
        _ => return Err(ExceptionError::Mode(pstate)),
    };

    // What is not named here is clear afterwards: SS, IL, UAO, BTYPE and the bits of later extensions.
    let kept = Pstate::NZCV | Pstate::DIT | if features.pan { Pstate::PAN } else { 0 };
    let set = [
        (features.pan && sctlr & SCTLR_SPAN == 0, Pstate::PAN),
        (features.mte, Pstate::TCO),
        (features.ssbs && sctlr & SCTLR_DSSBS != 0, Pstate::SSBS),
        (features.nmi && sctlr & SCTLR_SPINTMASK == 0, Pstate::ALLINT),
        (features.ebep, Pstate::PM),
    ];
    let set = set.iter().filter(|(on, _)| *on).fold(Pstate::EL1H | Pstate::DAIF, |bits, (_, bit)| bits | bit);

    Ok(Entry {
        pc: (vbar & VBAR_BASE) | offset,
        pstate: Pstate(pstate.0 & kept | set),
        elr: pc,
        spsr: pstate.0,
        esr,
        far,
    })
}

/// ESR_EL1 of a BRK; the same from either exception level. `il` is set for A64, whose instructions have 32 bits.
pub const fn brk_esr(imm16: u16, il: bool) -> u64 {
    let esr = Syndrome::new(ec::BRK, imm16 as u32).0;
    if il { esr } else { esr & !crate::arm64::syndrome::IL }
}

/// ESR_EL1 of a debug exception that came out of the guest with `hsr` and goes back to it.
///
/// Seen from EL2 the guest is always a lower exception level. Seen from EL1 it is one only if the exception came from
/// EL0; from EL1 itself the class is that of the same level. BRK and BKPT have one class for both.
pub const fn reflect_esr(hsr: u64, from: Pstate) -> u64 {
    let has_two_classes = matches!(Syndrome(hsr).ec(), ec::BREAKPOINT | ec::SOFTWARE_STEP | ec::WATCHPOINT);
    if has_two_classes && from.el() == 1 { hsr | 1 << crate::arm64::syndrome::EC_SHIFT } else { hsr }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VBAR: u64 = 0xffff_8000_8001_0800;
    const PC: u64 = 0xffff_8000_8123_4560;
    const NONE: Features = Features { pan: false, mte: false, ssbs: false, nmi: false, ebep: false };

    fn take(pstate: u64, sctlr: u64, features: Features) -> Entry {
        take_to_el1(Pstate(pstate), PC, VBAR, sctlr, 0xf200_0800, None, features).unwrap()
    }

    #[test]
    fn a_kernel_that_warns() {
        // EL1h, N and C set, interrupts on, PAN and SSBS set, as arm64 Linux runs.
        let pan = Features { pan: true, ssbs: true, ..NONE };
        let entry = take(0xa040_1005, 0, pan);
        assert_eq!(entry.pc, VBAR + 0x200);
        assert_eq!(entry.pstate, Pstate(0xa040_03c5), "SSBS follows DSSBS");
        assert_eq!((entry.elr, entry.spsr, entry.esr, entry.far), (PC, 0xa040_1005, 0xf200_0800, None));
    }

    #[test]
    fn one_vector_per_origin() {
        for (pstate, offset) in [(0x3c4, 0), (0x3c5, 0x200), (0, 0x400), (0x10, 0x600)] {
            assert_eq!(take(pstate, 0, NONE).pc, VBAR + offset, "{pstate:#x}");
        }
    }

    #[test]
    fn the_low_bits_of_vbar_are_no_address() {
        let entry = take_to_el1(Pstate(5), PC, 0x1fff, 0, 0, None, NONE).unwrap();
        assert_eq!(entry.pc, 0x1a00);
    }

    #[test]
    fn states_that_do_not_trap_to_el1() {
        for pstate in [0x1, 0x6, 0x8, 0x9, 0xd, 0x11, 0x13, 0x1f] {
            let taken = take_to_el1(Pstate(pstate), PC, VBAR, 0, 0, None, NONE);
            assert_eq!(taken, Err(ExceptionError::Mode(Pstate(pstate))));
        }
    }

    #[test]
    fn step_illegal_state_btype_and_uao_do_not_reach_the_handler() {
        let before = Pstate::SS | Pstate::IL | Pstate::BTYPE | Pstate::UAO;
        let entry = take(before | 5, 0, NONE);
        assert_eq!(entry.pstate, Pstate(0x3c5));
        assert_eq!(entry.spsr, before | 5);
    }

    #[test]
    fn features_and_sctlr_decide() {
        let all = Features::new(0x10_0000_0110, 0x10_0000, 1 << 48);
        assert_eq!(all, Features { pan: true, mte: true, ssbs: true, nmi: true, ebep: true });
        let masks = Pstate::DAIF | Pstate::EL1H | Pstate::PM;
        assert_eq!(take(0, 0, all).pstate.0, masks | Pstate::PAN | Pstate::TCO | Pstate::ALLINT);
        let sctlr = SCTLR_SPAN | SCTLR_DSSBS | SCTLR_SPINTMASK;
        assert_eq!(take(0, sctlr, all).pstate.0, masks | Pstate::TCO | Pstate::SSBS);
        assert_eq!(take(Pstate::PAN, sctlr, all).pstate.0 & Pstate::PAN, Pstate::PAN, "SPAN leaves PAN alone");
        assert_eq!(take(Pstate::DIT, 0, NONE).pstate.0, Pstate::DIT | Pstate::DAIF | Pstate::EL1H);
    }

    #[test]
    fn syndromes_seen_from_el1() {
        assert_eq!(brk_esr(0x800, true), 0xf200_0800);
        assert_eq!(brk_esr(0x800, false), 0xf000_0800);
        let (el0, el1) = (Pstate(0), Pstate(0x3c5));
        for (hsr, same) in [(0xc200_0022, 0xc600_0022), (0xca00_0022, 0xce00_0022), (0xd200_0062, 0xd600_0062)] {
            assert_eq!(reflect_esr(hsr, el1), same);
            assert_eq!(reflect_esr(hsr, el0), hsr);
        }
        assert_eq!(reflect_esr(0xf200_0800, el1), 0xf200_0800);
    }

    proptest! {
        #[test]
        fn the_handler_runs_masked_at_el1h(pstate: u64, pc: u64, vbar: u64, sctlr: u64, esr: u64, ids: [u64; 3]) {
            let features = Features::new(ids[0], ids[1], ids[2]);
            if let Ok(entry) = take_to_el1(Pstate(pstate), pc, vbar, sctlr, esr, Some(pc), features) {
                prop_assert!(entry.pstate.contains(Pstate::DAIF | Pstate::EL1H));
                prop_assert!(!entry.pstate.is_aarch32());
                prop_assert_eq!(entry.spsr, pstate);
                prop_assert_eq!(entry.pc % 0x80, 0);
            }
        }
    }
}
