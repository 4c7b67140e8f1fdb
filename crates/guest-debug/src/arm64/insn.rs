//! Decoding of the A64 instructions that a debugger must know about: those that read or write the interrupt masks,
//! wait, leave the exception level, branch, or access memory (Arm ARM, C4.1 "A64 instruction set encoding").

mod access;
mod exclusive;
mod simulate;
mod stretch;

pub use access::{Access, MAX_BLOCK, access};
pub use exclusive::{MAX_INSTRUCTIONS, Sequence, exclusive_sequence};
pub use simulate::{General, Simulated, simulate};
pub use stretch::{MAX_STRETCH, Stretch, is_plain, stretch};

use crate::arm64::SysReg;

/// An instruction, as far as stepping cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Insn {
    /// `MSR DAIFSet, #imm`: the immediate, D A I F in bits 3 to 0.
    MsrDaifSet(u8),
    /// `MSR DAIFClr, #imm`: the immediate, D A I F in bits 3 to 0.
    MsrDaifClr(u8),
    /// `MSR DAIF, Xt`.
    MsrDaif {
        /// Number of the general register, 31 for XZR.
        rt: u8,
    },
    /// `MRS Xt, DAIF`.
    MrsDaif {
        /// Number of the general register, 31 for XZR.
        rt: u8,
    },
    /// WFI.
    Wfi,
    /// WFE.
    Wfe,
    /// `WFIT Xt`.
    Wfit {
        /// Number of the general register that holds the deadline.
        rt: u8,
    },
    /// `WFET Xt`.
    Wfet {
        /// Number of the general register that holds the deadline.
        rt: u8,
    },
    /// SVC with its immediate.
    Svc(u16),
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// BRK with its immediate.
    Brk(u16),
    /// HLT.
    Hlt,
    /// ERET, ERETAA and ERETAB.
    Eret,
    /// LDXR, LDAXR, LDXP, LDAXP of any size, LDTXR and LDATXR.
    LoadExclusive,
    /// STXR, STLXR, STXP, STLXP of any size, STTXR and STLTXR.
    StoreExclusive,
    /// A branch, but not ERET.
    Branch(Branch),
    /// MRS or MSR of a register other than DAIF.
    SystemRegister {
        /// MRS, not MSR.
        read: bool,
        /// The register.
        reg: SysReg,
        /// Number of the general register, 31 for XZR.
        rt: u8,
    },
    /// DC ZVA, DC GVA and DC GZVA.
    DcZva {
        /// Number of the general register that holds the address.
        rt: u8,
    },
    /// SYS and SYSL: every other cache, TLB and address translation operation; and what accesses a pair of system registers.
    System,
    /// Anything else, words that are no instruction included.
    Other,
}

/// A branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Branch {
    /// B and BL.
    Immediate {
        /// Distance from the branch in bytes.
        offset: i64,
        /// BL: X30 is written.
        link: bool,
    },
    /// B.cond, BC.cond, CBZ, CBNZ, TBZ, TBNZ and compare-and-branch.
    Conditional {
        /// Distance from the branch in bytes, if it is taken.
        offset: i64,
    },
    /// BR, BLR, RET and their authenticating forms.
    Register {
        /// Number of the general register that holds the address.
        rn: u8,
        /// BLR and its forms: X30 is written.
        link: bool,
    },
}

impl Branch {
    /// Where a branch at `pc` goes if it is taken; `None` for a register branch.
    pub const fn target(self, pc: u64) -> Option<u64> {
        match self {
            Self::Immediate { offset, .. } | Self::Conditional { offset } => Some(pc.wrapping_add_signed(offset)),
            Self::Register { .. } => None,
        }
    }
}

/// Decodes an instruction. Any word decodes to something.
pub const fn decode(word: u32) -> Insn {
    if let Some(branch) = branch(word) {
        return Insn::Branch(branch);
    }
    match word >> 24 {
        0xd4 => exception_generating(word),
        0xd5 => system(word),
        _ if matches!(word, 0xd69f_03e0 | 0xd69f_0bff | 0xd69f_0fff) => Insn::Eret,
        _ if is_exclusive(word) && is_load(word) => Insn::LoadExclusive,
        _ if is_exclusive(word) => Insn::StoreExclusive,
        _ => Insn::Other,
    }
}

/// Bits `low` to `low + width - 1` of a word.
const fn bits(word: u32, low: u32, width: u32) -> u32 {
    word >> low & ((1 << width) - 1)
}

