//! KVM's numbering of arm64 registers for `KVM_GET_ONE_REG` (kernel: Documentation/virt/kvm/api.rst 4.68,
//! arch/arm64/include/uapi/asm/kvm.h). Pure, and tested on every host.

use crate::arm64::{Reg, SysReg};

const ARM64: u64 = 0x6000_0000_0000_0000;
const SIZE_SHIFT: u32 = 52;
const COPROC: u64 = 0x0fff_0000;
const CORE: u64 = 0x0010_0000;
const SYSREG: u64 = 0x0013_0000;
const SVE: u64 = 0x0015_0000;
const SVE_VLS: u64 = 0xffff;

// Offsets into `struct kvm_regs`, in bytes; the ids count in 32-bit words.
const SP_EL0: u64 = 31 * 8;
const PC: u64 = SP_EL0 + 8;
const PSTATE: u64 = PC + 8;
const SP_EL1: u64 = PSTATE + 8;
const ELR_EL1: u64 = SP_EL1 + 8;
const SPSR_EL1: u64 = ELR_EL1 + 8;
/// Behind the five SPSRs, at a multiple of 16.
const VREGS: u64 = 336;
const FPSR: u64 = VREGS + 32 * 16;
const FPCR: u64 = FPSR + 4;

/// CNTV_CVAL_EL0 and CNTVCT_EL0: KVM's ids for the two were swapped by mistake long ago, and stay so
/// (kernel: `KVM_REG_ARM_TIMER_CVAL`, `KVM_REG_ARM_TIMER_CNT`).
const CNTV_CVAL_EL0: SysReg = SysReg::new(3, 3, 14, 3, 2);
const CNTVCT_EL0: SysReg = SysReg::new(3, 3, 14, 0, 2);

/// KVM's id of a register.
pub fn encode(reg: Reg) -> u64 {
    let place = match reg {
        Reg::X(n) => CORE | (u64::from(n & 31) * 8) / 4,
        Reg::SpEl0 => CORE | SP_EL0 / 4,
        Reg::Pc => CORE | PC / 4,
        Reg::Pstate => CORE | PSTATE / 4,
        Reg::SpEl1 => CORE | SP_EL1 / 4,
        Reg::ElrEl1 => CORE | ELR_EL1 / 4,
        Reg::SpsrEl1 => CORE | SPSR_EL1 / 4,
        Reg::V(n) => CORE | (VREGS + u64::from(n & 31) * 16) / 4,
        Reg::Fpsr => CORE | FPSR / 4,
        Reg::Fpcr => CORE | FPCR / 4,
        Reg::Z(n) => SVE | (u64::from(n & 31) << 5),
        Reg::P(n) => SVE | 0x400 | (u64::from(n & 15) << 5),
        Reg::Ffr => SVE | 0x600,
        Reg::SveVls => SVE | SVE_VLS,
        Reg::Sys(reg) => SYSREG | u64::from(swap_timer(reg).encoding()),
    };
    ARM64 | (u64::from(reg.size().trailing_zeros()) << SIZE_SHIFT) | place
}

/// The register behind KVM's id. `None` for what a debugger has no use for: firmware pseudo-registers, banked
/// AArch32 registers, cache size demultiplexers.
pub fn decode(id: u64) -> Option<Reg> {
    let low = id & 0xffff;
    let reg = match id & COPROC {
        CORE => match low * 4 {
            offset @ 0..SP_EL0 if offset.is_multiple_of(8) => Reg::X((offset / 8) as u8),
            SP_EL0 => Reg::SpEl0,
            PC => Reg::Pc,
            PSTATE => Reg::Pstate,
            SP_EL1 => Reg::SpEl1,
            ELR_EL1 => Reg::ElrEl1,
            SPSR_EL1 => Reg::SpsrEl1,
            offset @ VREGS..FPSR if offset.is_multiple_of(16) => Reg::V(((offset - VREGS) / 16) as u8),
            FPSR => Reg::Fpsr,
            FPCR => Reg::Fpcr,
            _ => return None,
        },
        SYSREG => Reg::Sys(swap_timer(SysReg::from_encoding(low as u16))),
        SVE => match low {
            SVE_VLS => Reg::SveVls,
            // The architecture has one slice; more would be a wider SVE than there is.
            slice if slice & 31 != 0 => return None,
            z @ 0..0x400 => Reg::Z((z >> 5) as u8),
            p @ 0x400..0x600 => Reg::P(((p - 0x400) >> 5) as u8),
            0x600 => Reg::Ffr,
            _ => return None,
        },
        _ => return None,
    };
    // Size and architecture bits must be the register's own.
    (encode(reg) == id).then_some(reg)
}

fn swap_timer(reg: SysReg) -> SysReg {
    match reg {
        CNTV_CVAL_EL0 => CNTVCT_EL0,
        CNTVCT_EL0 => CNTV_CVAL_EL0,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_ids() {
        assert_eq!(encode(Reg::X(0)), 0x6030_0000_0010_0000);
        assert_eq!(encode(Reg::Pc), 0x6030_0000_0010_0040);
        assert_eq!(encode(Reg::Pstate), 0x6030_0000_0010_0042);
        assert_eq!(encode(Reg::V(0)), 0x6040_0000_0010_0054);
        assert_eq!(encode(Reg::Fpsr), 0x6020_0000_0010_00d4);
        assert_eq!(encode(Reg::Fpcr), 0x6020_0000_0010_00d5);
        assert_eq!(encode(Reg::Sys(SysReg::MPIDR_EL1)), 0x6030_0000_0013_c005);
        assert_eq!(encode(Reg::SveVls), 0x6060_0000_0015_ffff);
        assert_eq!(encode(Reg::Z(1)), 0x6080_0000_0015_0020);
    }

    #[test]
    fn the_swapped_timer_registers_come_out_right() {
        // KVM_REG_ARM_TIMER_CNT has the encoding of CNTV_CVAL_EL0 and holds the counter.
        assert_eq!(decode(0x6030_0000_0013_df1a), Some(Reg::Sys(CNTVCT_EL0)));
        assert_eq!(decode(0x6030_0000_0013_df02), Some(Reg::Sys(CNTV_CVAL_EL0)));
    }

    #[test]
    fn every_register_round_trips() {
        let sys = (0..=u16::MAX).map(|bits| Reg::Sys(SysReg::from_encoding(bits)));
        let core = [Reg::SpEl0, Reg::Pc, Reg::Pstate, Reg::SpEl1, Reg::ElrEl1, Reg::SpsrEl1, Reg::Fpsr, Reg::Fpcr];
        let numbered = (0..31).map(Reg::X).chain((0..32).flat_map(|n| [Reg::V(n), Reg::Z(n)]));
        let sve = (0..16).map(Reg::P).chain([Reg::Ffr, Reg::SveVls]);
        for reg in sys.chain(core).chain(numbered).chain(sve) {
            assert_eq!(decode(encode(reg)), Some(reg));
        }
    }

    proptest! {
        #[test]
        fn any_id_decodes_to_itself_or_nothing(id: u64) {
            if let Some(reg) = decode(id) {
                prop_assert_eq!(encode(reg), id);
            }
        }
    }
}
