//! The debug registers DBGBVR, DBGBCR, DBGWVR and DBGWCR: typed slots in, register values out, and back.
//!
//! Everything the debugger arms matches at EL0 and EL1 in either security state that the guest is in
//! (`PMC`/`PAC` 0b11, `HMC` 0, `SSC` 0b00), unlinked, AArch64 (Arm ARM, D2.8 "Breakpoint exceptions" and D2.9
//! "Watchpoint exceptions").

use crate::stop::WatchKind;
use std::ops::RangeInclusive;
use thiserror::Error;

/// Highest address bit that the debug registers compare: 52 with FEAT_LVA, where 48 is enough without. A canonical
/// 48-bit address sign-extends to the same value from either bit, so one rule serves both.
const VA_TOP: u32 = 52;

/// An address, or a number of slots, that the debug registers cannot hold.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DbgRegError {
    /// A64 instructions are 4-byte aligned.
    #[error("breakpoint address {address:#x} is not a multiple of 4")]
    Misaligned {
        /// The address that was asked for.
        address: u64,
    },
    /// The top bits of the address are not all alike.
    #[error("address {address:#x} is not canonical: bits 63 to 52 must be all 0 or all 1")]
    NonCanonical {
        /// The address that was asked for.
        address: u64,
    },
    /// More breakpoints than the vCPU has slots.
    #[error("{needed} hardware breakpoints are needed, the vCPU has {available}")]
    Breakpoints {
        /// Number of slots the settings need.
        needed: usize,
        /// Number of slots there are.
        available: usize,
    },
    /// More watchpoints than the vCPU has slots.
    #[error("{needed} watchpoint slots are needed, the vCPU has {available}")]
    Watchpoints {
        /// Number of slots the settings need.
        needed: usize,
        /// Number of slots there are.
        available: usize,
    },
}

/// Whether bits 63 to 52 of `address` are all alike, so that DBGBVR and DBGWVR can hold it.
pub const fn is_canonical(address: u64) -> bool {
    sign_extend(address) == address
}

/// Copies bit 52 into the bits above it, as the RESS field of DBGBVR and DBGWVR wants it.
const fn sign_extend(address: u64) -> u64 {
    let unused = 63 - VA_TOP;
    (((address << unused) as i64) >> unused) as u64
}

/// An unlinked address-match breakpoint on an A64 instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BreakpointSlot {
    /// Guest-virtual address of the instruction.
    pub address: u64,
}

impl BreakpointSlot {
    /// A breakpoint at `address`.
    ///
    /// # Errors
    ///
    /// [`DbgRegError::Misaligned`] and [`DbgRegError::NonCanonical`].
    pub const fn new(address: u64) -> Result<Self, DbgRegError> {
        if !address.is_multiple_of(4) {
            return Err(DbgRegError::Misaligned { address });
        }
        if !is_canonical(address) {
            return Err(DbgRegError::NonCanonical { address });
        }
        Ok(Self { address })
    }

    /// Value of DBGBVR: the address, sign-extended.
    pub const fn dbgbvr(&self) -> u64 {
        sign_extend(self.address) & !3
    }

    /// Value of DBGBCR.
    pub const fn dbgbcr(&self) -> u64 {
        Dbgbcr { enabled: true, pmc: 0b11, bas: 0xf, hmc: false, ssc: 0, lbn: 0, bt: 0 }.to_bits()
    }
}

/// One watchpoint: bytes inside a doubleword, or an aligned power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchSlot {
    /// Guest-virtual address of the doubleword, or of the block: a multiple of its size.
    pub address: u64,
    /// `MASK`: number of low address bits that are not compared, 3 to 31; 0 when `bas` selects bytes.
    pub mask: u8,
    /// `BAS`: one bit per watched byte of the doubleword, contiguous; 0xff with a mask.
    pub bas: u8,
    /// Accesses that match.
    pub kind: WatchKind,
}

impl WatchSlot {
    /// Value of DBGWVR: the address, sign-extended.
    pub const fn dbgwvr(&self) -> u64 {
        sign_extend(self.address) & !7
    }

    /// Value of DBGWCR.
    pub const fn dbgwcr(&self) -> u64 {
        let lsc = match self.kind {
            WatchKind::Read => 0b01,
            WatchKind::Write => 0b10,
            WatchKind::Access => 0b11,
        };
        let Self { mask, bas, .. } = *self;
        Dbgwcr { enabled: true, pac: 0b11, lsc, bas, hmc: false, ssc: 0, lbn: 0, linked: false, mask }.to_bits()
    }

    /// First and last watched byte. Empty where `bas` selects nothing.
    pub const fn covers(&self) -> RangeInclusive<u64> {
        if self.mask != 0 {
            let low = (1 << (self.mask & 31)) - 1;
            return RangeInclusive::new(self.address & !low, self.address | low);
        }
        if self.bas == 0 {
            return RangeInclusive::new(1, 0);
        }
        let base = self.address & !7;
        RangeInclusive::new(base + self.bas.trailing_zeros() as u64, base + 7 - self.bas.leading_zeros() as u64)
    }
}

