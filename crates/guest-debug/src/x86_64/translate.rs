//! Address translation by the guest's own page tables, as the CPU would do it, from the vCPU's registers and guest memory.
//!
//! Source: SDM chapter 4 "Paging" (chapter 5 in newer editions), APM chapter 5. Linear addresses go in: a segment's base
//! has been added ([`crate::x86_64::mode`]). Registers and tables come from the guest: whatever they hold, a walk reads at
//! most five entries and ends with an address or with an error that names what is wrong.
//!
//! The answer says where a mapping leads, not whether the guest may use it: the accessed and dirty bits are not looked at,
//! the permissions of [`Translation`] are for display, and protection keys, SMEP and SMAP have no part in them. Tags of
//! linear address masking (LAM) and upper address ignore (UAI) are not removed. 1 GiB pages and PSE-36 are taken to be
//! there, and the PDPTE registers of PAE paging to hold what memory holds.

use crate::ram::GuestRam;
use crate::x86_64::va::VaBits;
use thiserror::Error;
use vm_memory::GuestAddress;

#[cfg(test)]
mod tests;

/// The registers that decide about a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// CR0: PG, bit 31.
    pub cr0: u64,
    /// CR3, the address of the first table.
    pub cr3: u64,
    /// CR4: PSE, PAE and LA57, bits 4, 5 and 12.
    pub cr4: u64,
    /// IA32_EFER: LME and NXE, bits 8 and 11.
    pub efer: u64,
    /// Bits of a physical address, MAXPHYADDR: CPUID leaf 0x8000_0008, EAX bits 7:0.
    pub physical_bits: u8,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: u64,
    /// Bytes that the same entry maps, contiguous and aligned; 4 GiB without paging.
    pub page_size: u64,
    /// First linear address of those bytes.
    pub page_gva: u64,
    /// R/W is set at every level. The supervisor needs it with CR0.WP only.
    pub writable: bool,
    /// U/S is set at every level.
    pub user: bool,
    /// XD is set at no level.
    pub executable: bool,
}

/// Why an address has no translation. Levels: 1 page table, 2 page directory, 3 page-directory-pointer table, 4 PML4, 5
/// PML5.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TranslateError {
    /// No CPU has physical addresses of that width.
    #[error("{bits} bits of a physical address: must be 32 to 52")]
    PhysicalBits {
        /// The width that was given.
        bits: u8,
    },
    /// EFER.LME and CR0.PG are set without CR4.PAE: the CPU refuses to get there (SDM 4.1.2).
    #[error("CR0.PG and EFER.LME are set and CR4.PAE ({cr4:#x}) is not: there is no such paging mode")]
    LongModeWithoutPae {
        /// CR4.
        cr4: u64,
    },
    /// The top bits of an address of 64-bit mode are not all alike.
    #[error("{gva:#x} is not canonical: bits 63 to {} must be all 0 or all 1", .va.get() - 1)]
    NonCanonical {
        /// The linear address.
        gva: u64,
        /// Width of linear addresses.
        va: VaBits,
    },
    /// Outside 64-bit mode linear addresses have 32 bits.
    #[error("{gva:#x} has more than the 32 bits of a linear address outside 64-bit mode")]
    Wide {
        /// The linear address.
        gva: u64,
    },
    /// CR3 has address bits above the physical address size.
    #[error("CR3 {cr3:#x} has more than the {bits} bits of a physical address")]
    TableBase {
        /// CR3.
        cr3: u64,
        /// Bits of a physical address.
        bits: u8,
    },
    /// `P` is clear: nothing is mapped.
    #[error("not mapped: the level {level} entry at {at:#x} is {entry:#x}, not present")]
    NotPresent {
        /// Level of the table, 1 to 5.
        level: u8,
        /// Guest-physical address of the entry.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// A bit is set that must be 0 at this level, in this mode, with this physical address size.
    #[error("the level {level} entry at {at:#x} is {entry:#x}: the bits {bits:#x} are reserved and must be 0")]
    Reserved {
        /// Level of the table, 1 to 5.
        level: u8,
        /// Guest-physical address of the entry.
        at: u64,
        /// The entry.
        entry: u64,
        /// Those of its bits that must be 0.
        bits: u64,
    },
    /// A table, or the part of it that the walk needs, is not RAM.
    #[error("the level {level} entry at guest-physical address {at:#x} is not in RAM")]
    TableOutsideRam {
        /// Level of the table, 1 to 5.
        level: u8,
        /// Guest-physical address of the entry.
        at: u64,
    },
}

