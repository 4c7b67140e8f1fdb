//! The x87 tag word: FXSAVE, and KVM with it, has one bit for each register where gdb expects two.
//!
//! Source: SDM volume 1, 8.1.7 "x87 FPU Tag Word", and 10.5.1.1 for how it follows from the register's content.

/// Bytes of a register as FXSAVE has it; the first ten count.
pub const REGISTER: usize = 16;

/// The full tag word of what FXSAVE has saved: the abridged tags by physical register, the status word, and ST0 to ST7.
pub fn full_tags(abridged: u8, status: u16, st: &[[u8; REGISTER]; 8]) -> u16 {
    let top = usize::from(status >> 11 & 7);
    let tag = |physical: usize| {
        let register = &st[(physical + 8 - top) % 8];
        if abridged >> physical & 1 == 0 { EMPTY } else { tag_of(register) }
    };
    (0..8).fold(0, |tags, physical| tags | tag(physical) << (2 * physical))
}

/// The abridged tags: a bit for every register that is not empty.
pub const fn abridged_tags(full: u16) -> u8 {
    let mut abridged = 0;
    let mut physical = 0;
    while physical < 8 {
        if full >> (2 * physical) & 3 != EMPTY {
            abridged |= 1 << physical;
        }
        physical += 1;
    }
    abridged
}

const VALID: u16 = 0;
const ZERO: u16 = 1;
const SPECIAL: u16 = 2;
const EMPTY: u16 = 3;

fn tag_of(register: &[u8; REGISTER]) -> u16 {
    let significand = register.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    match (exponent, significand) {
        (0, 0) => ZERO,
        (0 | 0x7fff, _) => SPECIAL,
        // Without the integer bit it is unnormal.
        _ if significand >> 63 == 0 => SPECIAL,
        _ => VALID,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn register(significand: u64, exponent: u16) -> [u8; REGISTER] {
        let mut bytes = [0; REGISTER];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..10].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }

    #[test]
    fn after_finit_all_are_empty() {
        assert_eq!(full_tags(0, 0, &[[0; REGISTER]; 8]), 0xffff);
        assert_eq!(abridged_tags(0xffff), 0);
    }

    #[test]
    fn a_tag_follows_from_the_content() {
        let one = register(1 << 63, 0x3fff);
        // FLD1 after FINIT: TOP is 7, and ST0 is the physical register 7.
        let mut st = [[0; REGISTER]; 8];
        st[0] = one;
        assert_eq!(full_tags(0x80, 7 << 11, &st), 0x3fff);
        st[1] = register(0, 0x8000);
        st[2] = register(1 << 63, 0x7fff);
        // TOP 5: ST0 to ST2 are 5 to 7: one, minus zero, infinity.
        assert_eq!(full_tags(0xe0, 5 << 11, &st), 0x93ff);
        st[0] = register(1, 0x3fff);
        assert_eq!(full_tags(0x20, 5 << 11, &st), 0xfbff, "unnormal");
    }

    proptest! {
        #[test]
        fn what_is_empty_stays_so(abridged: u8, status: u16, content: [u8; REGISTER]) {
            prop_assert_eq!(abridged_tags(full_tags(abridged, status, &[content; 8])), abridged);
        }
    }
}
