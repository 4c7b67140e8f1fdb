//! Sequences from a load-exclusive to its store-exclusive, which a step must cross in one go: every exception between
//! the two clears the monitor, and the store would fail for ever.

use super::{Branch, Insn, decode};

/// Most instructions of a sequence, both exclusives included.
pub const MAX_INSTRUCTIONS: usize = 16;

/// A load-exclusive, its store-exclusive, and the ways out between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Address after the store-exclusive.
    pub end: u64,
    /// Targets of conditional branches that leave the sequence, other than to `end`; each once, sorted.
    pub exits: Vec<u64>,
    /// A branch goes back inside the sequence: it may spin until another CPU changes the memory.
    pub spins: bool,
}

/// Finds the exclusive sequence that starts at `pc`, given the instruction words from there on.
///
/// `None` where the first word is no load-exclusive, where no matching store-exclusive (same size, same base register)
/// follows within [`MAX_INSTRUCTIONS`] or within `words`, or where anything in between could leave in another way: an
/// unconditional branch, an exception, a wait, a system instruction, another load-exclusive.
pub fn exclusive_sequence(pc: u64, words: &[u32]) -> Option<Sequence> {
    // Size, pair or not, privilege, and base register.
    const SAME: u32 = 0xc120_03e0;
    const CLREX: u32 = 0xd503_305f;

    let (&first, rest) = words.split_first()?;
    if decode(first) != Insn::LoadExclusive {
        return None;
    }
    let mut targets = Vec::new();
    let mut at = pc;
    for &word in rest.iter().take(MAX_INSTRUCTIONS - 1) {
        at = at.wrapping_add(4);
        match decode(word) {
            Insn::StoreExclusive if (word ^ first) & SAME == 0 => {
                let end = at.wrapping_add(4);
                let inside = |target: u64| target.wrapping_sub(pc) < end.wrapping_sub(pc);
                let spins = targets.iter().any(|&(from, target)| inside(target) && target <= from);
                let targets = targets.into_iter().map(|(_, target)| target);
                let mut exits: Vec<u64> = targets.filter(|&target| !inside(target) && target != end).collect();
                exits.sort_unstable();
                exits.dedup();
                return Some(Sequence { end, exits, spins });
            }
            Insn::Branch(branch @ Branch::Conditional { .. }) => {
                targets.extend(branch.target(at).map(|target| (at, target)))
            }
            Insn::Other if word & 0xffff_f0ff != CLREX => {}
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LDXR_X0_X1: u32 = 0xc85f_7c20;
    const STXR_W0_X1_X2: u32 = 0xc800_7c41;
    const STXR_W2_X0_X1: u32 = 0xc802_7c20;
    const ADD: u32 = 0x9100_0400;
    const NOP: u32 = 0xd503_201f;

    /// `b.ne` over a number of instructions.
    const fn branch(instructions: i32) -> u32 {
        0x5400_0001 | (instructions as u32 & 0x7_ffff) << 5
    }

    #[test]
    fn an_atomic_increment() {
        let sequence = exclusive_sequence(0x1000, &[LDXR_X0_X1, ADD, STXR_W2_X0_X1, branch(-3)]);
        assert_eq!(sequence, Some(Sequence { end: 0x100c, exits: vec![], spins: false }));
    }

    #[test]
    fn compare_and_swap_leaves_early() {
        let words = [LDXR_X0_X1, NOP, branch(4), branch(30), branch(3), STXR_W2_X0_X1];
        let sequence = exclusive_sequence(0x1000, &words).unwrap();
        assert_eq!(sequence.end, 0x1018);
        assert_eq!(sequence.exits, [0x1010 + 12, 0x100c + 120]);
        assert!(!sequence.spins, "the branch to the end is no exit and no loop");
    }

    #[test]
    fn a_lock_that_spins_on_its_load() {
        let words = [LDXR_X0_X1, branch(-1), STXR_W2_X0_X1];
        let sequence = exclusive_sequence(0x1000, &words).unwrap();
        assert_eq!(sequence, Sequence { end: 0x100c, exits: vec![], spins: true });
        let words = [LDXR_X0_X1, branch(-2), STXR_W2_X0_X1];
        let sequence = exclusive_sequence(0x1000, &words).unwrap();
        assert_eq!(sequence.exits, [0xffc], "the WFE before the load is outside");
    }

    #[test]
    fn a_branch_forward_inside_is_neither_exit_nor_loop() {
        let sequence = exclusive_sequence(0x1000, &[LDXR_X0_X1, branch(2), ADD, STXR_W2_X0_X1]).unwrap();
        assert_eq!(sequence, Sequence { end: 0x1010, exits: vec![], spins: false });
    }

    #[test]
    fn strange_sequences_are_refused() {
        let none = |words: &[u32]| assert_eq!(exclusive_sequence(0x1000, words), None, "{words:x?}");
        none(&[]);
        none(&[NOP, STXR_W2_X0_X1]);
        none(&[LDXR_X0_X1]);
        none(&[LDXR_X0_X1, LDXR_X0_X1, STXR_W2_X0_X1]);
        none(&[LDXR_X0_X1, STXR_W0_X1_X2]);
        for word in [0x1400_0040, 0xd65f_03c0, 0xd400_0001, 0xd503_205f, 0xd421_0000, 0xd503_3f5f, 0xd53b_e048] {
            none(&[LDXR_X0_X1, word, STXR_W2_X0_X1]);
        }
    }

    #[test]
    fn the_length_is_bounded() {
        let mut words = vec![NOP; MAX_INSTRUCTIONS + 1];
        words[0] = LDXR_X0_X1;
        words[MAX_INSTRUCTIONS - 1] = STXR_W2_X0_X1;
        assert_eq!(exclusive_sequence(0, &words).unwrap().end, 4 * MAX_INSTRUCTIONS as u64);
        words.swap(MAX_INSTRUCTIONS - 1, MAX_INSTRUCTIONS);
        assert_eq!(exclusive_sequence(0, &words), None);
    }

    proptest! {
        #[test]
        fn any_words_at_any_address(pc: u64, words in prop::collection::vec(any::<u32>(), 0..20)) {
            let mut words = words;
            let _ = exclusive_sequence(pc, &words);
            words.insert(0, LDXR_X0_X1);
            words.push(STXR_W2_X0_X1);
            if let Some(sequence) = exclusive_sequence(pc, &words) {
                prop_assert!(!sequence.exits.contains(&sequence.end));
            }
        }
    }
}
