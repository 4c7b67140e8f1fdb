//! How a vCPU executes: its mode, and the segment that RIP is an offset in.
//!
//! Breakpoints, page tables and debug exits have linear addresses. An instruction's is the base of the code segment plus RIP,
//! and wraps at 4 GiB; in 64-bit mode the base counts as 0. Source: SDM 2.2 "Modes of Operation", 3.3.1 and 3.4 "Logical and
//! Linear Addresses", 3.2.4 "Segmentation in IA-32e Mode", 20.1.1 "Address Translation in Real-Address Mode" (chapter 22 in
//! newer editions); in the kernel `kvm_get_linear_rip` of `arch/x86/kvm/x86.c`.

use crate::x86_64::insn::CodeSize;
use std::fmt;

/// The mode that a vCPU executes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PE is clear.
    Real,
    /// RFLAGS.VM is set: 8086 code in protected mode.
    Virtual8086,
    /// Protected mode outside long mode, with 16-bit or 32-bit code.
    Protected,
    /// 16-bit or 32-bit code in long mode.
    Compatibility,
    /// 64-bit code.
    Bits64,
}

/// For people.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "real mode",
            Self::Virtual8086 => "virtual-8086 mode",
            Self::Protected => "protected mode",
            Self::Compatibility => "compatibility mode",
            Self::Bits64 => "long mode",
        })
    }
}

/// The registers that decide about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodeRegisters {
    /// CR0: PE, bit 0.
    pub cr0: u64,
    /// IA32_EFER: LMA, bit 10.
    pub efer: u64,
    /// RFLAGS: VM, bit 17.
    pub rflags: u64,
    /// The selector of CS: CPL, bits 1:0.
    pub cs: u64,
    /// The base of CS.
    pub base: u64,
    /// The access rights of CS: L and D, bits 13 and 14, as [`crate::x86_64::Reg::CsAr`] has them.
    pub access_rights: u64,
}

/// The code segment, and what executes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeSegment {
    /// The mode.
    pub mode: Mode,
    /// Default operand size.
    pub size: CodeSize,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    base: u64,
}

impl CodeSegment {
    /// The code segment that the registers say.
    pub const fn new(registers: &CodeRegisters) -> Self {
        const PE: u64 = 1;
        const LMA: u64 = 1 << 10;
        const VM: u64 = 1 << 17;
        const L: u64 = 1 << 13;
        const D: u64 = 1 << 14;

        let CodeRegisters { cr0, efer, rflags, cs, base, access_rights } = *registers;
        let mode = match (cr0 & PE != 0, efer & LMA != 0) {
            (false, _) => Mode::Real,
            (true, true) if access_rights & L != 0 => Mode::Bits64,
            (true, true) => Mode::Compatibility,
            (true, false) if rflags & VM != 0 => Mode::Virtual8086,
            (true, false) => Mode::Protected,
        };
        let size = match mode {
            Mode::Bits64 => CodeSize::Bits64,
            Mode::Virtual8086 => CodeSize::Bits16,
            _ if access_rights & D != 0 => CodeSize::Bits32,
            _ => CodeSize::Bits16,
        };
        // In 8086 code the low bits of the selector are part of the address (SDM 20.1, 20.2.1).
        let cpl = match mode {
            Mode::Real => 0,
            Mode::Virtual8086 => 3,
            _ => (cs & 3) as u8,
        };
        Self { mode, size, cpl, base: if matches!(mode, Mode::Bits64) { 0 } else { base } }
    }

    /// The linear address of what is at `offset`.
    pub const fn linear(&self, offset: u64) -> u64 {
        self.wrap(self.base.wrapping_add(offset))
    }

    /// The offset of what is at a linear address.
    pub const fn offset(&self, linear: u64) -> u64 {
        self.wrap(linear.wrapping_sub(self.base))
    }

    const fn wrap(&self, address: u64) -> u64 {
        match self.mode {
            Mode::Bits64 => address,
            _ => address & u32::MAX as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: CodeRegisters =
        CodeRegisters { cr0: 0x8005_0033, efer: 0xd01, rflags: 0x246, cs: 0x10, base: 0, access_rights: 0xa09b };

    fn segment(registers: CodeRegisters) -> (Mode, CodeSize, u8) {
        let CodeSegment { mode, size, cpl, .. } = CodeSegment::new(&registers);
        (mode, size, cpl)
    }

    #[test]
    fn each_mode() {
        assert_eq!(segment(LONG), (Mode::Bits64, CodeSize::Bits64, 0));
        assert_eq!(segment(CodeRegisters { cs: 0x33, ..LONG }), (Mode::Bits64, CodeSize::Bits64, 3));
        let compatibility = CodeRegisters { cs: 0x23, access_rights: 0xc0fb, ..LONG };
        assert_eq!(segment(compatibility), (Mode::Compatibility, CodeSize::Bits32, 3));
        let protected = CodeRegisters { efer: 0, access_rights: 0xc09b, ..LONG };
        assert_eq!(segment(protected), (Mode::Protected, CodeSize::Bits32, 0));
        assert_eq!(segment(CodeRegisters { access_rights: 0x9b, ..protected }).1, CodeSize::Bits16);
        let virtual_8086 = CodeRegisters { rflags: 0x2_3202, cs: 0x1000, access_rights: 0xf3, ..protected };
        assert_eq!(segment(virtual_8086), (Mode::Virtual8086, CodeSize::Bits16, 3));
        let real = CodeRegisters { cr0: 0x10, cs: 0x07c3, access_rights: 0x9b, ..protected };
        assert_eq!(segment(real), (Mode::Real, CodeSize::Bits16, 0));
    }

    /// SDM table 9-1: CS base 0xffff0000 and EIP 0xfff0 after a reset.
    #[test]
    fn the_first_instruction_of_all() {
        let reset = CodeRegisters { cr0: 0x6000_0010, cs: 0xf000, base: 0xffff_0000, access_rights: 0x9b, ..LONG };
        let segment = CodeSegment::new(&CodeRegisters { efer: 0, ..reset });
        assert_eq!((segment.linear(0xfff0), segment.offset(0xffff_fff0)), (0xffff_fff0, 0xfff0));
        assert_eq!(segment.linear(0x1_0000), 0, "32 bits of it");
    }

    #[test]
    fn no_base_counts_in_64_bit_mode() {
        let segment = CodeSegment::new(&CodeRegisters { base: 0x1000, ..LONG });
        assert_eq!(segment.linear(0xffff_ffff_8100_0000), 0xffff_ffff_8100_0000);
        let compatibility = CodeSegment::new(&CodeRegisters { base: 0x1000, access_rights: 0xc0fb, ..LONG });
        assert_eq!(compatibility.linear(0x234), 0x1234);
    }

    proptest! {
        #[test]
        fn any_registers_have_one(cr0: u64, efer: u64, rflags: u64, cs: u64, base: u64, access_rights: u64, at: u64) {
            let segment = CodeSegment::new(&CodeRegisters { cr0, efer, rflags, cs, base, access_rights });
            let linear = segment.linear(at);
            prop_assert_eq!(segment.linear(segment.offset(linear)), linear);
        }
    }
}
