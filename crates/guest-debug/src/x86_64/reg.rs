//! The names of a vCPU's registers, as gdb's target descriptions have them.

use std::fmt;

/// A register of an x86_64 vCPU. Names, sizes and groups are those of gdb's `features/i386/64bit-*.xml`, and of QEMU's
/// `gdb-xml/i386-64bit.xml` for [`Reg::SYSTEM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reg {
    /// RAX.
    Rax,
    /// RBX.
    Rbx,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// RBP.
    Rbp,
    /// RSP.
    Rsp,
    /// General register R8 to R15.
    R(u8),
    /// RIP, the offset in the code segment.
    Rip,
    /// The low half of RFLAGS, 4 bytes. The high half is reserved.
    Eflags,
    /// CS selector, 4 bytes as all selectors are here.
    Cs,
    /// SS selector.
    Ss,
    /// DS selector.
    Ds,
    /// ES selector.
    Es,
    /// FS selector.
    Fs,
    /// GS selector.
    Gs,
    /// x87 register ST0 to ST7, 10 bytes.
    St(u8),
    /// x87 control word, 4 bytes as all x87 words are here.
    Fctrl,
    /// x87 status word.
    Fstat,
    /// x87 tag word, two bits for each register. FXSAVE's form has one.
    Ftag,
    /// Selector of the last x87 instruction; in 64-bit mode the high half of its address.
    Fiseg,
    /// Offset of the last x87 instruction.
    Fioff,
    /// Selector of the last x87 operand; in 64-bit mode the high half of its address.
    Foseg,
    /// Offset of the last x87 operand.
    Fooff,
    /// Opcode of the last x87 instruction.
    Fop,
    /// SSE register XMM0 to XMM15, 16 bytes: the low half of YMM.
    Xmm(u8),
    /// SSE control and status, 4 bytes.
    Mxcsr,
    /// FS base, IA32_FS_BASE.
    FsBase,
    /// GS base, IA32_GS_BASE: the kernel's own in kernel mode, the process' in user mode.
    GsBase,
    /// High half of YMM0 to YMM15, 16 bytes.
    YmmH(u8),
    /// What SWAPGS exchanges with GS base, IA32_KERNEL_GS_BASE.
    KGsBase,
    /// CR0.
    Cr0,
    /// CR2, the linear address of the last page fault.
    Cr2,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8, the task priority.
    Cr8,
    /// IA32_EFER.
    Efer,
    /// Base of the code segment.
    CsBase,
    /// Access rights of CS in the layout of the VMCS (SDM table 24-2): type in bits 3:0, DPL in 6:5, L and D in 13 and 14.
    CsAr,
    /// Base of the stack segment.
    SsBase,
    /// Access rights of SS, in the same layout: B in bit 14.
    SsAr,
    /// Linear address of the interrupt descriptor table.
    IdtBase,
    /// IA32_LSTAR, where SYSCALL goes to in 64-bit mode.
    Lstar,
    /// IA32_FMASK, the bits of RFLAGS that SYSCALL clears.
    Fmask,
}

impl Reg {
    /// `org.gnu.gdb.i386.core` in its order (`64bit-core.xml`).
    pub const CORE: [Self; 40] = [
        Self::Rax,
        Self::Rbx,
        Self::Rcx,
        Self::Rdx,
        Self::Rsi,
        Self::Rdi,
        Self::Rbp,
        Self::Rsp,
        Self::R(8),
        Self::R(9),
        Self::R(10),
        Self::R(11),
        Self::R(12),
        Self::R(13),
        Self::R(14),
        Self::R(15),
        Self::Rip,
        Self::Eflags,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Es,
        Self::Fs,
        Self::Gs,
        Self::St(0),
        Self::St(1),
        Self::St(2),
        Self::St(3),
        Self::St(4),
        Self::St(5),
        Self::St(6),
        Self::St(7),
        Self::Fctrl,
        Self::Fstat,
        Self::Ftag,
        Self::Fiseg,
        Self::Fioff,
        Self::Foseg,
        Self::Fooff,
        Self::Fop,
    ];

