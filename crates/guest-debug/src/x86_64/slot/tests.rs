//! Values of DR7 are worked out from the manual's tables of R/W and LEN, bit by bit.

use super::*;
use Condition::{Access, Execute, Write};
use VaBits::{Bits48, Bits57};
use proptest::prelude::*;

const KERNEL: u64 = 0xffff_ffff_8100_0000;

fn slot(address: u64, condition: Condition) -> Slot {
    Slot::new(address, condition, Bits48).unwrap()
}

#[test]
fn one_breakpoint() {
    let hw = HwDebug::new(&[slot(KERNEL + 1, Execute)]).unwrap();
    assert_eq!(hw.to_registers(), [KERNEL + 1, 0, 0, 0, 0, 0, 0, 0x602]);
}

#[test]
fn four_slots_of_all_conditions() {
    let slots = [
        slot(0x1001, Write(Length::One)),
        slot(0x1002, Access(Length::Two)),
        slot(0x1004, Write(Length::Four)),
        slot(0x1008, Access(Length::Eight)),
    ];
    let registers = HwDebug::new(&slots).unwrap().to_registers();
    assert_eq!(registers, [0x1001, 0x1002, 0x1004, 0x1008, 0, 0, 0, 0xbd71_06aa]);
    assert_eq!(HwDebug::new(&[slots[0]; 5]), Err(SlotError::TooMany { needed: 5 }));
}

#[test]
fn nothing_armed_is_the_value_after_a_reset() {
    assert_eq!(HwDebug::default().to_registers(), [0, 0, 0, 0, 0, 0, 0, 0x400]);
}

#[test]
fn general_detect_needs_no_slot() {
    let hw = HwDebug { general_detect: true, ..HwDebug::default() };
    assert_eq!(hw.to_registers(), [0, 0, 0, 0, 0, 0, 0, 0x2400]);
}

#[test]
fn covered_bytes() {
    assert_eq!(slot(0x1003, Execute).covers(), 0x1003..=0x1003);
    assert_eq!(slot(0x1004, Write(Length::Four)).covers(), 0x1004..=0x1007);
    assert_eq!(slot(!7, Access(Length::Eight)).covers(), u64::MAX - 7..=u64::MAX);
}

#[test]
fn slots_that_are_refused() {
    for (address, condition, length) in
        [(0x1001, Write(Length::Two), 2), (0x1002, Access(Length::Four), 4), (0x1004, Access(Length::Eight), 8)]
    {
        assert_eq!(Slot::new(address, condition, Bits48), Err(SlotError::Misaligned { address, length }));
    }
    let address = 0x0000_8000_0000_0000;
    assert_eq!(Slot::new(address, Execute, Bits48), Err(SlotError::NonCanonical { address, va: Bits48 }));
    assert!(Slot::new(address, Execute, Bits57).is_ok());
    let address = 0x0100_0000_0000_0000;
    assert_eq!(Slot::new(address, Execute, Bits57), Err(SlotError::NonCanonical { address, va: Bits57 }));
    for length in [0, 3, 5, 6, 7, 9, 16, u64::MAX] {
        assert_eq!(Length::from_bytes(length), Err(SlotError::Length { length }));
    }
}

#[test]
fn errors_say_what_is_acceptable() {
    let error = Slot::new(1 << 60, Execute, Bits57).unwrap_err();
    let text = "address 0x1000000000000000 is not canonical: bits 63 to 56 must be all 0 or all 1";
    assert_eq!(error.to_string(), text);
    let error = SlotError::ExecuteLength { slot: 1, len: 1 };
    assert_eq!(error.to_string(), "DR7 gives slot 1, an execution breakpoint, LEN 0b01: it must be 0b00");
}

#[test]
fn values_without_a_meaning_are_refused_if_they_are_enabled() {
    let decode = |dr7| HwDebug::from_registers(&[0x1001, 0x1001, 0, 0, 0, 0, 0, dr7], Bits48);
    assert_eq!(decode(0x0002_0401), Err(SlotError::Io { slot: 0 }));
    assert_eq!(decode(0x0040_0408), Err(SlotError::ExecuteLength { slot: 1, len: 1 }));
    assert_eq!(decode(0x00d0_0408), Err(SlotError::Misaligned { address: 0x1001, length: 4 }));
    for dr7 in [0x0002_0400, 0x0040_0400, 0x00d0_0400] {
        assert_eq!(decode(dr7), Ok(HwDebug::default()));
    }
}

#[test]
fn either_enable_bit_arms_a_slot() {
    for dr7 in [0x404, 0x408, 0x40c] {
        let hw = HwDebug::from_registers(&[0, 0x1003, 0, 0, 0, 0, 0, dr7], Bits48).unwrap();
        assert_eq!(hw.slots, [None, Some(slot(0x1003, Execute)), None, None], "DR7 {dr7:#x}");
    }
}

fn slots() -> impl Strategy<Value = Slot> {
    let length = (0u32..4).prop_map(|log2| Length::from_bytes(1 << log2).unwrap());
    let condition = prop_oneof![Just(Execute), length.clone().prop_map(Write), length.prop_map(Access)];
    let address = any::<u64>().prop_map(|address| ((address << 16) as i64 >> 16) as u64);
    (address, condition).prop_map(|(address, condition)| {
        let bytes = match condition {
            Execute => 1,
            Write(length) | Access(length) => length.bytes(),
        };
        slot(address & !(bytes - 1), condition)
    })
}

proptest! {
    #[test]
    fn slots_round_trip(slots: [bool; 4], of in prop::array::uniform4(slots()), general_detect: bool) {
        let mut hw = HwDebug { general_detect, ..HwDebug::default() };
        for (n, _) in slots.iter().enumerate().filter(|(_, armed)| **armed) {
            hw.slots[n] = Some(of[n]);
        }
        prop_assert_eq!(HwDebug::from_registers(&hw.to_registers(), Bits48), Ok(hw));
    }

    #[test]
    fn any_registers_decode_or_are_refused(mut registers: [u64; 8], small: bool, dr7: u32) {
        if small {
            registers = registers.map(|value| value >> 20 << 3);
            registers[7] = u64::from(dr7);
        }
        if let Ok(hw) = HwDebug::from_registers(&registers, Bits57) {
            let again = hw.to_registers();
            prop_assert_eq!(HwDebug::from_registers(&again, Bits57), Ok(hw));
            // Meaning is kept: what was enabled stays so, with the same address, R/W and LEN.
            for n in 0..SLOTS {
                let enabled = registers[7] >> (2 * n) & 3 != 0;
                prop_assert_eq!(enabled, again[7] >> (2 * n) & 3 != 0);
                if enabled {
                    prop_assert_eq!(registers[n], again[n]);
                    prop_assert_eq!(registers[7] >> (16 + 4 * n) & 0xf, again[7] >> (16 + 4 * n) & 0xf);
                }
            }
        }
    }
}
