//! Instructions that can be carried out from outside: those of which registers and the program counter are all there is.
//!
//! They are what stands at most places where a breakpoint is set without debug information: landing pads, moves, address
//! computation, direct branches (Arm ARM, C6.2). Everything that accesses memory, or may raise an exception, is for the CPU.

use super::bits;
use crate::arm64::Pstate;

/// A register of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum General {
    /// X0 to X30.
    X(u8),
    /// The stack pointer in use.
    Sp,
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Simulated {
    /// Where the vCPU is afterwards.
    pub pc: u64,
    /// The register that it writes, and the value.
    pub write: Option<(General, u64)>,
}

/// What the instruction at `pc` does, if it is one of those. `pstate` is as before it; BTYPE is clear afterwards.
///
/// # Errors
///
/// Whatever `read` answers.
pub fn simulate<E>(
    word: u32,
    pc: u64,
    pstate: Pstate,
    mut read: impl FnMut(General) -> Result<u64, E>,
) -> Result<Option<Simulated>, E> {
    if pstate.contains(Pstate::IL) || pstate.is_aarch32() || !lands(word, pstate) {
        return Ok(None);
    }
    let mut x = |n: u8| if n == 31 { Ok(0) } else { read(General::X(n)) };
    let next = pc.wrapping_add(4);
    let rd = bits(word, 0, 5) as u8;
    let wide = word >> 31 == 1;
    let goes = |pc| Ok(Some(Simulated { pc, write: None }));
    let sets = |register, value: u64| {
        let value = if wide { value } else { value & 0xffff_ffff };
        Ok(Some(Simulated { pc: next, write: Some((register, value)) }))
    };
    let sets_x = |n, value| if n == 31 { goes(next) } else { sets(General::X(n), value) };
    let taken = |taken: bool, offset: i64| goes(if taken { pc.wrapping_add_signed(offset) } else { next });
    if word == NOP || is_landing_pad(word) {
        return goes(next);
    }
    if word & 0x1f00_0000 == 0x1000_0000 {
        let offset = i64::from(signed(bits(word, 5, 19) << 2 | bits(word, 29, 2), 21));
        let (base, scale) = if wide { (pc & !0xfff, 12) } else { (pc, 0) };
        let value = base.wrapping_add_signed(offset << scale);
        return if rd == 31 {
            goes(next)
        } else {
            Ok(Some(Simulated { pc: next, write: Some((General::X(rd), value)) }))
        };
    }
    if word & 0x7c00_0000 == 0x1400_0000 {
        let pc = pc.wrapping_add_signed(i64::from(signed(bits(word, 0, 26), 26)) * 4);
        let write = wide.then_some((General::X(30), next));
        return Ok(Some(Simulated { pc, write }));
    }
    if word & 0xff00_0010 == 0x5400_0000 {
        return taken(holds(bits(word, 0, 4), pstate), i64::from(signed(bits(word, 5, 19), 19)) * 4);
    }
    if word & 0x7e00_0000 == 0x3400_0000 {
        let value = x(rd)?;
        let zero = if wide { value == 0 } else { value as u32 == 0 };
        let on_zero = bits(word, 24, 1) == 0;
        return taken(zero == on_zero, i64::from(signed(bits(word, 5, 19), 19)) * 4);
    }
    if word & 0x7e00_0000 == 0x3600_0000 {
        let bit = bits(word, 31, 1) << 5 | bits(word, 19, 5);
        let set = x(rd)? >> bit & 1 == 1;
        let on_set = bits(word, 24, 1) == 1;
        return taken(set == on_set, i64::from(signed(bits(word, 5, 14), 14)) * 4);
    }
    if word & 0x3f80_0000 == 0x1100_0000 {
        let immediate = u64::from(bits(word, 10, 12)) << (12 * bits(word, 22, 1));
        let register = |n: u8| if n == 31 { General::Sp } else { General::X(n) };
        let value = read(register(bits(word, 5, 5) as u8))?;
        let subtract = bits(word, 30, 1) == 1;
        let value = if subtract { value.wrapping_sub(immediate) } else { value.wrapping_add(immediate) };
        return sets(register(rd), value);
    }
    if word & 0x1f80_0000 == 0x1280_0000 {
        let shift = 16 * bits(word, 21, 2);
        if !wide && shift >= 32 {
            return Ok(None);
        }
        let immediate = u64::from(bits(word, 5, 16)) << shift;
        return match bits(word, 29, 2) {
            0 => sets_x(rd, !immediate),
            2 => sets_x(rd, immediate),
            3 => sets_x(rd, x(rd)? & !(0xffff << shift) | immediate),
            _ => Ok(None),
        };
    }
    // MOV between registers, which is ORR with XZR and no shift.
    if word & 0x7fe0_ffe0 == 0x2a00_03e0 {
        return sets_x(rd, x(bits(word, 16, 5) as u8)?);
    }
    Ok(None)
}

const NOP: u32 = 0xd503_201f;

/// BTI with any operand.
fn is_landing_pad(word: u32) -> bool {
    word & 0xffff_ff3f == 0xd503_241f
}

/// Whether no Branch Target exception can come of the way that led here, if this is a guarded page (Arm ARM, D8.4.4).
fn lands(word: u32, pstate: Pstate) -> bool {
    let (by_call, by_jump) = (word & 0x40 != 0, word & 0x80 != 0);
    match (pstate.0 & Pstate::BTYPE) >> 10 {
        0 => true,
        _ if !is_landing_pad(word) => false,
        1 => by_call || by_jump,
        2 => by_call,
        _ => by_jump,
    }
}