    /// `org.gnu.gdb.i386.sse` in its order (`64bit-sse.xml`).
    pub const SSE: [Self; 17] = {
        let mut sse = [Self::Mxcsr; 17];
        let mut n = 0;
        while n < 16 {
            sse[n] = Self::Xmm(n as u8);
            n += 1;
        }
        sse
    };

    /// `org.gnu.gdb.i386.segments` in its order (`64bit-segments.xml`).
    pub const SEGMENTS: [Self; 2] = [Self::FsBase, Self::GsBase];

    /// `org.gnu.gdb.i386.avx` in its order (`64bit-avx.xml`). It needs the SSE registers.
    pub const AVX: [Self; 16] = {
        let mut avx = [Self::YmmH(0); 16];
        let mut n = 0;
        while n < 16 {
            avx[n] = Self::YmmH(n as u8);
            n += 1;
        }
        avx
    };

    /// What gdb has no feature for, in the order of QEMU, which lists them in the core feature between `gs_base` and
    /// `st0`.
    pub const SYSTEM: [Self; 7] = [Self::KGsBase, Self::Cr0, Self::Cr2, Self::Cr3, Self::Cr4, Self::Cr8, Self::Efer];

    /// What a step has to know and neither gdb nor QEMU lists.
    pub const HIDDEN: [Self; 7] =
        [Self::CsBase, Self::CsAr, Self::SsBase, Self::SsAr, Self::IdtBase, Self::Lstar, Self::Fmask];

    /// Its number in [expressions](crate::agent), if they can read it: gdb's up to GS, and from 0x8000 on those of
    /// [`Self::SEGMENTS`] and [`Self::SYSTEM`], in their order.
    pub fn expression_number(self) -> Option<u16> {
        let index = Self::CORE.into_iter().position(|reg| reg == self).filter(|index| *index < INTEGERS);
        if let Some(index) = index {
            return u16::try_from(index).ok();
        }
        let more = Self::SEGMENTS.into_iter().chain(Self::SYSTEM).position(|reg| reg == self)?;
        Some(FIRST_MORE + u16::try_from(more).ok()?)
    }

    /// The register with that number in expressions.
    pub fn by_expression_number(number: u16) -> Option<Self> {
        match number.checked_sub(FIRST_MORE) {
            Some(more) => Self::SEGMENTS.into_iter().chain(Self::SYSTEM).nth(more.into()),
            None => Self::CORE.into_iter().take(INTEGERS).nth(number.into()),
        }
    }

    /// Length in bytes, as a target description with these registers gives it.
    pub const fn size(self) -> usize {
        match self {
            Self::Xmm(_) | Self::YmmH(_) => 16,
            Self::St(_) => 10,
            Self::Eflags | Self::Mxcsr => 4,
            Self::Cs | Self::Ss | Self::Ds | Self::Es | Self::Fs | Self::Gs => 4,
            Self::Fctrl | Self::Fstat | Self::Ftag | Self::Fop => 4,
            Self::Fiseg | Self::Fioff | Self::Foseg | Self::Fooff => 4,
            _ => 8,
        }
    }
}

/// General registers, RIP, RFLAGS and selectors: those of [`Reg::CORE`] that expressions can read.
const INTEGERS: usize = 24;
/// Number in expressions of the first register that gdb has no core number for.
const FIRST_MORE: u16 = 0x8000;

