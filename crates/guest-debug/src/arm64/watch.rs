//! Watches: from a range of bytes to debug register slots, and from a watchpoint's FAR back to the range.

use crate::arm64::dbgreg::{WatchSlot, is_canonical};
use crate::arm64::insn::Access;
use crate::stop::WatchKind;
use thiserror::Error;

/// Most slots that [`plan`] hands out: the architecture's limit of watchpoint registers.
pub const MAX_SLOTS: u64 = 16;
/// Largest `MASK`: 31 low bits not compared, 2 GiB.
const MAX_MASK: u32 = 31;
/// Span from FAR in which an unknown instruction may have touched a watched byte: four vector registers of 16 bytes.
const UNKNOWN_ACCESS: u64 = 64;

/// A range that cannot be watched.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum WatchError {
    /// There is nothing to watch.
    #[error("a watch at {address:#x} of length 0: at least one byte must be watched")]
    Empty {
        /// First byte that was asked for.
        address: u64,
    },
    /// The range runs over the end of the address space.
    #[error("a watch at {address:#x} of {length:#x} bytes runs over the end of the address space")]
    Wraps {
        /// First byte that was asked for.
        address: u64,
        /// Number of bytes that was asked for.
        length: u64,
    },
    /// A byte of the range has no canonical address.
    #[error("address {address:#x} of the watch is not canonical: bits 63 to 52 must be all 0 or all 1")]
    NonCanonical {
        /// The first or the last byte of the range.
        address: u64,
    },
    /// No CPU has that many slots.
    #[error("the watch needs {needed} watchpoint slots, a CPU has {MAX_SLOTS} at most")]
    TooManySlots {
        /// Number of slots that the range would take.
        needed: u64,
    },
}

/// The fewest slots that watch exactly `length` bytes from `address`.
///
/// Bytes inside a doubleword take one slot (`BAS`), so does an aligned power of two from 16 bytes to 2 GiB (`MASK`);
/// anything else is split. A slot never covers a byte that was not asked for, and no two slots overlap.
///
/// # Errors
///
/// [`WatchError`] for an empty, wrapping or non-canonical range and for one that needs more than [`MAX_SLOTS`].
/// Whether the vCPU has as many slots as are returned is the caller's to check.
pub fn plan(kind: WatchKind, address: u64, length: u64) -> Result<Vec<WatchSlot>, WatchError> {
    if length == 0 {
        return Err(WatchError::Empty { address });
    }
    let last = address.checked_add(length - 1).ok_or(WatchError::Wraps { address, length })?;
    if !is_canonical(address) {
        return Err(WatchError::NonCanonical { address });
    }
    // A range from one canonical half to the other has a hole in between.
    if !is_canonical(last) || (address ^ last) >> 63 != 0 {
        return Err(WatchError::NonCanonical { address: last });
    }

    let mut slots = Vec::new();
    let mut needed = 0u64;
    let mut at = address;
    loop {
        // `left` is the number of bytes after the one at `at`: the range may end at the last address there is.
        let left = last - at;
        let step = if !at.is_multiple_of(8) || left < 7 {
            let offset = at % 8;
            let end = (offset + left).min(7);
            let bas = (0xff_u64 << offset & 0xff >> (7 - end)) as u8;
            push(&mut slots, &mut needed, WatchSlot { address: at - offset, mask: 0, bas, kind });
            end - offset
        } else {
            let fits = left.saturating_add(1).ilog2();
            let bits = at.trailing_zeros().min(fits).min(MAX_MASK);
            let mask = if bits == 3 { 0 } else { bits as u8 };
            push(&mut slots, &mut needed, WatchSlot { address: at, mask, bas: 0xff, kind });
            let mut step = (1 << bits) - 1;
            if bits == MAX_MASK {
                // All further whole 2 GiB blocks at once: the loop must not take long for a huge range.
                let more = (left - step) >> MAX_MASK;
                if more > MAX_SLOTS {
                    needed += more;
                    step += more << MAX_MASK;
                }
            }
            step
        };
        if step == left {
            break;
        }
        at += step + 1;
    }
    if needed > MAX_SLOTS { Err(WatchError::TooManySlots { needed }) } else { Ok(slots) }
}

/// Counts a slot, and keeps it where it can be of use.
fn push(slots: &mut Vec<WatchSlot>, needed: &mut u64, slot: WatchSlot) {
    *needed += 1;
    if *needed <= MAX_SLOTS {
        slots.push(slot);
    }
}

