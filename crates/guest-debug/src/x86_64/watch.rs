//! Watches: from a range of bytes to debug register slots.

use crate::stop::WatchKind;
use crate::x86_64::dbgreg::SLOTS;
use crate::x86_64::slot::{Condition, Length, Slot};
use crate::x86_64::va::VaBits;
use thiserror::Error;

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
    #[error("address {address:#x} of the watch is not canonical: bits 63 to {} must be all 0 or all 1", .va.get() - 1)]
    NonCanonical {
        /// The first or the last byte of the range.
        address: u64,
        /// Width of linear addresses.
        va: VaBits,
    },
    /// No CPU has that many slots.
    #[error("the watch needs {needed} debug register slots, a CPU has {SLOTS}")]
    TooManySlots {
        /// Number of slots that the range would take.
        needed: u64,
    },
}

/// How a watch is armed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The slots, by ascending address. They cover the bytes asked for, each of them once and no other.
    pub slots: Vec<Slot>,
    /// Reads were asked for, and the slots match writes as well: x86 has no slot for reads alone.
    pub widened: bool,
}

/// The fewest slots that watch exactly `length` bytes from `address`.
///
/// A slot has no byte select: it covers 1, 2, 4 or 8 bytes from a multiple of that, and the range is split into such
/// pieces. Fewer and larger slots could cover it with some bytes around it, but a hit there could not be told from one
/// inside: DR6 reports the slot and not the address.
///
/// # Errors
///
/// [`WatchError`] for an empty, wrapping or non-canonical range, and for one that needs more than [`SLOTS`]. Whether as many
/// are free is the caller's to check.
pub fn plan(kind: WatchKind, address: u64, length: u64, va: VaBits) -> Result<Plan, WatchError> {
    if length == 0 {
        return Err(WatchError::Empty { address });
    }
    let last = address.checked_add(length - 1).ok_or(WatchError::Wraps { address, length })?;
    if !va.is_canonical(address) {
        return Err(WatchError::NonCanonical { address, va });
    }
    // A range from one canonical half to the other has a hole in between.
    if !va.is_canonical(last) || (address ^ last) >> 63 != 0 {
        return Err(WatchError::NonCanonical { address: last, va });
    }

    let needed = slots_for(address, last);
    if needed > SLOTS as u64 {
        return Err(WatchError::TooManySlots { needed });
    }
    let mut slots = Vec::new();
    let mut at = address;
    loop {
        let length = piece(at, last);
        let condition = match kind {
            WatchKind::Write => Condition::Write(length),
            WatchKind::Read | WatchKind::Access => Condition::Access(length),
        };
        // Canonical as the whole range is, and aligned by its choice.
        slots.push(Slot { address: at, condition });
        // The range may end at the last address there is.
        match at.checked_add(length.bytes()) {
            Some(next) if next <= last => at = next,
            _ => return Ok(Plan { slots, widened: kind == WatchKind::Read }),
        }
    }
}

/// The longest slot at `at` that reaches no further than `last`.
const fn piece(at: u64, last: u64) -> Length {
    let left = last - at;
    if at.is_multiple_of(8) && left >= 7 {
        Length::Eight
    } else if at.is_multiple_of(4) && left >= 3 {
        Length::Four
    } else if at.is_multiple_of(2) && left >= 1 {
        Length::Two
    } else {
        Length::One
    }
}