/// The name in the target description.
impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::R(n) => return write!(f, "r{n}"),
            Self::St(n) => return write!(f, "st{n}"),
            Self::Xmm(n) => return write!(f, "xmm{n}"),
            Self::YmmH(n) => return write!(f, "ymm{n}h"),
            Self::Rax => "rax",
            Self::Rbx => "rbx",
            Self::Rcx => "rcx",
            Self::Rdx => "rdx",
            Self::Rsi => "rsi",
            Self::Rdi => "rdi",
            Self::Rbp => "rbp",
            Self::Rsp => "rsp",
            Self::Rip => "rip",
            Self::Eflags => "eflags",
            Self::Cs => "cs",
            Self::Ss => "ss",
            Self::Ds => "ds",
            Self::Es => "es",
            Self::Fs => "fs",
            Self::Gs => "gs",
            Self::Fctrl => "fctrl",
            Self::Fstat => "fstat",
            Self::Ftag => "ftag",
            Self::Fiseg => "fiseg",
            Self::Fioff => "fioff",
            Self::Foseg => "foseg",
            Self::Fooff => "fooff",
            Self::Fop => "fop",
            Self::Mxcsr => "mxcsr",
            Self::FsBase => "fs_base",
            Self::GsBase => "gs_base",
            Self::KGsBase => "k_gs_base",
            Self::Cr0 => "cr0",
            Self::Cr2 => "cr2",
            Self::Cr3 => "cr3",
            Self::Cr4 => "cr4",
            Self::Cr8 => "cr8",
            Self::Efer => "efer",
            Self::CsBase => "cs_base",
            Self::CsAr => "cs_ar",
            Self::SsBase => "ss_base",
            Self::SsAr => "ss_ar",
            Self::IdtBase => "idt_base",
            Self::Lstar => "lstar",
            Self::Fmask => "fmask",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(registers: &[Reg]) -> String {
        registers.iter().map(Reg::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_and_order_are_gdbs() {
        assert_eq!(
            names(&Reg::CORE),
            "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags cs ss ds es fs gs \
             st0 st1 st2 st3 st4 st5 st6 st7 fctrl fstat ftag fiseg fioff foseg fooff fop"
        );
        assert_eq!(
            names(&Reg::SSE),
            "xmm0 xmm1 xmm2 xmm3 xmm4 xmm5 xmm6 xmm7 xmm8 xmm9 xmm10 xmm11 xmm12 xmm13 xmm14 xmm15 mxcsr"
        );
        assert_eq!(names(&Reg::SEGMENTS), "fs_base gs_base");
        assert_eq!(
            names(&Reg::AVX),
            "ymm0h ymm1h ymm2h ymm3h ymm4h ymm5h ymm6h ymm7h ymm8h ymm9h ymm10h ymm11h ymm12h ymm13h ymm14h ymm15h"
        );
        assert_eq!(names(&Reg::SYSTEM), "k_gs_base cr0 cr2 cr3 cr4 cr8 efer");
    }

    /// gdb starts its SSE registers at number 40, `regnum` of `xmm0` in `64bit-sse.xml`.
    #[test]
    fn the_core_registers_are_numbers_0_to_39() {
        assert_eq!(Reg::CORE.len(), 40);
        assert_eq!((Reg::CORE[16], Reg::CORE[24]), (Reg::Rip, Reg::St(0)));
    }

    /// Bytes of a `g` packet: gdb's register cache for the core and SSE features has 536.
    #[test]
    fn sizes_add_up() {
        let bytes = |registers: &[Reg]| registers.iter().map(|reg| reg.size()).sum::<usize>();
        assert_eq!(bytes(&Reg::CORE), 17 * 8 + 7 * 4 + 8 * 10 + 8 * 4);
        assert_eq!(bytes(&Reg::CORE) + bytes(&Reg::SSE), 536);
        assert_eq!((bytes(&Reg::SEGMENTS), bytes(&Reg::AVX), bytes(&Reg::SYSTEM)), (16, 256, 56));
    }

    #[test]
    fn numbers_in_expressions() {
        assert_eq!((Reg::Rbx.expression_number(), Reg::Gs.expression_number()), (Some(1), Some(23)));
        assert_eq!((Reg::FsBase.expression_number(), Reg::Efer.expression_number()), (Some(0x8000), Some(0x8008)));
        assert_eq!((Reg::St(0).expression_number(), Reg::Lstar.expression_number()), (None, None));
        for number in 0..=u16::MAX {
            if let Some(reg) = Reg::by_expression_number(number) {
                assert_eq!(reg.expression_number(), Some(number));
            }
        }
        assert_eq!((Reg::by_expression_number(24), Reg::by_expression_number(0x8009)), (None, None));
    }

    #[test]
    fn no_register_is_listed_twice() {
        let all: Vec<_> =
            [&Reg::CORE[..], &Reg::SSE, &Reg::SEGMENTS, &Reg::AVX, &Reg::SYSTEM].into_iter().flatten().collect();
        let names: BTreeSet<_> = all.iter().map(|reg| reg.to_string()).collect();
        assert_eq!(names.len(), all.len());
    }
}