const fn rt(word: u32) -> u8 {
    bits(word, 0, 5) as u8
}

/// Bit 22 is set in the loads of the exclusive and ordered classes.
const fn is_load(word: u32) -> bool {
    word & 1 << 22 != 0
}

/// Exclusive loads and stores, pairs and unprivileged ones included; CASP shares the space of the pairs.
const fn is_exclusive(word: u32) -> bool {
    let single = word & 0x3fa0_0000 == 0x0800_0000;
    let pair = word & 0xbfa0_0000 == 0x8820_0000;
    let unprivileged = word & 0xbfa0_0000 == 0x8900_0000;
    single || pair || unprivileged
}

const fn branch(word: u32) -> Option<Branch> {
    // An immediate of `width` bits counts instructions, and is signed.
    const fn offset(word: u32, low: u32, width: u32) -> i64 {
        ((bits(word, low, width) << (32 - width)) as i32 >> (32 - width)) as i64 * 4
    }
    if word & 0x7c00_0000 == 0x1400_0000 {
        return Some(Branch::Immediate { offset: offset(word, 0, 26), link: word >> 31 != 0 });
    }
    let conditional = word >> 24 == 0x54;
    let on_zero = word & 0x7e00_0000 == 0x3400_0000;
    let on_bit = word & 0x7e00_0000 == 0x3600_0000;
    let on_compare = word & 0x7e00_0000 == 0x7400_0000;
    if conditional || on_zero {
        return Some(Branch::Conditional { offset: offset(word, 5, 19) });
    }
    if on_bit {
        return Some(Branch::Conditional { offset: offset(word, 5, 14) });
    }
    if on_compare {
        return Some(Branch::Conditional { offset: offset(word, 5, 9) });
    }
    // The authenticating returns take their target from X30.
    if word & 0xffc0_001f == 0x5500_001f {
        return Some(Branch::Register { rn: 30, link: false });
    }
    // opc 0 to 2 are BR, BLR and RET, 8 and 9 the first two with a modifier register; 4 is ERET.
    if word & 0xfe1f_0000 == 0xd61f_0000 {
        return match bits(word, 21, 4) {
            0 | 2 | 8 => Some(Branch::Register { rn: bits(word, 5, 5) as u8, link: false }),
            1 | 9 => Some(Branch::Register { rn: bits(word, 5, 5) as u8, link: true }),
            _ => None,
        };
    }
    None
}

const fn exception_generating(word: u32) -> Insn {
    let imm16 = bits(word, 5, 16) as u16;
    match word & 0xffe0_001f {
        0xd400_0001 => Insn::Svc(imm16),
        0xd400_0002 => Insn::Hvc,
        0xd400_0003 => Insn::Smc,
        0xd420_0000 => Insn::Brk(imm16),
        0xd440_0000 => Insn::Hlt,
        _ => Insn::Other,
    }
}

