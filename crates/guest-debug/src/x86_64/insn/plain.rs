//! Instructions that leave alone what a step knows of its vCPU.
//!
//! Source: SDM volume 2, appendix A, tables.

use super::{CodeSize, operation};

/// Whether the instruction that `code` begins with, if it is a valid one, is known to leave the mode, CS, the control
/// registers, the place of the IDT and RFLAGS.IF as they are, and to raise no exception but general protection and page
/// faults while the stack is in order. Moves, integer arithmetic but for divisions, near branches and calls are such; what
/// is not listed here is not.
pub fn is_plain(code: &[u8], size: CodeSize) -> bool {
    let (prefixes, operation) = operation(code, size);
    let at = |offset: usize| operation.get(offset).copied();
    // `reg` of ModRM, which is part of the opcode in groups.
    let reg = |offset: usize| at(offset).map(|modrm| modrm >> 3 & 7);
    let long = size == CodeSize::Bits64;
    match at(0) {
        Some(0x0f) => match at(1) {
            // NOP, RDTSC, CMOVcc, Jcc, SETcc, CPUID.
            Some(0x1f | 0x31 | 0x40..=0x4f | 0x80..=0x9f | 0xa2) => true,
            // BT, SHLD, BTS, SHRD, IMUL, CMPXCHG, BTR, MOVZX, BTC, bit scans, MOVSX, XADD, BSWAP.
            Some(0xa3..=0xa5 | 0xab..=0xad | 0xaf..=0xb1 | 0xb3 | 0xb6..=0xb7 | 0xbb..=0xc1 | 0xc8..=0xcf) => true,
            // BT and the like with an immediate.
            Some(0xba) => reg(2) >= Some(4),
            // ENDBR64 and ENDBR32; others with this opcode work on the shadow stack.
            Some(0x1e) => matches!(at(2), Some(0xfa | 0xfb)),
            // LFENCE, MFENCE, SFENCE.
            Some(0xae) => prefixes == 0 && matches!(at(2), Some(0xe8 | 0xf0 | 0xf8)),
            _ => false,
        },
        // ADD, OR, ADC, SBB, AND, SUB, XOR, CMP. The rest of each row of eight is about segments, or decimal.
        Some(opcode @ 0x00..=0x3f) => opcode & 7 < 6,
        // INC and DEC; REX where it is not the last prefix.
        Some(0x40..=0x4f) => !long,
        // PUSH, POP, IMUL, Jcc, arithmetic with an immediate, TEST, XCHG, MOV.
        Some(0x50..=0x5f | 0x68..=0x6b | 0x70..=0x7f | 0x80..=0x81 | 0x83..=0x8b) => true,
        // MOVSXD; LEA; POP; MOV of an immediate.
        Some(0x63) => long,
        Some(0x8d) => at(1).is_some_and(|modrm| modrm < 0xc0),
        Some(0x8f | 0xc6 | 0xc7) => reg(1) == Some(0),
        // XCHG, sign extension, SAHF, LAHF, MOV, strings, TEST, shifts, RET, LEAVE, loops, near CALL and JMP.
        Some(0x90..=0x99 | 0x9e..=0xc3 | 0xc9 | 0xd0..=0xd3 | 0xe0..=0xe3 | 0xe8..=0xe9 | 0xeb) => true,
        // CMC, CLC, STC, CLD, STD.
        Some(0xf5 | 0xf8..=0xf9 | 0xfc..=0xfd) => true,
        // TEST, NOT, NEG, MUL, IMUL. The other two divide.
        Some(0xf6 | 0xf7) => reg(1).is_some_and(|reg| reg < 6),
        // INC and DEC, near CALL and JMP, PUSH. The others are far.
        Some(0xfe) => reg(1).is_some_and(|reg| reg < 2),
        Some(0xff) => matches!(reg(1), Some(0 | 1 | 2 | 4 | 6)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::insn::{Insn, decode};
    use CodeSize::{Bits16, Bits32, Bits64};
    use proptest::prelude::*;

    #[test]
    fn what_compilers_write() {
        let cases: [&[u8]; 22] = [
            &[0x90],
            &[0xf3, 0x0f, 0x1e, 0xfa],
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0x55],
            &[0x48, 0x89, 0xe5],
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0],
            &[0x48, 0x8d, 0x05, 0, 0, 0, 0],
            &[0xe8, 0, 0, 0, 0],
            &[0xff, 0xd0],
            &[0xff, 0xe0],
            &[0xc3],
            &[0xf3, 0x48, 0xa5],
            &[0xf0, 0x0f, 0xb1, 0x0f],
            &[0x0f, 0x84, 0, 0, 0, 0],
            &[0x0f, 0xb6, 0xc0],
            &[0x48, 0x63, 0xd0],
            &[0x48, 0xf7, 0xe1],
            &[0x31, 0xc0],
            &[0x83, 0xe8, 1],
            &[0x0f, 0xae, 0xe8],
            &[0xc9],
            &[0x48, 0xc1, 0xe0, 3],
        ];
        for code in cases {
            assert!(is_plain(code, Bits64), "{code:x?}");
        }
    }

    #[test]
    fn what_does_more_than_that() {
        let cases: [(&[u8], &str); 30] = [
            (&[0x9c], "PUSHF"),
            (&[0x9d], "POPF"),
            (&[0xfa], "CLI"),
            (&[0xfb], "STI"),
            (&[0xf4], "HLT"),
            (&[0xcc], "INT3"),
            (&[0xcd, 0x80], "INT"),
            (&[0xce], "INTO"),
            (&[0xf1], "INT1"),
            (&[0x66, 0xcf], "IRET"),
            (&[0xcb], "far RET"),
            (&[0x9a, 0, 0, 0, 0], "far CALL"),
            (&[0xea, 0, 0, 0, 0], "far JMP"),
            (&[0xff, 0x18], "far CALL in memory"),
            (&[0xff, 0x28], "far JMP in memory"),
            (&[0x8e, 0xd0], "MOV SS"),
            (&[0x07], "POP ES"),
            (&[0x0f, 0x05], "SYSCALL"),
            (&[0x0f, 0x07], "SYSRET"),
            (&[0x0f, 0x22, 0xd8], "MOV CR3"),
            (&[0x0f, 0x01, 0xf8], "SWAPGS"),
            (&[0x0f, 0x01, 0x3f], "INVLPG"),
            (&[0x0f, 0x30], "WRMSR"),
            (&[0x0f, 0x0b], "UD2"),
            (&[0xf7, 0xf1], "DIV"),
            (&[0xee], "OUT"),
            (&[0xd9, 0xe8], "FLD1"),
            (&[0x0f, 0x28, 0xc1], "MOVAPS"),
            (&[0x0f, 0xa1], "POP FS"),
            (&[], "nothing"),
        ];
        for (code, name) in cases {
            for size in [Bits16, Bits32, Bits64] {
                assert!(!is_plain(code, size), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_step_has_to_know_is_plain(code in proptest::collection::vec(any::<u8>(), 0..20)) {
            for size in [Bits16, Bits32, Bits64] {
                prop_assert!(!is_plain(&code, size) || decode(&code, size) == Insn::Other, "{:x?}", code);
            }
        }
    }
}