/// Translates a linear address.
///
/// # Errors
///
/// [`TranslateError`], where the CPU would raise a page fault for want of a mapping or for a reserved bit, or a
/// general-protection fault for the address, or could not be in such a mode.
pub fn translate(paging: &Paging, gva: u64, ram: &dyn GuestRam) -> Result<Translation, TranslateError> {
    let mode = paging.mode()?;
    mode.check(gva)?;
    let (mut table, mut level) = match mode {
        Mode::Off => return Ok(flat(gva)),
        Mode::Bits32 { .. } => (paging.cr3 & 0xffff_f000, 2),
        Mode::Pae => (paging.cr3 & 0xffff_ffe0, 3),
        Mode::Long(va) => (paging.long_base()?, if matches!(va, VaBits::Bits57) { 5 } else { 4 }),
    };

    let mut allowed = Allowed { writable: true, user: true, executable: true };
    loop {
        let shift = mode.shift(level);
        let at = table + (gva >> shift & mode.index_mask()) * mode.entry_size();
        let entry = mode.read(ram, at).ok_or(TranslateError::TableOutsideRam { level, at })?;
        if entry & P == 0 {
            return Err(TranslateError::NotPresent { level, at, entry });
        }
        let is_page = mode.is_page(level, entry);
        let bits = entry & paging.reserved(mode, level, is_page);
        if bits != 0 {
            return Err(TranslateError::Reserved { level, at, entry, bits });
        }
        allowed.limit(mode, level, entry);
        if is_page {
            let offset = (1 << shift) - 1;
            return Ok(Translation {
                gpa: mode.page_address(level, entry) & !offset | gva & offset,
                page_size: offset + 1,
                page_gva: gva & !offset,
                writable: allowed.writable,
                user: allowed.user,
                executable: allowed.executable,
            });
        }
        table = entry & ADDRESS;
        level -= 1;
    }
}

/// Present.
const P: u64 = 1;
/// Writes are allowed.
const RW: u64 = 1 << 1;
/// User-mode accesses are allowed.
const US: u64 = 1 << 2;
/// The entry maps a page, in tables above level 1.
const PS: u64 = 1 << 7;
/// Instruction fetches are not allowed, with EFER.NXE.
const XD: u64 = 1 << 63;
/// Bits of an entry that can be of an address of a table or 4 KiB page.
const ADDRESS: u64 = bits(51, 12);
/// Most bits of an address in PSE-36.
const PSE36_BITS: u8 = 40;

/// Bits `high` to `low` set, none if `high` is less.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low { 0 } else { u64::MAX >> (63 - high) & u64::MAX << low }
}

/// Paging modes (SDM 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Bits32 { pse: bool },
    Pae,
    Long(VaBits),
}

/// What all entries so far allow.
struct Allowed {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Allowed {
    fn limit(&mut self, mode: Mode, level: u8, entry: u64) {
        // The four entries of a PAE guest's first table have no permissions.
        if mode == Mode::Pae && level == 3 {
            return;
        }
        self.writable &= entry & RW != 0;
        self.user &= entry & US != 0;
        // Without NXE it is a reserved bit, and the walk has ended by now.
        self.executable &= entry & XD == 0;
    }
}

impl Paging {
    const fn mode(&self) -> Result<Mode, TranslateError> {
        const PG: u64 = 1 << 31;
        const PSE: u64 = 1 << 4;
        const PAE: u64 = 1 << 5;
        const LA57: u64 = 1 << 12;
        const LME: u64 = 1 << 8;

        let bits = self.physical_bits;
        if bits < 32 || bits > 52 {
            return Err(TranslateError::PhysicalBits { bits });
        }
        Ok(match (self.cr0 & PG != 0, self.cr4 & PAE != 0, self.efer & LME != 0) {
            (false, _, _) => Mode::Off,
            (true, false, false) => Mode::Bits32 { pse: self.cr4 & PSE != 0 },
            (true, false, true) => return Err(TranslateError::LongModeWithoutPae { cr4: self.cr4 }),
            (true, true, false) => Mode::Pae,
            (true, true, true) => Mode::Long(if self.cr4 & LA57 != 0 { VaBits::Bits57 } else { VaBits::Bits48 }),
        })
    }

