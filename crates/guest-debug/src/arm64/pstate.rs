//! PSTATE, in the layout that SPSR_EL1 gives it.

use std::fmt;

/// Process state in the layout of SPSR_EL1 (Arm ARM, C5.2 "SPSR_EL1, Saved Program Status Register").
///
/// KVM's `pstate` core register has the same layout.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Pstate(pub u64);

impl Pstate {
    /// Mode field `M[3:0]`: exception level in bits 3:2, stack pointer in bit 0; AArch32 modes when [`Self::NRW`] is set.
    pub const MODE: u64 = 0xf;
    /// `M[4]`, set for AArch32.
    pub const NRW: u64 = 1 << 4;
    /// FIQ mask.
    pub const F: u64 = 1 << 6;
    /// IRQ mask.
    pub const I: u64 = 1 << 7;
    /// SError mask.
    pub const A: u64 = 1 << 8;
    /// Debug exception mask.
    pub const D: u64 = 1 << 9;
    /// All four masks, as MSR DAIF has them.
    pub const DAIF: u64 = Self::D | Self::A | Self::I | Self::F;
    /// Branch type of FEAT_BTI, two bits.
    pub const BTYPE: u64 = 3 << 10;
    /// Speculative store bypass safe, FEAT_SSBS.
    pub const SSBS: u64 = 1 << 12;
    /// All-interrupt mask, FEAT_NMI.
    pub const ALLINT: u64 = 1 << 13;
    /// Illegal execution state.
    pub const IL: u64 = 1 << 20;
    /// Software step.
    pub const SS: u64 = 1 << 21;
    /// Privileged access never, FEAT_PAN.
    pub const PAN: u64 = 1 << 22;
    /// User access override, FEAT_UAO.
    pub const UAO: u64 = 1 << 23;
    /// Data independent timing, FEAT_DIT.
    pub const DIT: u64 = 1 << 24;
    /// Tag check override, FEAT_MTE.
    pub const TCO: u64 = 1 << 25;
    /// Condition flags N, Z, C and V.
    pub const NZCV: u64 = 0xf << 28;
    /// Profiling exception mask, FEAT_EBEP.
    pub const PM: u64 = 1 << 32;

    /// Mode field of EL0.
    pub const EL0T: u64 = 0b0000;
    /// Mode field of EL1 on SP_EL0.
    pub const EL1T: u64 = 0b0100;
    /// Mode field of EL1 on SP_EL1.
    pub const EL1H: u64 = 0b0101;

    /// The current exception level, 0 to 3. AArch32 user mode is 0, every other AArch32 mode a KVM guest can be in is 1.
    pub const fn el(self) -> u8 {
        if self.is_aarch32() {
            return if self.0 & Self::MODE == 0 { 0 } else { 1 };
        }
        (self.0 >> 2 & 3) as u8
    }

    /// Whether SP is the exception level's own stack pointer (`true`) or SP_EL0 (`false`). Means nothing for AArch32.
    pub const fn sp_sel(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the state is one of AArch32.
    pub const fn is_aarch32(self) -> bool {
        self.contains(Self::NRW)
    }

    /// Whether IRQs are masked by PSTATE.I.
    pub const fn irq_masked(self) -> bool {
        self.contains(Self::I)
    }

    /// Whether FIQs are masked by PSTATE.F.
    pub const fn fiq_masked(self) -> bool {
        self.contains(Self::F)
    }

    /// Whether SErrors are masked by PSTATE.A.
    pub const fn serror_masked(self) -> bool {
        self.contains(Self::A)
    }

    /// Whether debug exceptions are masked by PSTATE.D.
    pub const fn debug_masked(self) -> bool {
        self.contains(Self::D)
    }

    /// Whether all of `bits` are set.
    pub const fn contains(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// This state with `bits` set.
    #[must_use]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// This state with `bits` clear.
    #[must_use]
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// This state, its `mask` bits taken from `other`: how PSTATE.I and F are put back after a step.
    #[must_use]
    pub const fn with_bits_of(self, other: Self, mask: u64) -> Self {
        Self(self.0 & !mask | other.0 & mask)
    }
}

impl fmt::Debug for Pstate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pstate({:#x})", self.0)
    }
}

/// Mode, then the masks that are set: `EL1h DAIF (0x3c5)`.
impl fmt::Display for Pstate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_aarch32() {
            write!(f, "AArch32 mode {:#x}", self.0 & 0x1f)?;
        } else {
            write!(f, "EL{}{}", self.el(), if self.sp_sel() { 'h' } else { 't' })?;
        }
        let masks = [(Self::D, 'D'), (Self::A, 'A'), (Self::I, 'I'), (Self::F, 'F')];
        let masks: String = masks.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, name)| name).collect();
        if !masks.is_empty() {
            write!(f, " {masks}")?;
        }
        write!(f, " ({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_of_a_booting_kernel() {
        let pstate = Pstate(0x3c5);
        assert_eq!(pstate.el(), 1);
        assert!(pstate.sp_sel() && pstate.irq_masked() && pstate.fiq_masked());
        assert!(pstate.serror_masked() && pstate.debug_masked() && !pstate.is_aarch32());
        assert_eq!(pstate.to_string(), "EL1h DAIF (0x3c5)");
    }

    #[test]
    fn mode_of_user_code() {
        let pstate = Pstate(0x8000_0000);
        assert_eq!(pstate.el(), 0);
        assert!(!pstate.sp_sel() && !pstate.irq_masked());
        assert_eq!(pstate.to_string(), "EL0t (0x80000000)");
    }

    #[test]
    fn aarch32_modes() {
        assert!(Pstate(0x10).is_aarch32());
        assert_eq!(Pstate(0x10).el(), 0, "user");
        assert_eq!(Pstate(0x13).el(), 1, "supervisor");
    }

    #[test]
    fn interrupt_masks_are_put_back_alone() {
        let mask = Pstate::I | Pstate::F;
        let stepped = Pstate(0x6000_03c5);
        let wanted = Pstate(0x305);
        assert_eq!(stepped.with_bits_of(wanted, mask), Pstate(0x6000_0305));
        assert_eq!(wanted.with(mask).without(mask), wanted);
    }
}
