//! The few instructions that a step has to know: those that read or write RFLAGS, go to a handler, or wait.
//!
//! Source: SDM volume 2, chapter 2 for prefixes and appendix A for opcodes. This is no disassembler: everything that a step
//! can leave to the CPU is [`Insn::Other`], and so is what can't be decoded.

mod plain;

pub use plain::is_plain;

/// The longest instruction there is, in bytes.
pub const MAX_LENGTH: usize = 15;

/// Default operand size of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or CS.D clear.
    Bits16,
    /// CS.D set.
    Bits32,
    /// 64-bit mode: CS.L set in long mode.
    Bits64,
}

/// What an instruction is to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insn {
    /// PUSHF, PUSHFD, PUSHFQ: RFLAGS is at the top of the stack afterwards.
    Pushf,
    /// POPF, POPFD, POPFQ: writes RFLAGS, IF only where CPL is not above IOPL.
    Popf,
    /// CLI.
    Cli,
    /// STI.
    Sti,
    /// IRET, IRETD, IRETQ: writes RFLAGS.
    Iret,
    /// HLT, with the length of the instruction.
    Hlt {
        /// Bytes, prefixes included.
        length: u8,
    },
    /// INT3, INT n, INT1: goes to the handler of that vector.
    Int {
        /// The vector.
        vector: u8,
    },
    /// SYSCALL: RFLAGS goes to R11, and the bits of IA32_FMASK are cleared.
    Syscall,
    /// SYSRET: writes RFLAGS.
    Sysret,
    /// MOV to SS and POP SS: nothing traps before the instruction behind it has executed as well (SDM 6.8.3).
    LoadSs,
    /// Anything else.
    Other,
}

/// Decodes the instruction that `code` begins with.
pub fn decode(code: &[u8], size: CodeSize) -> Insn {
    let (prefixes, operation) = operation(code, size);
    let at = |offset: usize| operation.get(offset).copied();
    match (at(0), at(1)) {
        (Some(0x9c), _) => Insn::Pushf,
        (Some(0x9d), _) => Insn::Popf,
        (Some(0xfa), _) => Insn::Cli,
        (Some(0xfb), _) => Insn::Sti,
        (Some(0xcf), _) => Insn::Iret,
        (Some(0xf4), _) => Insn::Hlt { length: (prefixes + 1) as u8 },
        (Some(0xcc), _) => Insn::Int { vector: 3 },
        (Some(0xf1), _) => Insn::Int { vector: 1 },
        (Some(0xcd), Some(vector)) => Insn::Int { vector },
        (Some(0x8e), Some(modrm)) if modrm >> 3 & 7 == SS => Insn::LoadSs,
        (Some(0x17), _) if size != CodeSize::Bits64 => Insn::LoadSs,
        (Some(0x0f), Some(0x05)) => Insn::Syscall,
        (Some(0x0f), Some(0x07)) => Insn::Sysret,
        _ => Insn::Other,
    }
}

/// The number of prefixes, and what is behind them.
fn operation(code: &[u8], size: CodeSize) -> (usize, &[u8]) {
    let code = code.get(..MAX_LENGTH).unwrap_or(code);
    let is_rex = |byte: u8| size == CodeSize::Bits64 && byte & 0xf0 == 0x40;
    let legacy = code.iter().take_while(|byte| PREFIXES.contains(byte)).count();
    // One REX, directly before the opcode.
    let prefixes = legacy + usize::from(code.get(legacy).is_some_and(|byte| is_rex(*byte)));
    (prefixes, code.get(prefixes..).unwrap_or_default())
}

/// Number of SS as an operand.
const SS: u8 = 2;
/// Lock and repeat, segments, operand and address size.
const PREFIXES: [u8; 11] = [0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0x67];

#[cfg(test)]
mod tests {
    use super::*;
    use CodeSize::{Bits16, Bits32, Bits64};
    use proptest::prelude::*;

    #[test]
    fn each_instruction() {
        let cases: [(&[u8], Insn); 14] = [
            (&[0x9c], Insn::Pushf),
            (&[0x66, 0x9c], Insn::Pushf),
            (&[0x9d], Insn::Popf),
            (&[0xfa], Insn::Cli),
            (&[0xfb, 0xf4], Insn::Sti),
            (&[0x48, 0xcf], Insn::Iret),
            (&[0xf4], Insn::Hlt { length: 1 }),
            (&[0xf3, 0x48, 0xf4], Insn::Hlt { length: 3 }),
            (&[0xcc], Insn::Int { vector: 3 }),
            (&[0xf1], Insn::Int { vector: 1 }),
            (&[0xcd, 0x80], Insn::Int { vector: 0x80 }),
            (&[0x8e, 0xd0], Insn::LoadSs),
            (&[0x0f, 0x05], Insn::Syscall),
            (&[0x48, 0x0f, 0x07], Insn::Sysret),
        ];
        for (code, insn) in cases {
            assert_eq!(decode(code, Bits64), insn, "{code:x?}");
        }
    }

    #[test]
    fn what_is_none_of_them() {
        for code in [&[][..], &[0x90], &[0xcd], &[0x0f], &[0x8e, 0xd8], &[0x0f, 0x0b], &[0x40, 0x66, 0x9c], &[0x66; 20]]
        {
            assert_eq!(decode(code, Bits64), Insn::Other, "{code:x?}");
        }
    }

    #[test]
    fn the_mode_decides_about_rex_and_pop_ss() {
        assert_eq!(decode(&[0x48, 0xcf], Bits32), Insn::Other, "DEC EAX");
        assert_eq!(decode(&[0x17], Bits16), Insn::LoadSs);
        assert_eq!(decode(&[0x17], Bits64), Insn::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_decode(code in proptest::collection::vec(any::<u8>(), 0..20)) {
            for size in [Bits16, Bits32, Bits64] {
                if let Insn::Hlt { length } = decode(&code, size) {
                    prop_assert!(usize::from(length) <= code.len().min(MAX_LENGTH));
                }
            }
        }
    }
}
