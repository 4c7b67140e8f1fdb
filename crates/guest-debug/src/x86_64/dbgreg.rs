//! The debug registers DR6 and DR7: fields in, register values out, and back.
//!
//! Source: SDM 17.2.3 "Debug Status Register (DR6)" and 17.2.4 "Debug Control Register (DR7)", with 17.3.3 for RTM and
//! 17.3.1.6 for bus locks; APM 13.1.1.3 and 13.1.1.4. The names of the masks are those of the kernel's
//! `arch/x86/include/asm/kvm_host.h`.

/// Number of address registers: DR0 to DR3.
pub const SLOTS: usize = 4;

/// What DR7 says about one of DR0 to DR3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotControl {
    /// `L`, bit `2 * n`: enabled until the next hardware task switch.
    pub local: bool,
    /// `G`, bit `2 * n + 1`: enabled for all tasks.
    pub global: bool,
    /// `R/W`, two bits from `16 + 4 * n`: 0 execution, 1 data writes, 2 I/O (with CR4.DE, undefined without), 3 data
    /// accesses.
    pub rw: u8,
    /// `LEN`, two bits from `18 + 4 * n`: 0 one byte, 1 two bytes, 2 eight bytes, 3 four bytes.
    pub len: u8,
}

impl SlotControl {
    /// Whether `L` or `G` is set.
    pub const fn enabled(self) -> bool {
        self.local || self.global
    }
}

/// Fields of DR7, debug control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dr7 {
    /// The four slots.
    pub slots: [SlotControl; SLOTS],
    /// `LE`, bit 8: exact data breakpoints, ignored since the P6 family.
    pub le: bool,
    /// `GE`, bit 9: as `LE`, for all tasks.
    pub ge: bool,
    /// `RTM`, bit 11: advanced debugging of transactional regions; reserved on AMD.
    pub rtm: bool,
    /// `GD`, bit 13: general detect; the next access to a debug register is a debug exception.
    pub gd: bool,
}

impl Dr7 {
    /// The bits that have a field (`DR7_VOLATILE`).
    pub const BITS: u64 = 0xffff_2bff;
    /// The bit that always reads as 1 (`DR7_FIXED_1`), and the register's value after a reset.
    pub const FIXED_1: u64 = 1 << 10;

    /// Register value; bits beyond a field's width are dropped.
    pub const fn to_bits(self) -> u64 {
        let mut bits = Self::FIXED_1
            | (self.le as u64) << 8
            | (self.ge as u64) << 9
            | (self.rtm as u64) << 11
            | (self.gd as u64) << 13;
        let mut n = 0;
        while n < SLOTS {
            let SlotControl { local, global, rw, len } = self.slots[n];
            bits |= (local as u64 | (global as u64) << 1) << (2 * n);
            bits |= (rw as u64 & 3 | (len as u64 & 3) << 2) << (16 + 4 * n);
            n += 1;
        }
        bits
    }

    /// Fields of a register value. Reserved bits are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        let mut slots = [SlotControl { local: false, global: false, rw: 0, len: 0 }; SLOTS];
        let mut n = 0;
        while n < SLOTS {
            let control = bits >> (16 + 4 * n);
            slots[n] = SlotControl {
                local: is_set(bits, 2 * n as u32),
                global: is_set(bits, 2 * n as u32 + 1),
                rw: (control & 3) as u8,
                len: (control >> 2 & 3) as u8,
            };
            n += 1;
        }
        Self { slots, le: is_set(bits, 8), ge: is_set(bits, 9), rtm: is_set(bits, 11), gd: is_set(bits, 13) }
    }
}

/// Fields of DR6, debug status. `true` always means that the event happened, also for the two bits that the register
/// holds inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dr6 {
    /// `B0` to `B3`, bits 3:0: the condition of the slot was met, whether DR7 enables the slot or not.
    pub hits: [bool; SLOTS],
    /// `BLD`, bit 11, inverted: a bus lock was taken.
    pub bld: bool,
    /// `BD`, bit 13: the next instruction accesses a debug register, with DR7.GD set.
    pub bd: bool,
    /// `BS`, bit 14: a single step.
    pub bs: bool,
    /// `BT`, bit 15: a task switch to a TSS whose T flag is set.
    pub bt: bool,
    /// `RTM`, bit 16, inverted: the exception happened inside a transactional region.
    pub rtm: bool,
}