/// Whether a watchpoint exception belongs to a watch of `length` bytes from `first`; the lowest watched byte that the
/// access can have touched, if it does.
///
/// FAR lies between the lowest byte accessed and the highest *watched* byte accessed, and in a cache block with a
/// watched one; only cache maintenance may report an address above (Arm ARM, D2.9.8 "Watchpoint exceptions, Fault
/// address information"). So the watched byte is looked for upwards from FAR, as far as the access
/// reaches. `access` is the decoded instruction at pc, see [`crate::arm64::insn::access`]; without it, 64 bytes are
/// allowed for. `is_write` is the syndrome's `WnR`, if it is known; it is not looked at for an instruction that both
/// loads and stores.
///
/// A tag in the top byte of `far` is ignored: the hardware does not compare it either. Where several watches match,
/// the one with the lowest address is the best guess.
pub fn matches(
    kind: WatchKind,
    first: u64,
    length: u64,
    far: u64,
    is_write: Option<bool>,
    access: Option<Access>,
) -> Option<u64> {
    let both = access.is_some_and(|access| access.read && access.write);
    let write = if both { None } else { is_write.or(access.map(|access| access.write)) };
    let kind_matches = match (kind, write) {
        (WatchKind::Access, _) | (_, None) => true,
        (WatchKind::Write, Some(write)) => write,
        (WatchKind::Read, Some(write)) => !write,
    };
    if !kind_matches || length == 0 {
        return None;
    }
    let far = without_tag(far);
    let (from, to) = match access {
        Some(Access { bytes, dc_zva: true, .. }) => {
            let block = u64::from(bytes.max(1)).next_power_of_two();
            (far & !(block - 1), far | (block - 1))
        }
        Some(Access { bytes, .. }) => (far, far.saturating_add(u64::from(bytes.max(1)) - 1)),
        None => (far, far.saturating_add(UNKNOWN_ACCESS - 1)),
    };
    let last = first.saturating_add(length - 1);
    let hit = from.max(first);
    (hit <= to.min(last)).then_some(if (first..=last).contains(&far) { far } else { hit })
}