/// The hardware breakpoints and watchpoints of one vCPU, in slot order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HwDebug {
    /// Breakpoints, from slot 0.
    pub breakpoints: Vec<BreakpointSlot>,
    /// Watchpoints, from slot 0.
    pub watchpoints: Vec<WatchSlot>,
}

impl HwDebug {
    /// No slot armed.
    pub const fn none() -> Self {
        Self { breakpoints: Vec::new(), watchpoints: Vec::new() }
    }

    /// Whether no slot is armed.
    pub const fn is_none(&self) -> bool {
        self.breakpoints.is_empty() && self.watchpoints.is_empty()
    }

    /// Checks that a vCPU with that many slots can hold the settings.
    ///
    /// # Errors
    ///
    /// [`DbgRegError`], naming what is too many or the address that no debug register can hold.
    pub fn check(&self, breakpoints: usize, watchpoints: usize) -> Result<(), DbgRegError> {
        if self.breakpoints.len() > breakpoints {
            return Err(DbgRegError::Breakpoints { needed: self.breakpoints.len(), available: breakpoints });
        }
        if self.watchpoints.len() > watchpoints {
            return Err(DbgRegError::Watchpoints { needed: self.watchpoints.len(), available: watchpoints });
        }
        for slot in &self.breakpoints {
            BreakpointSlot::new(slot.address)?;
        }
        match self.watchpoints.iter().find(|slot| !is_canonical(slot.address)) {
            Some(slot) => Err(DbgRegError::NonCanonical { address: slot.address }),
            None => Ok(()),
        }
    }
}

/// Fields of DBGBCR`n`_EL1 (Arm ARM, D24.3.1). The bits that later extensions added are left out: they are 0
/// in everything this crate writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dbgbcr {
    /// `E`, bit 0.
    pub enabled: bool,
    /// `PMC`, bits 2:1: privilege mode control.
    pub pmc: u8,
    /// `BAS`, bits 8:5: byte address select, 0xf for A64.
    pub bas: u8,
    /// `HMC`, bit 13: higher mode control.
    pub hmc: bool,
    /// `SSC`, bits 15:14: security state control.
    pub ssc: u8,
    /// `LBN`, bits 19:16: number of the linked breakpoint.
    pub lbn: u8,
    /// `BT`, bits 23:20: breakpoint type, 0 for an unlinked address match.
    pub bt: u8,
}

impl Dbgbcr {
    /// The bits that have a field.
    pub const BITS: u64 = 0x00ff_e1e7;

    /// Register value; bits beyond a field's width are dropped.
    pub const fn to_bits(self) -> u64 {
        self.enabled as u64
            | put(self.pmc, 1, 2)
            | put(self.bas, 5, 4)
            | (self.hmc as u64) << 13
            | put(self.ssc, 14, 2)
            | put(self.lbn, 16, 4)
            | put(self.bt, 20, 4)
    }

    /// Fields of a register value.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            enabled: bits & 1 != 0,
            pmc: take(bits, 1, 2),
            bas: take(bits, 5, 4),
            hmc: bits & 1 << 13 != 0,
            ssc: take(bits, 14, 2),
            lbn: take(bits, 16, 4),
            bt: take(bits, 20, 4),
        }
    }
}

/// Fields of DBGWCR`n`_EL1 (Arm ARM, D24.3.11), without those of later extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dbgwcr {
    /// `E`, bit 0.
    pub enabled: bool,
    /// `PAC`, bits 2:1: privilege of access control.
    pub pac: u8,
    /// `LSC`, bits 4:3: 1 loads, 2 stores, 3 both.
    pub lsc: u8,
    /// `BAS`, bits 12:5: byte address select.
    pub bas: u8,
    /// `HMC`, bit 13: higher mode control.
    pub hmc: bool,
    /// `SSC`, bits 15:14: security state control.
    pub ssc: u8,
    /// `LBN`, bits 19:16: number of the linked breakpoint.
    pub lbn: u8,
    /// `WT`, bit 20: linked to a breakpoint.
    pub linked: bool,
    /// `MASK`, bits 28:24: number of low address bits that are not compared.
    pub mask: u8,
}

impl Dbgwcr {
    /// The bits that have a field.
    pub const BITS: u64 = 0x1f1f_ffff;

    /// Register value; bits beyond a field's width are dropped.
    pub const fn to_bits(self) -> u64 {
        self.enabled as u64
            | put(self.pac, 1, 2)
            | put(self.lsc, 3, 2)
            | put(self.bas, 5, 8)
            | (self.hmc as u64) << 13
            | put(self.ssc, 14, 2)
            | put(self.lbn, 16, 4)
            | (self.linked as u64) << 20
            | put(self.mask, 24, 5)
    }

