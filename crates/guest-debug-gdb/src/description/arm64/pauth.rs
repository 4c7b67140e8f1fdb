//! Pointer authentication: which bits of an address hold a code instead.

use super::{Builder, Source, Special, Values, to_u64};
use guest_debug::arm64::{Reg, SysReg};

/// One of gdb's four masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// For addresses of code, not data.
    code: bool,
    /// For the upper half of the address space, which TTBR1 translates.
    high: bool,
}

impl Mask {
    /// The bits that hold a code under this TCR_EL1 (Arm ARM, D8.10 "Pointer authentication").
    ///
    /// A code takes the bits between the address and bit 55, and bits 63:56 as well unless the top byte is ignored.
    pub(crate) fn bits(self, tcr: u64) -> u64 {
        let (size, ignore, data_only) = if self.high {
            (tcr >> 16 & 0x3f, tcr >> 38 & 1, tcr >> 52 & 1)
        } else {
            (tcr & 0x3f, tcr >> 37 & 1, tcr >> 51 & 1)
        };
        let top_byte_ignored = ignore == 1 && !(self.code && data_only == 1);
        let below_55 = (1u64 << 55) - 1;
        let address = if size <= 9 { below_55 } else { (1u64 << (64 - size)) - 1 };
        let top_byte = if top_byte_ignored { 0 } else { 0xff << 56 };
        below_55 & !address | top_byte
    }
}

/// Whether the vCPU authenticates addresses: ID_AA64ISAR1_EL1.APA, API or ID_AA64ISAR2_EL1.APA3 is not zero.
pub(super) fn has_address_authentication(values: &Values) -> bool {
    let field = |reg, shift: u32| {
        values.get(&Reg::Sys(reg)).and_then(|bytes| to_u64(bytes)).is_some_and(|value| value >> shift & 0xf != 0)
    };
    field(SysReg::ID_AA64ISAR1_EL1, 4) || field(SysReg::ID_AA64ISAR1_EL1, 8) || field(SysReg::ID_AA64ISAR2_EL1, 12)
}

/// The masks, for gdb 14 and later. Older ones know only the feature `pauth`, whose two masks are for user
/// programs, and would cut the upper bits off a kernel's return addresses with them.
pub(super) fn feature(builder: &mut Builder) {
    builder.open("org.gnu.gdb.aarch64.pauth_v2");
    for (name, code, high) in [
        ("pauth_dmask", false, false),
        ("pauth_cmask", true, false),
        ("pauth_dmask_high", false, true),
        ("pauth_cmask_high", true, true),
    ] {
        let attributes = "type=\"uint64\" group=\"system\" save-restore=\"no\"";
        builder.register(name, 8, Source::Special(Special::PauthMask(Mask { code, high })), attributes);
    }
    builder.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux with 48-bit addresses: T0SZ = T1SZ = 16, TBI0 set, TBID0 set.
    const TCR: u64 = 16 | 16 << 16 | 1 << 37 | 1 << 51;

    #[test]
    fn masks_follow_address_size_and_top_byte_ignore() {
        let bits = |code, high| Mask { code, high }.bits(TCR);
        assert_eq!(bits(false, false), 0x007f_0000_0000_0000);
        assert_eq!(bits(true, false), 0xff7f_0000_0000_0000);
        assert_eq!(bits(false, true), 0xff7f_0000_0000_0000);
        assert_eq!(bits(true, true), 0xff7f_0000_0000_0000);
    }

    #[test]
    fn any_tcr_leaves_bit_55_alone() {
        for size in 0..64u64 {
            for ignore in [0, 1 << 37] {
                assert_eq!(Mask { code: false, high: false }.bits(size | ignore) & 1 << 55, 0);
            }
        }
    }
}
