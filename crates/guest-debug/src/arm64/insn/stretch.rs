//! Straight code that a vCPU can run through at once where a debugger is interested in its end only.

use super::{Branch, Insn, decode};
use crate::arm64::SysReg;

/// Most instructions of a stretch.
pub const MAX_STRETCH: usize = 64;

/// Registers that software keeps a thread's identity in; reading one is never emulated. SP_EL0 is the first.
const THREAD_REGISTERS: [SysReg; 4] =
    [SysReg::new(3, 0, 4, 1, 0), SysReg::TPIDR_EL0, SysReg::TPIDRRO_EL0, SysReg::TPIDR_EL1];

/// ISB, but for its option.
const ISB: u32 = 0xd503_30df;

/// Consecutive instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Address of the last one.
    pub last: u64,
    /// Where a vCPU can be once it is not among them any more, but for exceptions: behind the last one, or where it
    /// branches to. One inside the stretch is as good: the vCPU comes by there.
    pub ends: Vec<u64>,
}

/// Whether an instruction neither looks at the interrupt mask nor can change the exception level or the translation. ESB counts as
/// one, though it looks at PSTATE.A: that an SError is pending is for the CPU alone to know.
pub fn is_plain(word: u32) -> bool {
    plain(word).is_some()
}

/// What a plain instruction is.
fn plain(word: u32) -> Option<Insn> {
    // MSR (immediate): SPSel would move the vector (Arm ARM, C6.2 "MSR (immediate)").
    let msr_immediate = word & 0xfff8_f01f == 0xd500_401f;
    let insn = decode(word);
    let plain = match insn {
        // How Linux finds its current task and its per-CPU data, so that kernel code is full of them.
        Insn::SystemRegister { read: true, reg, .. } => THREAD_REGISTERS.contains(&reg),
        Insn::Other | Insn::Branch(_) => !msr_immediate,
        _ => false,
    };
    plain.then_some(insn)
}