    /// Fields of a register value.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            enabled: bits & 1 != 0,
            pac: take(bits, 1, 2),
            lsc: take(bits, 3, 2),
            bas: take(bits, 5, 8),
            hmc: bits & 1 << 13 != 0,
            ssc: take(bits, 14, 2),
            lbn: take(bits, 16, 4),
            linked: bits & 1 << 20 != 0,
            mask: take(bits, 24, 5),
        }
    }
}

const fn put(value: u8, shift: u32, width: u32) -> u64 {
    (value as u64 & ((1 << width) - 1)) << shift
}

const fn take(bits: u64, shift: u32, width: u32) -> u8 {
    (bits >> shift & ((1 << width) - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_breakpoint_as_linux_would_write_it() {
        let slot = BreakpointSlot::new(0xffff_8000_8001_0000).unwrap();
        assert_eq!(slot.dbgbvr(), 0xffff_8000_8001_0000);
        assert_eq!(slot.dbgbcr(), 0x1e7);
        assert_eq!(BreakpointSlot::new(0x40_0000).unwrap().dbgbvr(), 0x40_0000);
    }

    #[test]
    fn addresses_that_no_register_holds() {
        assert_eq!(BreakpointSlot::new(0x1002), Err(DbgRegError::Misaligned { address: 0x1002 }));
        for address in [0x00f0_0000_0000_1000, 0x0010_0000_0000_0000, 0xfff0_0000_0000_0000 - 4] {
            assert_eq!(BreakpointSlot::new(address), Err(DbgRegError::NonCanonical { address }), "{address:#x}");
        }
        for address in [0x000f_ffff_ffff_fffc, 0xfff0_0000_0000_0000] {
            assert!(BreakpointSlot::new(address).is_ok(), "52-bit address {address:#x}");
        }
    }

    #[test]
    fn a_slot_made_by_hand_still_gives_a_sign_extended_value() {
        assert_eq!(BreakpointSlot { address: 0x0010_0000_0000_1003 }.dbgbvr(), 0xfff0_0000_0000_1000);
        let watch = WatchSlot { address: 0x00ff_8000_0000_1234, mask: 0, bas: 1, kind: WatchKind::Read };
        assert_eq!(watch.dbgwvr(), 0xffff_8000_0000_1230);
    }

    #[test]
    fn watch_control_values() {
        let slot = |mask, bas, kind| WatchSlot { address: 0x1000, mask, bas, kind };
        assert_eq!(slot(0, 0xff, WatchKind::Access).dbgwcr(), 0x1fff);
        assert_eq!(slot(0, 0x0f, WatchKind::Write).dbgwcr(), 0x1f7);
        assert_eq!(slot(12, 0xff, WatchKind::Read).dbgwcr(), 0x0c00_1fef);
    }

    #[test]
    fn covered_bytes() {
        let slot = |address, mask, bas| WatchSlot { address, mask, bas, kind: WatchKind::Read }.covers();
        assert_eq!(slot(0x1000, 0, 0b0011_1000), 0x1003..=0x1005);
        assert_eq!(slot(0x1000, 0, 0xff), 0x1000..=0x1007);
        assert_eq!(slot(0x8000_0000, 31, 0xff), 0x8000_0000..=0xffff_ffff);
        assert_eq!(slot(!7, 0, 0x80), u64::MAX..=u64::MAX);
        assert!(slot(0x1000, 0, 0).is_empty());
    }

    #[test]
    fn more_than_the_slots_is_refused_by_number() {
        let breakpoints = vec![BreakpointSlot { address: 0 }; 7];
        let hw = HwDebug { breakpoints, ..HwDebug::none() };
        assert_eq!(hw.check(6, 4), Err(DbgRegError::Breakpoints { needed: 7, available: 6 }));
        assert_eq!(hw.check(7, 0), Ok(()));
        let hw = HwDebug { breakpoints: vec![BreakpointSlot { address: 2 }], ..HwDebug::none() };
        assert_eq!(hw.check(1, 0), Err(DbgRegError::Misaligned { address: 2 }));
    }

    proptest! {
        #[test]
        fn control_registers_round_trip(bits: u64) {
            prop_assert_eq!(Dbgbcr::from_bits(bits).to_bits(), bits & Dbgbcr::BITS);
            prop_assert_eq!(Dbgwcr::from_bits(bits).to_bits(), bits & Dbgwcr::BITS);
        }

        #[test]
        fn slots_never_panic(address: u64, mask: u8, bas: u8) {
            let slot = WatchSlot { address, mask, bas, kind: WatchKind::Access };
            let _ = (slot.dbgwcr(), slot.covers());
            prop_assert!(is_canonical(slot.dbgwvr()));
            let breakpoint = BreakpointSlot { address };
            prop_assert!(is_canonical(breakpoint.dbgbvr()));
        }
    }
}