/// Replaces the top byte by copies of bit 55.
const fn without_tag(address: u64) -> u64 {
    ((address << 8) as i64 >> 8) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots(address: u64, length: u64) -> Vec<(u64, u8, u8)> {
        let slots = plan(WatchKind::Write, address, length).unwrap();
        slots.iter().map(|slot| (slot.address, slot.mask, slot.bas)).collect()
    }

    #[test]
    fn inside_a_doubleword() {
        assert_eq!(slots(0x1003, 3), [(0x1000, 0, 0b0011_1000)]);
        assert_eq!(slots(0x1000, 8), [(0x1000, 0, 0xff)]);
        assert_eq!(slots(0x1007, 1), [(0x1000, 0, 0x80)]);
        assert_eq!(slots(u64::MAX, 1), [(!7, 0, 0x80)]);
    }

    #[test]
    fn aligned_powers_of_two() {
        assert_eq!(slots(0x1040, 64), [(0x1040, 6, 0xff)]);
        assert_eq!(slots(0xffff_8000_1234_5000, 4096), [(0xffff_8000_1234_5000, 12, 0xff)]);
        assert_eq!(slots(0x8000_0000, 1 << 31), [(0x8000_0000, 31, 0xff)]);
        assert_eq!(slots(0, 1 << 32), [(0, 31, 0xff), (0x8000_0000, 31, 0xff)]);
        assert_eq!(slots(0, 16 << 31).len(), 16);
    }

    #[test]
    fn everything_else_is_split() {
        assert_eq!(slots(0x1006, 4), [(0x1000, 0, 0xc0), (0x1008, 0, 0x03)]);
        assert_eq!(slots(0x1008, 24), [(0x1008, 0, 0xff), (0x1010, 4, 0xff)]);
        assert_eq!(slots(0x0fff, 18), [(0x0ff8, 0, 0x80), (0x1000, 4, 0xff), (0x1010, 0, 0x01)]);
    }

    #[test]
    fn ranges_that_are_refused() {
        let plan = |address, length| plan(WatchKind::Read, address, length).unwrap_err();
        assert_eq!(plan(0x1000, 0), WatchError::Empty { address: 0x1000 });
        assert_eq!(plan(u64::MAX, 2), WatchError::Wraps { address: u64::MAX, length: 2 });
        assert_eq!(plan(1 << 60, 1), WatchError::NonCanonical { address: 1 << 60 });
        assert_eq!(plan((1 << 52) - 1, 2), WatchError::NonCanonical { address: 1 << 52 });
        assert_eq!(plan(0, u64::MAX), WatchError::NonCanonical { address: u64::MAX - 1 });
        assert_eq!(plan(0, 17 << 31), WatchError::TooManySlots { needed: 17 });
        assert_eq!(plan(0, 1 << 52), WatchError::TooManySlots { needed: 1 << 21 });
        assert_eq!(plan(1, (1 << 52) - 2), WatchError::TooManySlots { needed: (1 << 21) - 2 + 58 });
    }

    const fn load(bytes: u32) -> Option<Access> {
        Some(Access { bytes, read: true, write: false, dc_zva: false })
    }

    #[test]
    fn an_access_that_starts_below_the_watch() {
        // LDP of two X registers at 0x1000, byte 0x100c is watched.
        assert_eq!(matches(WatchKind::Read, 0x100c, 1, 0x1000, Some(false), load(16)), Some(0x100c));
        assert_eq!(matches(WatchKind::Read, 0x1010, 1, 0x1000, Some(false), load(16)), None);
        // A misaligned LDR.
        assert_eq!(matches(WatchKind::Access, 0x1000, 8, 0xffd, Some(false), load(8)), Some(0x1000));
    }

    #[test]
    fn an_access_into_the_middle_or_over_the_end() {
        assert_eq!(matches(WatchKind::Access, 0x1000, 8, 0x1004, Some(false), load(1)), Some(0x1004));
        assert_eq!(matches(WatchKind::Access, 0x1000, 8, 0x1007, Some(false), load(8)), Some(0x1007));
        assert_eq!(matches(WatchKind::Access, 0x1000, 8, 0x1008, Some(false), load(8)), None);
    }

    #[test]
    fn dc_zva_reaches_down_and_up() {
        let zva = Some(Access { bytes: 64, read: false, write: true, dc_zva: true });
        assert_eq!(matches(WatchKind::Write, 0x1000, 1, 0x1030, Some(true), zva), Some(0x1000));
        assert_eq!(matches(WatchKind::Write, 0x103f, 1, 0x1000, Some(true), zva), Some(0x103f));
        assert_eq!(matches(WatchKind::Write, 0x1040, 1, 0x1000, Some(true), zva), None);
    }

    #[test]
    fn an_unreadable_instruction_is_given_64_bytes() {
        assert_eq!(matches(WatchKind::Read, 0x103f, 1, 0x1000, Some(false), None), Some(0x103f));
        assert_eq!(matches(WatchKind::Read, 0x1040, 1, 0x1000, Some(false), None), None);
    }

    #[test]
    fn the_direction_counts() {
        assert_eq!(matches(WatchKind::Write, 0x1000, 8, 0x1000, Some(false), load(8)), None);
        assert_eq!(matches(WatchKind::Read, 0x1000, 8, 0x1000, Some(true), None), None);
        assert_eq!(matches(WatchKind::Write, 0x1000, 8, 0x1000, None, load(8)), None);
        assert_eq!(matches(WatchKind::Write, 0x1000, 8, 0x1000, None, None), Some(0x1000));
        let swap = Some(Access { bytes: 8, read: true, write: true, dc_zva: false });
        assert_eq!(matches(WatchKind::Write, 0x1000, 8, 0x1000, Some(false), swap), Some(0x1000));
    }

    #[test]
    fn a_tag_is_ignored_and_the_end_of_memory_is_no_trap() {
        assert_eq!(matches(WatchKind::Read, 0x1000, 8, 0x5a00_0000_0000_1000, None, None), Some(0x1000));
        let kernel = 0xffff_8000_0000_1000;
        assert_eq!(matches(WatchKind::Read, kernel, 8, 0x5aff_8000_0000_1000, None, None), Some(kernel));
        assert_eq!(matches(WatchKind::Read, u64::MAX, 8, u64::MAX, None, load(64)), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn slots_cover_exactly_what_was_asked_for(
            top in prop_oneof![Just(0u64), Just(0xfff8_u64 << 48)],
            low in 0u64..1 << 40,
            shift in 0u32..34,
            length: u64,
        ) {
            let address = top | low;
            let length = (length & ((1 << shift) - 1)).max(1);
            let Ok(slots) = plan(WatchKind::Access, address, length) else { return Ok(()) };
            let mut next = address;
            for slot in &slots {
                let covers = slot.covers();
                prop_assert_eq!(*covers.start(), next, "gap or overlap in {:x?}", slots);
                prop_assert_eq!(slot.dbgwvr(), slot.address, "a slot's address is what the register holds");
                next = covers.end() + 1;
            }
            prop_assert_eq!(next, address + length);
            prop_assert!(slots.len() as u64 <= MAX_SLOTS);
        }

        #[test]
        fn fewer_slots_would_not_do(address in 0u64..512, length in 1u64..512) {
            let last = address + length - 1;
            let (slots, needed) = match plan(WatchKind::Access, address, length) {
                Ok(slots) => (slots.len(), slots.len() as u64),
                Err(WatchError::TooManySlots { needed }) => (0, needed),
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            };
            // Fewest slots for the bytes up to each one, over every slot that fits in the range.
            let mut fewest = vec![0u64];
            for end in address..=last {
                let candidates = (address..=end).filter(|start| fits_one_slot(*start, end - start + 1));
                let best = candidates.filter_map(|start| fewest.get((start - address) as usize)).min().unwrap() + 1;
                fewest.push(best);
            }
            prop_assert_eq!(needed, fewest[length as usize], "{} slots", slots);
        }

        #[test]
        fn nothing_panics(address: u64, length: u64, far: u64, write: Option<bool>, bytes: u32, zva: bool) {
            let _ = plan(WatchKind::Read, address, length);
            let access = Access { bytes, read: true, write: false, dc_zva: zva };
            for access in [None, Some(access)] {
                if let Some(hit) = matches(WatchKind::Access, address, length, far, write, access) {
                    prop_assert!(hit >= address && hit - address < length);
                }
            }
        }
    }

    fn fits_one_slot(start: u64, length: u64) -> bool {
        let last = start + length - 1;
        start / 8 == last / 8 || length.is_power_of_two() && start.is_multiple_of(length)
    }
}
