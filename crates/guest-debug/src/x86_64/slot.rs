//! Typed slots: what one of DR0 to DR3 matches, as register values and back.
//!
//! The debugger arms slots with `G`, so that a hardware task switch leaves them on, and sets `GE` with them as the SDM
//! recommends for exact data breakpoints (17.2.4). Alignment and lengths: SDM 17.2.5, APM 13.1.1.4.

use crate::stop::WatchKind;
use crate::x86_64::dbgreg::{Dr7, SLOTS, SlotControl};
use crate::x86_64::va::VaBits;
use std::ops::RangeInclusive;
use thiserror::Error;

/// A slot, or a number of slots, that the debug registers cannot hold or that has no defined meaning in them.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum SlotError {
    /// No `LEN` for it.
    #[error("a debug register watches 1, 2, 4 or 8 bytes, not {length}")]
    Length {
        /// Number of bytes that was asked for.
        length: u64,
    },
    /// A watched range starts at a multiple of its length: the CPU does not compare the address bits below.
    #[error("a watch of {length} bytes at {address:#x}: the address must be a multiple of {length}")]
    Misaligned {
        /// The address that was asked for.
        address: u64,
        /// Number of bytes, 1, 2, 4 or 8.
        length: u64,
    },
    /// The top bits of the address are not all alike: nothing is ever executed or accessed there.
    #[error("address {address:#x} is not canonical: bits 63 to {} must be all 0 or all 1", .va.get() - 1)]
    NonCanonical {
        /// The address that was asked for.
        address: u64,
        /// Width of linear addresses.
        va: VaBits,
    },
    /// `R/W` is 2: an I/O breakpoint, or undefined, depending on CR4.DE.
    #[error("DR7 makes slot {slot} an I/O breakpoint (R/W 0b10): only execution, writes and accesses are supported")]
    Io {
        /// Number of the slot.
        slot: usize,
    },
    /// `LEN` of an execution breakpoint is not 0, which is undefined.
    #[error("DR7 gives slot {slot}, an execution breakpoint, LEN {len:#04b}: it must be 0b00")]
    ExecuteLength {
        /// Number of the slot.
        slot: usize,
        /// The field.
        len: u8,
    },
    /// More slots than there are.
    #[error("{needed} debug register slots are needed, a vCPU has {SLOTS} for breakpoints and watches together")]
    TooMany {
        /// Number of slots that the settings need.
        needed: usize,
    },
}

/// Number of bytes that a data slot watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Length {
    /// 1 byte.
    One,
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes. Every CPU with 64-bit mode has it; the APM defines it in long mode only.
    Eight,
}

impl Length {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The length of that many bytes.
    ///
    /// # Errors
    ///
    /// [`SlotError::Length`].
    pub const fn from_bytes(length: u64) -> Result<Self, SlotError> {
        match length {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            _ => Err(SlotError::Length { length }),
        }
    }

    /// `LEN` in DR7. Eight bytes came last and got the value that was left.
    const fn encoding(self) -> u8 {
        match self {
            Self::One => 0b00,
            Self::Two => 0b01,
            Self::Eight => 0b10,
            Self::Four => 0b11,
        }
    }

    const fn from_encoding(len: u8) -> Self {
        match len & 3 {
            0b00 => Self::One,
            0b01 => Self::Two,
            0b10 => Self::Eight,
            _ => Self::Four,
        }
    }
}

/// What makes a slot match. x86 has no slot for reads alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// The instruction whose first byte has the address is about to be executed: a fault, pc is at the instruction.
    Execute,
    /// A byte was written: a trap, pc is behind the access.
    Write(Length),
    /// A byte was read or written: a trap. Instruction fetches do not count.
    Access(Length),
}

/// One armed debug register. Its address is canonical and a multiple of its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub(super) address: u64,
    pub(super) condition: Condition,
}

impl Slot {
    /// A slot that matches `condition` at the linear address `address`.
    ///
    /// # Errors
    ///
    /// [`SlotError::Misaligned`] and [`SlotError::NonCanonical`].
    pub const fn new(address: u64, condition: Condition, va: VaBits) -> Result<Self, SlotError> {
        let slot = Self { address, condition };
        let length = slot.length().bytes();
        if !address.is_multiple_of(length) {
            return Err(SlotError::Misaligned { address, length });
        }
        if !va.is_canonical(address) {
            return Err(SlotError::NonCanonical { address, va });
        }
        Ok(slot)
    }