impl Dr6 {
    /// The bits that have a field (`DR6_VOLATILE`).
    pub const BITS: u64 = 0x0001_e80f;
    /// The reserved bits that read as 1 (`DR6_FIXED_1`).
    pub const FIXED_1: u64 = 0xfffe_07f0;
    /// Everything that is 1 while nothing has happened (`DR6_ACTIVE_LOW`), which is the value after a reset.
    pub const ACTIVE_LOW: u64 = 0xffff_0ff0;

    /// Register value.
    pub const fn to_bits(self) -> u64 {
        let mut bits = Self::FIXED_1
            | (!self.bld as u64) << 11
            | (self.bd as u64) << 13
            | (self.bs as u64) << 14
            | (self.bt as u64) << 15
            | (!self.rtm as u64) << 16;
        let mut n = 0;
        while n < SLOTS {
            bits |= (self.hits[n] as u64) << n;
            n += 1;
        }
        bits
    }

    /// Fields of a register value. Reserved bits are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            hits: [is_set(bits, 0), is_set(bits, 1), is_set(bits, 2), is_set(bits, 3)],
            bld: !is_set(bits, 11),
            bd: is_set(bits, 13),
            bs: is_set(bits, 14),
            bt: is_set(bits, 15),
            rtm: !is_set(bits, 16),
        }
    }
}

const fn is_set(bits: u64, bit: u32) -> bool {
    bits >> bit & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_after_a_reset() {
        assert_eq!(Dr7::default().to_bits(), 0x400);
        assert_eq!(Dr6::default().to_bits(), 0xffff_0ff0);
        assert_eq!(Dr6::from_bits(0xffff_0ff0), Dr6::default());
    }

    /// Each field alone, at the bit where the manual's figure has it.
    #[test]
    fn every_field_of_dr7_has_its_bits() {
        for n in 0..SLOTS {
            let dr7 = |control| {
                let mut dr7 = Dr7::default();
                dr7.slots[n] = control;
                dr7.to_bits() & !0x400
            };
            let none = SlotControl::default();
            assert_eq!(dr7(SlotControl { local: true, ..none }), [0x01, 0x04, 0x10, 0x40][n]);
            assert_eq!(dr7(SlotControl { global: true, ..none }), [0x02, 0x08, 0x20, 0x80][n]);
            assert_eq!(dr7(SlotControl { rw: 3, ..none }), [0x3_0000, 0x30_0000, 0x300_0000, 0x3000_0000][n]);
            assert_eq!(dr7(SlotControl { len: 3, ..none }), [0xc_0000, 0xc0_0000, 0xc00_0000, 0xc000_0000][n]);
        }
        assert_eq!(Dr7 { le: true, ..Dr7::default() }.to_bits(), 0x500);
        assert_eq!(Dr7 { ge: true, ..Dr7::default() }.to_bits(), 0x600);
        assert_eq!(Dr7 { rtm: true, ..Dr7::default() }.to_bits(), 0xc00);
        assert_eq!(Dr7 { gd: true, ..Dr7::default() }.to_bits(), 0x2400);
    }

    #[test]
    fn a_field_that_is_too_wide_touches_no_other() {
        let wide = SlotControl { local: false, global: false, rw: 0xfc, len: 0xfc };
        assert_eq!(Dr7 { slots: [wide; SLOTS], ..Dr7::default() }.to_bits(), 0x400);
    }

    #[test]
    fn every_field_of_dr6_has_its_bit() {
        let none = Dr6::default();
        for n in 0..SLOTS {
            let mut hits = [false; SLOTS];
            hits[n] = true;
            assert_eq!(Dr6 { hits, ..none }.to_bits(), 0xffff_0ff0 | [1, 2, 4, 8][n]);
        }
        assert_eq!(Dr6 { bld: true, ..none }.to_bits(), 0xffff_07f0);
        assert_eq!(Dr6 { bd: true, ..none }.to_bits(), 0xffff_2ff0);
        assert_eq!(Dr6 { bs: true, ..none }.to_bits(), 0xffff_4ff0);
        assert_eq!(Dr6 { bt: true, ..none }.to_bits(), 0xffff_8ff0);
        assert_eq!(Dr6 { rtm: true, ..none }.to_bits(), 0xfffe_0ff0);
    }

    proptest! {
        #[test]
        fn values_round_trip_but_for_reserved_bits(bits: u64) {
            prop_assert_eq!(Dr7::from_bits(bits).to_bits(), bits & Dr7::BITS | Dr7::FIXED_1);
            prop_assert_eq!(Dr6::from_bits(bits).to_bits(), bits & Dr6::BITS | Dr6::FIXED_1);
        }
    }
}