    /// Address of the first table of 4- and 5-level paging. The bits around it select caching, a PCID and LAM.
    const fn long_base(&self) -> Result<u64, TranslateError> {
        let base = self.cr3 & ADDRESS;
        if base >> self.physical_bits != 0 {
            return Err(TranslateError::TableBase { cr3: self.cr3, bits: self.physical_bits });
        }
        Ok(base)
    }

    /// Bits that must be 0 in a present entry (SDM figures 4-4, 4-7 and 4-11, and tables 4-3 to 4-20).
    const fn reserved(&self, mode: Mode, level: u8, is_page: bool) -> u64 {
        const NXE: u64 = 1 << 11;

        let physical = self.physical_bits as u32;
        let no_xd = if self.efer & NXE == 0 { XD } else { 0 };
        match (mode, level) {
            // The address goes on in bits 20:13, as far as the CPU has address bits.
            (Mode::Bits32 { .. }, 2) if is_page => {
                let used = if self.physical_bits < PSE36_BITS { self.physical_bits } else { PSE36_BITS };
                bits(21, 13 + used as u32 - 32)
            }
            (Mode::Bits32 { .. } | Mode::Off, _) => 0,
            (Mode::Pae, 3) => bits(63, physical) | bits(8, 5) | bits(2, 1),
            (Mode::Pae, _) => bits(62, physical) | no_xd | low_reserved(level, is_page),
            (Mode::Long(_), _) => bits(51, physical) | no_xd | low_reserved(level, is_page),
        }
    }
}

/// Reserved bits below the address, which a large page starts at, and PS where there is no page of that size.
const fn low_reserved(level: u8, is_page: bool) -> u64 {
    match (level, is_page) {
        (2, true) => bits(20, 13),
        (3, true) => bits(29, 13),
        (4 | 5, _) => PS,
        _ => 0,
    }
}

impl Mode {
    const fn check(self, gva: u64) -> Result<(), TranslateError> {
        match self {
            Self::Long(va) if !va.is_canonical(gva) => Err(TranslateError::NonCanonical { gva, va }),
            Self::Long(_) => Ok(()),
            _ if gva > u32::MAX as u64 => Err(TranslateError::Wide { gva }),
            _ => Ok(()),
        }
    }

    /// Lowest bit of a linear address that indexes the table; also log2 of what one of its entries covers.
    const fn shift(self, level: u8) -> u32 {
        12 + self.index_bits() * (level as u32 - 1)
    }

    const fn index_bits(self) -> u32 {
        if matches!(self, Self::Bits32 { .. }) { 10 } else { 9 }
    }

    /// Bits of an index. PAE's first table has four entries, and two bits of the address are left for it.
    const fn index_mask(self) -> u64 {
        (1 << self.index_bits()) - 1
    }

    const fn entry_size(self) -> u64 {
        if matches!(self, Self::Bits32 { .. }) { 4 } else { 8 }
    }

    fn read(self, ram: &dyn GuestRam, at: u64) -> Option<u64> {
        if self.entry_size() == 4 {
            let mut bytes = [0; 4];
            ram.read(GuestAddress(at), &mut bytes).ok()?;
            return Some(u32::from_le_bytes(bytes).into());
        }
        let mut bytes = [0; 8];
        ram.read(GuestAddress(at), &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Whether the entry maps a page, and not a table. Where no page of that size exists PS is ignored (32-bit paging
    /// without CR4.PSE) or reserved.
    const fn is_page(self, level: u8, entry: u64) -> bool {
        let may_be = match self {
            Self::Bits32 { pse } => pse && level == 2,
            Self::Pae => level == 2,
            _ => level == 2 || level == 3,
        };
        level == 1 || may_be && entry & PS != 0
    }

    /// Address of the page; bits below its size are to be cleared.
    const fn page_address(self, level: u8, entry: u64) -> u64 {
        match (self, level) {
            (Self::Bits32 { .. }, 2) => entry & bits(31, 22) | (entry >> 13 & 0xff) << 32,
            _ => entry & ADDRESS,
        }
    }
}

/// Translation without paging.
const fn flat(gva: u64) -> Translation {
    Translation { gpa: gva, page_size: 1 << 32, page_gva: 0, writable: true, user: true, executable: true }
}