/// Whether a condition holds (Arm ARM, C1.2.4).
fn holds(condition: u32, pstate: Pstate) -> bool {
    let flag = |bit: u32| pstate.0 >> bit & 1 == 1;
    let (n, z, c, v) = (flag(31), flag(30), flag(29), flag(28));
    let holds = match condition >> 1 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    holds == (condition & 1 == 0)
}

/// A number of so many bits with its sign.
fn signed(value: u32, width: u32) -> i32 {
    (value << (32 - width)).cast_signed() >> (32 - width)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PC: u64 = 0xffff_8000_0801_0124;
    const PLAIN: Pstate = Pstate(Pstate::EL1H);

    /// Registers hold their number times 0x11 in the upper word and in the lower one; the stack pointer ends in 0x8000.
    fn read(register: General) -> Result<u64, ()> {
        match register {
            General::X(5) => Ok(8),
            General::X(n) => Ok(u64::from(n) * 0x11_0000_0011),
            General::Sp => Ok(0xffff_8000_0900_8000),
        }
    }

    fn run(word: u32, pstate: Pstate) -> Option<Simulated> {
        simulate(word, PC, pstate, read).unwrap()
    }

    fn writes(word: u32, register: General, value: u64) {
        assert_eq!(run(word, PLAIN), Some(Simulated { pc: PC + 4, write: Some((register, value)) }), "{word:#010x}");
    }

    fn goes(word: u32, offset: i64) {
        let expected = Simulated { pc: PC.wrapping_add_signed(offset), write: None };
        assert_eq!(run(word, PLAIN), Some(expected), "{word:#010x}");
    }

    /// Encodings are an assembler's.
    #[test]
    fn moves_and_addresses() {
        use General::{Sp, X};
        writes(0x1000_91a3, X(3), PC + 0x1234);
        writes(0xf0ff_ffe3, X(3), (PC & !0xfff) - 0x1000);
        writes(0x9100_0441, X(1), 2 * 0x11_0000_0011 + 1);
        writes(0xd100_83ff, Sp, 0xffff_8000_0900_8000 - 0x20);
        writes(0x1140_0441, X(1), 0x22 + 0x1000);
        writes(0x9100_03fd, X(29), 0xffff_8000_0900_8000);
        writes(0xaa1e_03e9, X(9), 30 * 0x11_0000_0011);
        writes(0x2a0a_03e9, X(9), 0xaa);
        writes(0xaa1f_03e9, X(9), 0);
        writes(0xd2c2_4684, X(4), 0x1234 << 32);
        writes(0x1280_0024, X(4), 0xffff_fffe);
        writes(0xf2b7_dde4, X(4), 4 * 0x11_0000_0011 & !(0xffff << 16) | 0xbeef << 16);
        goes(0xd503_201f, 4);
    }

    #[test]
    fn branches() {
        goes(0x17ff_fffe, -8);
        let link = Simulated { pc: PC + 0x100, write: Some((General::X(30), PC + 4)) };
        assert_eq!(run(0x9400_0040, PLAIN), Some(link));
        // X5 is 8, X0 is 0, X6 is neither.
        goes(0xb400_0105, 4);
        goes(0xb400_0100, 32);
        goes(0x3500_0105, 32);
        goes(0x3500_0100, 4);
        goes(0xb640_0045, 8);
        goes(0x371f_ffc5, -8);
        goes(0x371f_ffc0, 4);
    }

    #[test]
    fn conditions() {
        let eq = |flags: u64| run(0x5400_0080, PLAIN.with(flags)).unwrap().pc == PC + 16;
        assert!(eq(1 << 30) && !eq(0));
        let (n, z, c, v) = (1 << 31, 1 << 30, 1 << 29, 1 << 28);
        for (condition, flags, expected) in [
            (0, z, true),
            (1, z, false),
            (2, c, true),
            (3, c, false),
            (4, n, true),
            (5, n, false),
            (6, v, true),
            (7, v, false),
            (8, c, true),
            (8, c | z, false),
            (9, c, false),
            (9, 0, true),
            (10, n | v, true),
            (10, n, false),
            (11, n, true),
            (12, 0, true),
            (12, z, false),
            (13, z, true),
            (13, n, true),
            (14, 0, true),
            (15, 0, true),
        ] {
            assert_eq!(holds(condition, Pstate(flags)), expected, "{condition} with {flags:#x}");
        }
    }

    #[test]
    fn what_the_cpu_has_to_do_itself() {
        // ADDS, ORR with two operands, ORR with a shift, LDR, PACIASP, MOVZ W with a shift by 32, SVC, BR X1
        for word in
            [0xb100_0441, 0xaa1e_0149, 0xaa1e_07e9, 0xf940_0041, 0xd503_233f, 0x52c0_0004, 0xd400_0001, 0xd61f_0020]
        {
            assert_eq!(run(word, PLAIN), None, "{word:#010x}");
        }
        assert_eq!(run(NOP, PLAIN.with(Pstate::IL)), None, "an illegal state is an exception");
    }

    #[test]
    fn an_indirect_branch_lands_on_a_pad_of_its_kind() {
        let lands = |word, btype: u64| run(word, PLAIN.with(btype << 10)).is_some();
        for (word, by_tail_call, by_call, by_jump) in [
            (0xd503_241f, false, false, false),
            (0xd503_245f, true, true, false),
            (0xd503_249f, true, false, true),
            (0xd503_24df, true, true, true),
            (NOP, false, false, false),
        ] {
            assert!(lands(word, 0));
            assert_eq!([1, 2, 3].map(|btype| lands(word, btype)), [by_tail_call, by_call, by_jump], "{word:#010x}");
        }
    }
}