    /// Slot `n` as DR`n` (in `address`) and DR7 have it; `None` where DR7 enables it neither locally nor globally.
    ///
    /// # Errors
    ///
    /// [`SlotError::Io`], [`SlotError::ExecuteLength`], and as [`Slot::new`].
    pub const fn from_registers(
        n: usize,
        address: u64,
        control: SlotControl,
        va: VaBits,
    ) -> Result<Option<Self>, SlotError> {
        if !control.enabled() {
            return Ok(None);
        }
        let length = Length::from_encoding(control.len);
        let condition = match (control.rw & 3, length) {
            (0b00, Length::One) => Condition::Execute,
            (0b00, _) => return Err(SlotError::ExecuteLength { slot: n, len: control.len & 3 }),
            (0b01, length) => Condition::Write(length),
            (0b10, _) => return Err(SlotError::Io { slot: n }),
            (_, length) => Condition::Access(length),
        };
        match Self::new(address, condition, va) {
            Ok(slot) => Ok(Some(slot)),
            Err(error) => Err(error),
        }
    }

    /// The linear address: of an instruction, or of the first watched byte. This is what DR`n` holds.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// What makes it match.
    pub const fn condition(&self) -> Condition {
        self.condition
    }

    /// The kind of watch, `None` for a breakpoint.
    pub const fn watch_kind(&self) -> Option<WatchKind> {
        match self.condition {
            Condition::Execute => None,
            Condition::Write(_) => Some(WatchKind::Write),
            Condition::Access(_) => Some(WatchKind::Access),
        }
    }

    /// First and last byte that it compares: of a breakpoint, the first byte of the instruction.
    pub const fn covers(&self) -> RangeInclusive<u64> {
        RangeInclusive::new(self.address, self.address | (self.length().bytes() - 1))
    }

    /// What DR7 says about it, enabled globally.
    pub const fn control(&self) -> SlotControl {
        let (rw, length) = match self.condition {
            Condition::Execute => (0b00, Length::One),
            Condition::Write(length) => (0b01, length),
            Condition::Access(length) => (0b11, length),
        };
        SlotControl { local: false, global: true, rw, len: length.encoding() }
    }

    const fn length(&self) -> Length {
        match self.condition {
            Condition::Execute => Length::One,
            Condition::Write(length) | Condition::Access(length) => length,
        }
    }
}

/// The four slots of one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HwDebug {
    /// What DR0 to DR3 hold.
    pub slots: [Option<Slot>; SLOTS],
    /// `GD`: the guest's accesses to its debug registers are debug exceptions.
    pub general_detect: bool,
}

impl HwDebug {
    /// The given slots, from DR0 on, without general detect.
    ///
    /// # Errors
    ///
    /// [`SlotError::TooMany`].
    pub fn new(slots: &[Slot]) -> Result<Self, SlotError> {
        let mut hw = Self::default();
        if slots.len() > SLOTS {
            return Err(SlotError::TooMany { needed: slots.len() });
        }
        for (to, from) in hw.slots.iter_mut().zip(slots) {
            *to = Some(*from);
        }
        Ok(hw)
    }

    /// DR0 to DR7 as `debugreg` of the kernel's `struct kvm_guest_debug_arch` wants them: DR4 to DR6 are not looked at and 0.
    pub fn to_registers(&self) -> [u64; 8] {
        let mut registers = [0; 8];
        let mut dr7 = Dr7 { gd: self.general_detect, ..Dr7::default() };
        for ((slot, control), register) in self.slots.iter().zip(&mut dr7.slots).zip(&mut registers) {
            if let Some(slot) = slot {
                (*control, *register) = (slot.control(), slot.address);
                dr7.ge = true;
            }
        }
        registers[7] = dr7.to_bits();
        registers
    }

    /// The slots that DR0 to DR3 and DR7, the first four and the last of `registers`, arm, and general detect.
    ///
    /// # Errors
    ///
    /// As [`Slot::from_registers`], for the lowest slot that is in error.
    pub fn from_registers(registers: &[u64; 8], va: VaBits) -> Result<Self, SlotError> {
        let dr7 = Dr7::from_bits(registers[7]);
        let mut hw = Self { general_detect: dr7.gd, ..Self::default() };
        for (n, slot) in hw.slots.iter_mut().enumerate() {
            *slot = Slot::from_registers(n, registers[n], dr7.slots[n], va)?;
        }
        Ok(hw)
    }
}

#[cfg(test)]
mod tests;