/// The stretch of plain instructions that starts at `pc`, given the instruction words from there on and how many ends can be
/// watched. It goes to the first direct branch, to the first address that is `wanted`, or as far as there are words.
///
/// `None` where not even the first instruction can be run so: it is not plain, or it is a branch that goes where a register
/// says, to itself, or to more places than can be watched.
pub fn stretch(
    pc: u64,
    words: impl IntoIterator<Item = u32>,
    ends: usize,
    wanted: impl Fn(u64) -> bool,
) -> Option<Stretch> {
    let mut at = pc;
    for word in words.into_iter().take(MAX_STRETCH) {
        if at != pc && wanted(at) {
            break;
        }
        let Some(insn) = plain(word) else { break };
        let next = at.wrapping_add(4);
        if let Insn::Branch(branch) = insn {
            let ways = match branch {
                Branch::Immediate { .. } => vec![branch.target(at)?],
                Branch::Conditional { .. } => vec![next, branch.target(at)?],
                Branch::Register { .. } => break,
            };
            // A breakpoint at the start would hit before anything is executed.
            if ways.len() > ends || ways.contains(&pc) {
                break;
            }
            return Some(Stretch { last: at, ends: ways });
        }
        at = next;
        // What the guest has written into its own code counts from here on.
        if word & 0xffff_f0ff == ISB {
            break;
        }
    }
    (at != pc && ends > 0).then(|| Stretch { last: at.wrapping_sub(4), ends: vec![at] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PC: u64 = 0xffff_8000_0801_0000;
    const ADD: u32 = 0x9100_0400;
    const LDR: u32 = 0xf940_0041;
    const RET: u32 = 0xd65f_03c0;
    const MRS_SP_EL0: u32 = 0xd538_4104;

    const fn b(instructions: i32) -> u32 {
        0x1400_0000 | instructions as u32 & 0x3ff_ffff
    }

    const fn cbz(instructions: i32) -> u32 {
        0xb400_0000 | (instructions as u32 & 0x7_ffff) << 5
    }

    /// Its instructions, and its ends counted in instructions from its start.
    fn found(words: &[u32]) -> Option<(usize, Vec<i64>)> {
        let stretch = stretch(PC, words.iter().copied(), 2, |_| false)?;
        let from_start = |at: u64| at.wrapping_sub(PC).cast_signed() / 4;
        Some((from_start(stretch.last) as usize + 1, stretch.ends.into_iter().map(from_start).collect()))
    }

    #[test]
    fn it_goes_to_the_first_branch_and_where_that_leads() {
        assert_eq!(found(&[ADD, LDR, MRS_SP_EL0, b(100), ADD]), Some((4, vec![100 + 3])));
        assert_eq!(found(&[ADD, b(-100)]), Some((2, vec![-99])));
        assert_eq!(found(&[ADD, LDR, cbz(-1), ADD]), Some((3, vec![3, 1])));
        assert_eq!(found(&[b(7)]), Some((1, vec![7])));
        assert_eq!(found(&[ADD; 3]), Some((3, vec![3])));
        assert_eq!(found(&[ADD; 100]), Some((MAX_STRETCH, vec![MAX_STRETCH as i64])));
    }

    #[test]
    fn a_branch_that_no_breakpoint_can_catch_is_left_out() {
        assert_eq!(found(&[ADD, RET]), Some((1, vec![1])));
        assert_eq!(found(&[ADD, LDR, cbz(-2)]), Some((2, vec![2])), "a loop of its own");
        for word in [RET, b(0), cbz(0)] {
            assert_eq!(found(&[word, ADD]), None, "{word:#010x}");
        }
    }

    #[test]
    fn anything_that_is_not_plain_is_left_out() {
        // SVC, HVC, SMC, BRK, HLT, WFI, WFE, WFIT, WFET, MSR DAIFSet, MSR SPSel, MSR PAN, MRS DAIF, MSR TTBR0_EL1, MSR TPIDR_EL0,
        // MSRR TTBR0_EL1, ERET, ERETAA, LDXR, STXR, LDXP, STXP, TLBI, DC ZVA
        for word in [
            0xd400_0001,
            0xd400_0002,
            0xd420_0000,
            0xd440_0000,
            0xd503_207f,
            0xd503_205f,
            0xd503_42df,
            0xd500_41bf,
            0xd53b_4223,
            0xd518_2000,
            0xd69f_03e0,
            0xc85f_7c20,
            0xc802_7c20,
            0xd508_871f,
            0xd50b_7420,
        ] {
            assert_eq!(found(&[ADD, word, ADD]), Some((1, vec![1])), "{word:#010x}");
            assert_eq!(found(&[word]), None, "{word:#010x}");
        }
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn what_the_guest_writes_into_its_code_counts_behind_an_isb() {
        assert_eq!(found(&[ADD, ISB | 0xf00, ADD]), Some((2, vec![2])));
    }

    #[test]
    fn it_ends_where_somebody_wants_to_stop() {
        let until = |wanted: u64| stretch(PC, [ADD; 8], 2, |at| at == wanted).unwrap().ends;
        assert_eq!(until(PC + 12), [PC + 12]);
        assert_eq!(until(PC), [PC + 32], "it has stopped there already");
    }

    #[test]
    fn it_needs_no_more_ends_than_there_are() {
        let with = |ends| stretch(PC, [ADD, cbz(9)], ends, |_| false).map(|stretch| stretch.ends);
        assert_eq!(with(2), Some(vec![PC + 8, PC + 40]));
        assert_eq!(with(1), Some(vec![PC + 4]));
        assert_eq!(with(0), None);
    }

    proptest! {
        #[test]
        fn any_words_at_any_address(pc: u64, words in prop::collection::vec(any::<u32>(), 0..80), ends in 0..4_usize) {
            if let Some(stretch) = stretch(pc, words.iter().copied(), ends, |at| at % 64 == 0) {
                prop_assert!((1..=ends).contains(&stretch.ends.len()));
                prop_assert!(!stretch.ends.contains(&pc));
                let count = stretch.last.wrapping_sub(pc) / 4 + 1;
                prop_assert!(count <= MAX_STRETCH as u64);
                let words = words.get(..count as usize).unwrap();
                prop_assert!(words.iter().all(|word| is_plain(*word)));
                // Wherever the CPU can go from the last instruction is an end, and nothing before that goes anywhere but on.
                let (last, before) = words.split_last().unwrap();
                prop_assert!(before.iter().all(|word| !matches!(decode(*word), Insn::Branch(_))));
                let next = stretch.last.wrapping_add(4);
                let ways = match decode(*last) {
                    Insn::Branch(branch @ Branch::Immediate { .. }) => vec![branch.target(stretch.last)],
                    Insn::Branch(branch) => vec![Some(next), branch.target(stretch.last)],
                    _ => vec![Some(next)],
                };
                prop_assert!(ways.iter().all(|way| way.is_some_and(|way| stretch.ends.contains(&way))));
            }
        }
    }
}
