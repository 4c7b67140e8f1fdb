//! The names of a vCPU's registers, independent of any hypervisor's numbering.

use std::fmt;

/// A system register by its encoding, as MRS and MSR name it (Arm ARM, C5.1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg {
    /// `op0`, 2 bits.
    pub op0: u8,
    /// `op1`, 3 bits.
    pub op1: u8,
    /// `CRn`, 4 bits.
    pub crn: u8,
    /// `CRm`, 4 bits.
    pub crm: u8,
    /// `op2`, 3 bits.
    pub op2: u8,
}

impl SysReg {
    /// A register from its five fields; bits beyond a field's width are dropped.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0: op0 & 3, op1: op1 & 7, crn: crn & 15, crm: crm & 15, op2: op2 & 7 }
    }

    /// The 16-bit form that both MRS/MSR (bits 20:5) and KVM use: op0:op1:CRn:CRm:op2.
    pub const fn encoding(self) -> u16 {
        (self.op0 as u16) << 14
            | (self.op1 as u16) << 11
            | (self.crn as u16) << 7
            | (self.crm as u16) << 3
            | self.op2 as u16
    }

    /// The register that has this 16-bit form.
    pub const fn from_encoding(bits: u16) -> Self {
        Self::new((bits >> 14) as u8, (bits >> 11) as u8, (bits >> 7) as u8, (bits >> 3) as u8, bits as u8)
    }

    /// MDSCR_EL1, monitor debug system control.
    pub const MDSCR_EL1: Self = Self::new(2, 0, 0, 2, 2);
    /// MPIDR_EL1, multiprocessor affinity.
    pub const MPIDR_EL1: Self = Self::new(3, 0, 0, 0, 5);
    /// ID_AA64PFR0_EL1, processor features 0.
    pub const ID_AA64PFR0_EL1: Self = Self::new(3, 0, 0, 4, 0);
    /// ID_AA64DFR1_EL1, debug features 1.
    pub const ID_AA64DFR1_EL1: Self = Self::new(3, 0, 0, 5, 1);
    /// ID_AA64PFR1_EL1, processor features 1.
    pub const ID_AA64PFR1_EL1: Self = Self::new(3, 0, 0, 4, 1);
    /// ID_AA64ISAR1_EL1, instruction set attributes 1.
    pub const ID_AA64ISAR1_EL1: Self = Self::new(3, 0, 0, 6, 1);
    /// ID_AA64ISAR2_EL1, instruction set attributes 2.
    pub const ID_AA64ISAR2_EL1: Self = Self::new(3, 0, 0, 6, 2);
    /// ID_AA64MMFR0_EL1, memory model features 0.
    pub const ID_AA64MMFR0_EL1: Self = Self::new(3, 0, 0, 7, 0);
    /// ID_AA64MMFR1_EL1, memory model features 1.
    pub const ID_AA64MMFR1_EL1: Self = Self::new(3, 0, 0, 7, 1);
    /// ID_AA64MMFR2_EL1, memory model features 2.
    pub const ID_AA64MMFR2_EL1: Self = Self::new(3, 0, 0, 7, 2);
    /// SCTLR_EL1, system control.
    pub const SCTLR_EL1: Self = Self::new(3, 0, 1, 0, 0);
    /// TTBR0_EL1, translation table base 0.
    pub const TTBR0_EL1: Self = Self::new(3, 0, 2, 0, 0);
    /// TTBR1_EL1, translation table base 1.
    pub const TTBR1_EL1: Self = Self::new(3, 0, 2, 0, 1);
    /// TCR_EL1, translation control.
    pub const TCR_EL1: Self = Self::new(3, 0, 2, 0, 2);
    /// ESR_EL1, exception syndrome.
    pub const ESR_EL1: Self = Self::new(3, 0, 5, 2, 0);
    /// FAR_EL1, fault address.
    pub const FAR_EL1: Self = Self::new(3, 0, 6, 0, 0);
    /// MAIR_EL1, memory attributes.
    pub const MAIR_EL1: Self = Self::new(3, 0, 10, 2, 0);
    /// VBAR_EL1, vector base address.
    pub const VBAR_EL1: Self = Self::new(3, 0, 12, 0, 0);
    /// CONTEXTIDR_EL1, context id.
    pub const CONTEXTIDR_EL1: Self = Self::new(3, 0, 13, 0, 1);
    /// TPIDR_EL1, software thread id of EL1.
    pub const TPIDR_EL1: Self = Self::new(3, 0, 13, 0, 4);
    /// TPIDR_EL0, software thread id of EL0, read and write.
    pub const TPIDR_EL0: Self = Self::new(3, 3, 13, 0, 2);
    /// TPIDRRO_EL0, software thread id of EL0, read-only there.
    pub const TPIDRRO_EL0: Self = Self::new(3, 3, 13, 0, 3);
    /// DCZID_EL0, block size of DC ZVA.
    pub const DCZID_EL0: Self = Self::new(3, 3, 0, 0, 7);

    /// DBGBVR`n`_EL1, breakpoint value.
    pub const fn dbgbvr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 4)
    }
    /// DBGBCR`n`_EL1, breakpoint control.
    pub const fn dbgbcr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 5)
    }
    /// DBGWVR`n`_EL1, watchpoint value.
    pub const fn dbgwvr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 6)
    }
    /// DBGWCR`n`_EL1, watchpoint control.
    pub const fn dbgwcr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 7)
    }
}