/// Number of slots that the bytes from `first` to `last` take. What is between the first and the last doubleword is
/// counted at once: a range may be as large as the address space.
const fn slots_for(first: u64, last: u64) -> u64 {
    let mut needed = 0;
    let mut at = first;
    loop {
        let length = piece(at, last);
        let mut step = length.bytes() - 1;
        needed += 1;
        if matches!(length, Length::Eight) {
            let more = (last - at - step) / 8;
            needed += more;
            step += more * 8;
        }
        if step == last - at {
            return needed;
        }
        at += step + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VaBits::{Bits48, Bits57};
    use proptest::prelude::*;

    fn pieces(address: u64, length: u64) -> Vec<(u64, u64)> {
        let plan = plan(WatchKind::Write, address, length, Bits48).unwrap();
        plan.slots.iter().map(|slot| (slot.address, slot.covers().end() - slot.covers().start() + 1)).collect()
    }

    #[test]
    fn one_slot_where_the_range_is_aligned() {
        for length in [1, 2, 4, 8] {
            assert_eq!(pieces(0xffff_8880_0000_1000 + length, length), [(0xffff_8880_0000_1000 + length, length)]);
        }
    }

    #[test]
    fn everything_else_is_split() {
        assert_eq!(pieces(0x1001, 7), [(0x1001, 1), (0x1002, 2), (0x1004, 4)]);
        assert_eq!(pieces(0x1002, 4), [(0x1002, 2), (0x1004, 2)]);
        assert_eq!(pieces(0x1004, 12), [(0x1004, 4), (0x1008, 8)]);
        assert_eq!(pieces(0x1000, 32), [(0x1000, 8), (0x1008, 8), (0x1010, 8), (0x1018, 8)]);
        assert_eq!(pieces(u64::MAX - 9, 10), [(u64::MAX - 9, 2), (u64::MAX - 7, 8)]);
    }

    #[test]
    fn a_read_watch_is_widened_and_says_so() {
        let plan = |kind| plan(kind, 0x1000, 4, Bits48).unwrap();
        let (read, access, write) = (plan(WatchKind::Read), plan(WatchKind::Access), plan(WatchKind::Write));
        assert_eq!(read.slots[0].condition(), Condition::Access(Length::Four));
        assert_eq!(access.slots, read.slots);
        assert_eq!(write.slots[0].condition(), Condition::Write(Length::Four));
        assert_eq!((read.widened, access.widened, write.widened), (true, false, false));
    }

    #[test]
    fn ranges_that_are_refused() {
        let plan = |address, length, va| plan(WatchKind::Read, address, length, va).unwrap_err();
        assert_eq!(plan(0x1000, 0, Bits48), WatchError::Empty { address: 0x1000 });
        assert_eq!(plan(u64::MAX, 2, Bits48), WatchError::Wraps { address: u64::MAX, length: 2 });
        let hole = 1 << 47;
        assert_eq!(plan(hole, 1, Bits48), WatchError::NonCanonical { address: hole, va: Bits48 });
        assert_eq!(plan(hole - 1, 2, Bits48), WatchError::NonCanonical { address: hole, va: Bits48 });
        let last = u64::MAX - 1;
        assert_eq!(plan(0, u64::MAX, Bits57), WatchError::NonCanonical { address: last, va: Bits57 });
        assert_eq!(plan(0x1000, 33, Bits48), WatchError::TooManySlots { needed: 5 });
        assert_eq!(plan(0x1000, 33, Bits48).to_string(), "the watch needs 5 debug register slots, a CPU has 4");
        assert_eq!(plan(0, 1 << 47, Bits48), WatchError::TooManySlots { needed: 1 << 44 });
        let needed = (1 << 44) - 2 + 3 + 3;
        assert_eq!(plan(1, (1 << 47) - 2, Bits48), WatchError::TooManySlots { needed });
    }

    proptest! {
        #[test]
        fn slots_cover_exactly_what_was_asked_for(
            top in prop_oneof![Just(0u64), Just(0xffff_8000_0000_0000)],
            low in 0u64..1 << 46,
            length in 1u64..40,
        ) {
            let address = top | low;
            let Ok(plan) = plan(WatchKind::Access, address, length, Bits48) else { return Ok(()) };
            let mut next = address;
            for slot in &plan.slots {
                prop_assert_eq!(*slot.covers().start(), next, "gap or overlap in {:x?}", plan);
                prop_assert_eq!(Slot::new(slot.address, slot.condition, Bits48), Ok(*slot));
                next = slot.covers().end() + 1;
            }
            prop_assert_eq!(next, address + length);
        }

        #[test]
        fn fewer_slots_would_not_do(address in 0u64..64, length in 1u64..64) {
            let needed = match plan(WatchKind::Access, address, length, Bits48) {
                Ok(plan) => plan.slots.len() as u64,
                Err(WatchError::TooManySlots { needed, .. }) => needed,
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            };
            // Fewest slots for the bytes before each one, over every slot that fits in the range.
            let mut fewest = vec![0u64];
            for end in address + 1..=address + length {
                let starts = [1, 2, 4, 8].into_iter().filter_map(|size| {
                    let start = end.checked_sub(size)?;
                    (start >= address && start % size == 0).then_some(start)
                });
                let best = starts.map(|start| fewest[(start - address) as usize]).min().unwrap() + 1;
                fewest.push(best);
            }
            prop_assert_eq!(needed, fewest[length as usize]);
        }

        #[test]
        fn any_range_ends(address: u64, length: u64, wide: bool) {
            let va = if wide { Bits57 } else { Bits48 };
            let _ = plan(WatchKind::Read, address, length, va);
        }
    }
}
