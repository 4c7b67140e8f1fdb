//! x86_64 (gdb's manual, "i386 Features"; the numbers are those that gdb gives by itself).

mod features;

use super::{Described, Description, Missing, to_u64};
use guest_debug::X86_64;
use guest_debug::x86_64::Reg;
use guest_debug::x86_64::mode::{CodeRegisters, CodeSegment};
use std::convert::Infallible;

type Values = super::Values<X86_64>;
type Source = super::Source<X86_64>;
type Builder = super::Builder<X86_64>;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

impl Described<Self> for X86_64 {
    /// Every register of a description is one of the vCPU.
    type Special = Infallible;

    /// RBP, RSP and RIP.
    const EXPEDITED: &[usize] = &[6, 7, 16];
    const IDENTITY: &[Reg] = &[];
    const STATE: &[Reg] = &[Reg::Cs, Reg::CsAr, Reg::Eflags, Reg::Cr0, Reg::Efer];
    const BREAKPOINT_KIND: u64 = 1;
    const TRIPLE: &str = "x86_64-unknown-unknown";

    fn least() -> Vec<Reg> {
        Reg::CORE.to_vec()
    }

    fn describe(regs: &[Reg], _: &Values) -> Description<Self> {
        let mut builder = Builder::default();
        features::core(&mut builder);
        if regs.contains(&Reg::Mxcsr) {
            features::sse(&mut builder);
        }
        if regs.contains(&Reg::FsBase) {
            features::segments(&mut builder);
        }
        if regs.contains(&Reg::Mxcsr) && regs.contains(&Reg::YmmH(0)) {
            features::avx(&mut builder);
        }
        let general = builder.entries.len();
        features::system(&mut builder, regs);
        Description::new("i386:x86-64", general, builder)
    }

    fn state(values: &Values) -> Option<String> {
        let value = |reg| values.get(&reg).map(Vec::as_slice);
        let word = |reg| value(reg)?.try_into().ok().map(|bytes| u64::from(u32::from_le_bytes(bytes)));
        let rflags = word(Reg::Eflags)?;
        let code = CodeSegment::new(&CodeRegisters {
            cr0: to_u64(value(Reg::Cr0)?)?,
            efer: to_u64(value(Reg::Efer)?)?,
            rflags,
            cs: word(Reg::Cs)?,
            access_rights: to_u64(value(Reg::CsAr)?)?,
            base: 0,
        });
        let interrupts = if rflags & IF != 0 { " IF" } else { "" };
        Some(format!("{}, CPL {}{interrupts} ({rflags:#x})", code.mode, code.cpl))
    }

    fn expression_number(source: Source) -> Option<u16> {
        match source {
            Source::Register(reg) => reg.expression_number(),
            Source::Constant(_) => None,
            Source::Special(none) => match none {},
        }
    }

    fn reads(special: Infallible) -> Vec<Reg> {
        match special {}
    }

    fn compose(special: Infallible, _: &Values) -> Option<Vec<u8>> {
        match special {}
    }

    fn reads_for_write(special: Infallible) -> Vec<Reg> {
        match special {}
    }

    fn target(special: Infallible, _: &Values) -> Option<Result<Reg, Missing>> {
        match special {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(description: &Description<X86_64>) -> Vec<&str> {
        (0..).map_while(|number| description.entry(number)).map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn numbers_are_those_that_gdb_gives_by_itself() {
        let all: Vec<_> = [&Reg::CORE[..], &Reg::SSE, &Reg::SEGMENTS, &Reg::AVX, &Reg::SYSTEM, &Reg::HIDDEN].concat();
        let description = X86_64::describe(&all, &Values::new());
        for (name, number) in
            [("rax", 0), ("rbp", 6), ("rsp", 7), ("rip", 16), ("eflags", 17), ("gs", 23), ("st0", 24), ("fop", 39)]
                .into_iter()
                .chain([("xmm0", 40), ("mxcsr", 56), ("fs_base", 57), ("gs_base", 58), ("ymm0h", 59), ("cr0", 76)])
        {
            assert_eq!(description.number(name), Some(number), "{name}");
        }
        assert_eq!(description.general().len(), 75);
        assert_eq!(description.number("lstar"), None, "what neither gdb nor QEMU lists is not described");
    }

    #[test]
    fn nothing_is_described_that_the_vcpu_does_not_have() {
        let description = X86_64::describe(&X86_64::least(), &Values::new());
        assert_eq!(names(&description).len(), 40);
        assert!(!description.xml().contains("sse") && !description.xml().contains("avx"));
        let without_sse = X86_64::describe(&Reg::AVX, &Values::new());
        assert!(!without_sse.xml().contains("avx"), "gdb takes no AVX without SSE");
    }

    #[test]
    fn the_mode_is_told_to_people() {
        let values = |cs: u32, rflags: u32, cr0: u64, efer: u64| {
            Values::from([
                (Reg::Cs, cs.to_le_bytes().to_vec()),
                (Reg::CsAr, 0xa09bu64.to_le_bytes().to_vec()),
                (Reg::Eflags, rflags.to_le_bytes().to_vec()),
                (Reg::Cr0, cr0.to_le_bytes().to_vec()),
                (Reg::Efer, efer.to_le_bytes().to_vec()),
            ])
        };
        assert_eq!(X86_64::state(&values(0x33, 0x246, 0x8005_0033, 0xd01)).unwrap(), "long mode, CPL 3 IF (0x246)");
        assert_eq!(X86_64::state(&values(0x07c3, 2, 0x10, 0)).unwrap(), "real mode, CPL 0 (0x2)");
        assert_eq!(X86_64::state(&Values::new()), None);
    }
}