impl fmt::Debug for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `S<op0>_<op1>_C<n>_C<m>_<op2>`, the Arm ARM's generic name.
impl fmt::Display for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0, self.op1, self.crn, self.crm, self.op2)
    }
}

/// A register of an arm64 vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reg {
    /// General register X0 to X30.
    X(u8),
    /// SP_EL0.
    SpEl0,
    /// Program counter.
    Pc,
    /// PSTATE in the layout of SPSR_EL1.
    Pstate,
    /// SP_EL1.
    SpEl1,
    /// ELR_EL1.
    ElrEl1,
    /// SPSR_EL1.
    SpsrEl1,
    /// SIMD and floating-point register V0 to V31, 16 bytes. With SVE, the low 16 bytes of Z.
    V(u8),
    /// FPSR, 4 bytes.
    Fpsr,
    /// FPCR, 4 bytes.
    Fpcr,
    /// SVE vector register Z0 to Z31 at its architectural maximum of 256 bytes.
    Z(u8),
    /// SVE predicate register P0 to P15 at its architectural maximum of 32 bytes.
    P(u8),
    /// SVE first-fault register, 32 bytes.
    Ffr,
    /// SVE vector lengths that the vCPU may use: bit `n` set means `16 * (n + 1)` bytes, 64 bytes of bitmap.
    SveVls,
    /// A system register, 8 bytes.
    Sys(SysReg),
}

impl Reg {
    /// Length in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::V(_) => 16,
            Self::Fpsr | Self::Fpcr => 4,
            Self::Z(_) => 256,
            Self::P(_) | Self::Ffr => 32,
            Self::SveVls => 64,
            _ => 8,
        }
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X(n) => write!(f, "x{n}"),
            Self::SpEl0 => f.write_str("sp_el0"),
            Self::Pc => f.write_str("pc"),
            Self::Pstate => f.write_str("pstate"),
            Self::SpEl1 => f.write_str("sp_el1"),
            Self::ElrEl1 => f.write_str("elr_el1"),
            Self::SpsrEl1 => f.write_str("spsr_el1"),
            Self::V(n) => write!(f, "v{n}"),
            Self::Fpsr => f.write_str("fpsr"),
            Self::Fpcr => f.write_str("fpcr"),
            Self::Z(n) => write!(f, "z{n}"),
            Self::P(n) => write!(f, "p{n}"),
            Self::Ffr => f.write_str("ffr"),
            Self::SveVls => f.write_str("sve_vls"),
            Self::Sys(reg) => reg.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips_for_every_value() {
        for bits in 0..=u16::MAX {
            assert_eq!(SysReg::from_encoding(bits).encoding(), bits);
        }
    }

    #[test]
    fn known_encodings_are_those_of_the_instruction() {
        // MRS X0, SCTLR_EL1 is 0xd5381000, its bits 20:5 hold the register.
        assert_eq!(SysReg::SCTLR_EL1.encoding() & 0x7fff, ((0xd538_1000u32 >> 5) & 0x7fff) as u16);
        assert_eq!(SysReg::TPIDR_EL0.to_string(), "S3_3_C13_C0_2");
    }
}