const fn system(word: u32) -> Insn {
    const DAIF: SysReg = SysReg::new(3, 3, 4, 2, 1);
    let read = word & 1 << 21 != 0;
    let rt = rt(word);
    let imm = bits(word, 8, 4) as u8;
    match word & 0xffff_f0ff {
        0xd503_40df => return Insn::MsrDaifSet(imm),
        0xd503_40ff => return Insn::MsrDaifClr(imm),
        _ => {}
    }
    match word {
        0xd503_205f => return Insn::Wfe,
        0xd503_207f => return Insn::Wfi,
        _ => {}
    }
    match word & !0x1f {
        0xd503_1000 => return Insn::Wfet { rt },
        0xd503_1020 => return Insn::Wfit { rt },
        0xd50b_7420 | 0xd50b_7460 | 0xd50b_7480 => return Insn::DcZva { rt },
        _ => {}
    }
    // Bits 23:22 are 01 for instructions on a pair of registers: MRRS, MSRR and SYSP.
    match (bits(word, 22, 2), bits(word, 19, 2)) {
        (0, 1) | (1, _) => Insn::System,
        (0, 2 | 3) => {
            let reg = SysReg::from_encoding((word >> 5) as u16 & 0x7fff | 1 << 15);
            match (reg.encoding() == DAIF.encoding(), read) {
                (true, true) => Insn::MrsDaif { rt },
                (true, false) => Insn::MsrDaif { rt },
                (false, _) => Insn::SystemRegister { read, reg, rt },
            }
        }
        _ => Insn::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn conditional(offset: i64) -> Insn {
        Insn::Branch(Branch::Conditional { offset })
    }

    const fn register(rn: u8, link: bool) -> Insn {
        Insn::Branch(Branch::Register { rn, link })
    }

    /// Words as the GNU assembler makes them.
    #[test]
    fn assembled_instructions() {
        let cases = [
            (0xd503_42df, Insn::MsrDaifSet(2)),
            (0xd503_4fff, Insn::MsrDaifClr(15)),
            (0xd51b_4223, Insn::MsrDaif { rt: 3 }),
            (0xd53b_423e, Insn::MrsDaif { rt: 30 }),
            (0xd503_207f, Insn::Wfi),
            (0xd503_205f, Insn::Wfe),
            (0xd503_1025, Insn::Wfit { rt: 5 }),
            (0xd503_1006, Insn::Wfet { rt: 6 }),
            (0xd402_4681, Insn::Svc(0x1234)),
            (0xd400_0022, Insn::Hvc),
            (0xd400_0043, Insn::Smc),
            (0xd421_0000, Insn::Brk(0x800)),
            (0xd440_0060, Insn::Hlt),
            (0xd69f_03e0, Insn::Eret),
            (0xd69f_0bff, Insn::Eret),
            (0xd69f_0fff, Insn::Eret),
            (0x1400_0040, Insn::Branch(Branch::Immediate { offset: 0x100, link: false })),
            (0x97ff_ffc0, Insn::Branch(Branch::Immediate { offset: -0x100, link: true })),
            (0x5400_0041, conditional(8)),
            (0x54ff_ffd0, conditional(-8)),
            (0xb400_0200, conditional(0x40)),
            (0x35ff_fe00, conditional(-0x40)),
            (0xb6f8_0100, conditional(0x20)),
            (0x371f_ff00, conditional(-0x20)),
            (0xd61f_0060, register(3, false)),
            (0xd63f_0080, register(4, true)),
            (0xd65f_03c0, register(30, false)),
            (0xd65f_0bff, register(31, false)),
            (0xd71f_0822, register(1, false)),
            (0xd518_1007, Insn::SystemRegister { read: false, reg: SysReg::SCTLR_EL1, rt: 7 }),
            (0xd53b_e048, Insn::SystemRegister { read: true, reg: SysReg::new(3, 3, 14, 0, 2), rt: 8 }),
            (0xd50b_7429, Insn::DcZva { rt: 9 }),
            (0xd50b_7469, Insn::DcZva { rt: 9 }),
            (0xd50b_748a, Insn::DcZva { rt: 10 }),
            (0xd508_762b, Insn::System),
            (0xd50b_7e2c, Insn::System),
            (0xd508_871f, Insn::System),
            (0xd503_3f5f, Insn::Other),
            (0xd503_201f, Insn::Other),
            (0xd503_3bbf, Insn::Other),
            (0xd500_419f, Insn::Other),
            (0x8b02_0020, Insn::Other),
            (0, Insn::Other),
        ];
        for (word, insn) in cases {
            assert_eq!(decode(word), insn, "{word:#010x}");
        }
    }

    #[test]
    fn exclusives_and_their_neighbours() {
        for word in [0xc85f_7c20, 0x085f_fc20, 0xc87f_0440, 0x887f_87e0, 0xc95f_7c20] {
            assert_eq!(decode(word), Insn::LoadExclusive, "{word:#010x}");
        }
        for word in [0xc800_7c41, 0x4800_fc41, 0xc820_8861, 0x8900_7c41] {
            assert_eq!(decode(word), Insn::StoreExclusive, "{word:#010x}");
        }
        // CASP, CASPAL, CAS, LDAR, STLR, STLLRB.
        for word in [0x0820_7c82, 0x4860_fc82, 0xc8a0_7c41, 0x88df_fc20, 0xc89f_fc20, 0x089f_7c20] {
            assert_eq!(decode(word), Insn::Other, "{word:#010x}");
        }
    }

    #[test]
    fn targets_wrap_like_the_program_counter() {
        let back = Branch::Conditional { offset: -8 };
        assert_eq!(back.target(0x1000), Some(0xff8));
        assert_eq!(back.target(0), Some(0xffff_ffff_ffff_fff8));
        assert_eq!(Branch::Register { rn: 1, link: false }.target(0x1000), None);
    }

    proptest! {
        #[test]
        fn any_word_decodes(word: u32, pc: u64) {
            if let Insn::Branch(branch) = decode(word) {
                let _ = branch.target(pc);
            }
            let _ = access(word);
        }
    }
}
