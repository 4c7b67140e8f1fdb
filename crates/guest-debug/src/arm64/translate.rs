//! Stage 1 address translation of the EL1&0 regime, as the CPU would do it, from the vCPU's registers and guest memory.
//!
//! Source: Arm ARM, D8.1 to D8.3 (VMSAv8-64). Registers and tables come from the guest: whatever they hold, a walk reads
//! at most five descriptors and ends with an address or with an error that names what is wrong.
//!
//! The answer says where a mapping leads, not whether the guest may use it: the access flag is not looked at, and the
//! permissions of [`Translation`] are for display. 128-bit descriptors (FEAT_D128), which KVM gives to no guest, are not
//! decoded.

use crate::ram::GuestRam;
use thiserror::Error;
use vm_memory::GuestAddress;

#[cfg(test)]
mod tests;

/// The registers that decide about a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Regime {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
}

/// Where a guest-virtual address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: u64,
    /// Bytes that the same descriptor maps, contiguous and aligned; with the MMU off the whole physical address space.
    pub block_size: u64,
    /// First guest-virtual address of those bytes, without a tag.
    pub block_gva: u64,
    /// EL1 may write, as far as the descriptors say.
    pub writable: bool,
    /// EL0 may access.
    pub user: bool,
    /// EL1 may execute.
    pub executable: bool,
    /// EL0 may execute.
    pub user_executable: bool,
}

/// Why an address has no translation.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TranslateError {
    /// The address is in neither of the two ranges that TCR_EL1 sets up.
    #[error("{gva:#x} is outside the {bits}-bit range that TCR_EL1 gives to TTBR{ttbr}_EL1")]
    OutOfRange {
        /// The guest-virtual address.
        gva: u64,
        /// Number of the TTBR that bit 55 selects.
        ttbr: u8,
        /// Size of the range.
        bits: u32,
    },
    /// TCR_EL1.EPD0 or EPD1 forbids walks.
    #[error("{gva:#x}: walks from TTBR{ttbr}_EL1 are disabled by TCR_EL1.EPD{ttbr}")]
    WalkDisabled {
        /// The guest-virtual address.
        gva: u64,
        /// Number of the TTBR.
        ttbr: u8,
    },
    /// TCR_EL1.TG0 or TG1 holds a reserved value.
    #[error("TCR_EL1.TG{ttbr} holds the reserved value {value:#b}")]
    ReservedGranule {
        /// Number of the TTBR.
        ttbr: u8,
        /// The field.
        value: u8,
    },
    /// TCR_EL1.T0SZ or T1SZ is not one that this CPU accepts.
    #[error("TCR_EL1.T{ttbr}SZ is {value}, must be {least} to {most} with this granule")]
    InputSize {
        /// Number of the TTBR.
        ttbr: u8,
        /// The field.
        value: u32,
        /// Least value allowed.
        least: u32,
        /// Greatest value allowed.
        most: u32,
    },
    /// The descriptor is invalid: nothing is mapped.
    #[error("not mapped: the level {level} descriptor at {at:#x} is {descriptor:#x}, not valid")]
    Unmapped {
        /// Level of the lookup, -1 to 3.
        level: i8,
        /// Guest-physical address of the descriptor.
        at: u64,
        /// The descriptor.
        descriptor: u64,
    },
    /// A block where this granule has none, or the reserved encoding of level 3.
    #[error("the level {level} descriptor at {at:#x} is {descriptor:#x}: reserved at this level")]
    Reserved {
        /// Level of the lookup, -1 to 3.
        level: i8,
        /// Guest-physical address of the descriptor.
        at: u64,
        /// The descriptor.
        descriptor: u64,
    },
    /// A table base or an output address has bits above the configured output size.
    #[error(
        "the address {address:#x} found at level {level} has more than the {bits} bits of the physical address size"
    )]
    AddressSize {
        /// Level of the lookup that found it; 0 for a TTBR, and with the MMU off.
        level: i8,
        /// The address.
        address: u64,
        /// Bits of the output address size.
        bits: u32,
    },
    /// A table, or the part of it that the walk needs, is not RAM.
    #[error("the level {level} descriptor at guest-physical address {at:#x} is not in RAM")]
    TableOutsideRam {
        /// Level of the lookup, -1 to 3.
        level: i8,
        /// Guest-physical address of the descriptor.
        at: u64,
    },
}

/// Translates the address of a data access.
///
/// # Errors
///
/// [`TranslateError`], where the CPU would raise a translation or address size fault or read no table at all.
pub fn translate(regime: &Regime, gva: u64, ram: &dyn GuestRam) -> Result<Translation, TranslateError> {
    walk(regime, gva, false, ram)
}

/// Translates the address of an instruction. It differs from [`translate`] where TCR_EL1.TBID0 or TBID1 keeps tags for
/// data alone.
///
/// # Errors
///
/// As [`translate`].
pub fn translate_instruction(regime: &Regime, gva: u64, ram: &dyn GuestRam) -> Result<Translation, TranslateError> {
    walk(regime, gva, true, ram)
}

/// Walk settings of the half of the address space that a TTBR serves.
struct Half {
    /// log2 of the granule.
    page_bits: u32,
    /// Bits of the input address.
    input_bits: u32,
    /// Bits of the output address.
    output_bits: u32,
    /// Where descriptors hold address bits 51:48.
    high_bits: HighBits,
    /// Level of the first lookup.
    start_level: i8,
    /// Least level at which blocks are allowed.
    block_level: i8,
    /// Address of the first table.
    base: u64,
    /// Table descriptors limit permissions.
    hierarchical: bool,
}

/// Where descriptors hold bits 51:48 of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HighBits {
    /// Nowhere: addresses have 48 bits.
    None,
    /// 64 KiB granule with FEAT_LPA: in bits 15:12.
    Lpa,
    /// TCR_EL1.DS with FEAT_LPA2: 49:48 in place, 51:50 in bits 9:8.
    Lpa2,
}

fn walk(regime: &Regime, gva: u64, fetch: bool, ram: &dyn GuestRam) -> Result<Translation, TranslateError> {
    const SCTLR_M: u64 = 1;
    const SCTLR_EE: u64 = 1 << 25;

    let ttbr = field(gva, 55, 1) as u8;
    let address = regime.without_tag(gva, ttbr, fetch);
    if regime.sctlr & SCTLR_M == 0 {
        return regime.flat(address);
    }
    let half = regime.half(gva, ttbr)?;
    let range = (1u64 << half.input_bits) - 1;
    let expected_top = if ttbr == 0 { 0 } else { !range };
    if address & !range != expected_top {
        return Err(TranslateError::OutOfRange { gva, ttbr, bits: half.input_bits });
    }

    let stride = half.page_bits - 3;
    let mut table = half.base;
    let mut level = half.start_level;
    let mut limits = 0;
    loop {
        let shift = half.page_bits + stride * (3 - level).unsigned_abs() as u32;
        let index = (address & range) >> shift & ((1 << stride) - 1);
        let at = table + index * 8;
        let mut bytes = [0; 8];
        ram.read(GuestAddress(at), &mut bytes).map_err(|_| TranslateError::TableOutsideRam { level, at })?;
        let descriptor =
            if regime.sctlr & SCTLR_EE == 0 { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) };

        match descriptor & 3 {
            0b11 if level < 3 => {
                table = half.address(descriptor, half.page_bits, level)?;
                limits |= if half.hierarchical { descriptor } else { 0 };
                level += 1;
            }
            0b11 => return half.leaf(regime, descriptor, limits, address, shift, level),
            0b01 if (half.block_level..3).contains(&level) => {
                return half.leaf(regime, descriptor, limits, address, shift, level);
            }
            0b01 => return Err(TranslateError::Reserved { level, at, descriptor }),
            _ => return Err(TranslateError::Unmapped { level, at, descriptor }),
        }
    }
}

impl Regime {
    /// Removes the tag of an address, if its half of the address space has tags: bits 63:56 become copies of bit 55.
    const fn without_tag(&self, gva: u64, ttbr: u8, fetch: bool) -> u64 {
        let ignored = field(self.tcr, 37 + ttbr as u32, 1) != 0;
        let data_only = field(self.tcr, 51 + ttbr as u32, 1) != 0;
        if ignored && !(fetch && data_only) { ((gva << 8) as i64 >> 8) as u64 } else { gva }
    }

    /// Bits of a physical address that the CPU has.
    const fn physical_bits(&self) -> u32 {
        size_bits(field(self.mmfr0, 0, 4))
    }

    /// Translation with the MMU off.
    const fn flat(&self, address: u64) -> Result<Translation, TranslateError> {
        let bits = self.physical_bits();
        if address >> bits != 0 {
            return Err(TranslateError::AddressSize { level: 0, address, bits });
        }
        Ok(Translation {
            gpa: address,
            block_size: 1 << bits,
            block_gva: 0,
            writable: true,
            user: true,
            executable: true,
            user_executable: true,
        })
    }

    /// Settings of the half that `ttbr` serves, checked.
    fn half(&self, gva: u64, ttbr: u8) -> Result<Half, TranslateError> {
        let upper = ttbr != 0;
        if field(self.tcr, if upper { 23 } else { 7 }, 1) != 0 {
            return Err(TranslateError::WalkDisabled { gva, ttbr });
        }
        let granule = field(self.tcr, if upper { 30 } else { 14 }, 2) as u8;
        let page_bits = match (upper, granule) {
            (false, 0b00) | (true, 0b10) => 12,
            (false, 0b10) | (true, 0b01) => 14,
            (false, 0b01) | (true, 0b11) => 16,
            (_, value) => return Err(TranslateError::ReservedGranule { ttbr, value }),
        };

        let has_lpa2 = match page_bits {
            12 => field(self.mmfr0, 28, 4) == 1,
            14 => field(self.mmfr0, 20, 4) == 2,
            _ => false,
        };
        let ds = has_lpa2 && field(self.tcr, 59, 1) != 0;
        let has_lpa = self.physical_bits() >= 52;
        let high_bits = match page_bits {
            16 if has_lpa => HighBits::Lpa,
            16 => HighBits::None,
            _ if ds => HighBits::Lpa2,
            _ => HighBits::None,
        };
        let most_output = if high_bits == HighBits::None { 48 } else { 52 };
        let output_bits = size_bits(field(self.tcr, 32, 3)).min(self.physical_bits()).min(most_output);

        let has_lva = field(self.mmfr2, 16, 4) != 0;
        let has_small_tables = field(self.mmfr2, 28, 4) != 0;
        let value = field(self.tcr, if upper { 16 } else { 0 }, 6) as u32;
        let least = if ds || page_bits == 16 && has_lva { 12 } else { 16 };
        let most = match (has_small_tables, page_bits) {
            (false, _) => 39,
            (true, 16) => 47,
            (true, _) => 48,
        };
        if !(least..=most).contains(&value) {
            return Err(TranslateError::InputSize { ttbr, value, least, most });
        }
        let input_bits = 64 - value;

        // Every level but the first resolves `stride` bits; the first one what is left.
        let stride = page_bits - 3;
        let levels = (input_bits - page_bits).div_ceil(stride);
        let first_index_bits = input_bits - page_bits - stride * (levels - 1);
        let register = if upper { self.ttbr1 } else { self.ttbr0 };
        let long_base = ds || output_bits == 52;
        let aligned = if long_base { (first_index_bits + 3).max(6) } else { first_index_bits + 3 };
        let low = register & ((1 << 48) - 1) & !((1 << aligned) - 1);
        let base = if long_base { low | field(register, 2, 4) << 48 } else { low };
        if base >> output_bits != 0 {
            return Err(TranslateError::AddressSize { level: 0, address: base, bits: output_bits });
        }

        let block_level = match (page_bits, high_bits) {
            (12, HighBits::Lpa2) => 0,
            (12, _) | (14, HighBits::Lpa2) | (16, HighBits::Lpa) => 1,
            _ => 2,
        };
        Ok(Half {
            page_bits,
            input_bits,
            output_bits,
            high_bits,
            start_level: 4 - levels as i8,
            block_level,
            base,
            hierarchical: field(self.tcr, if upper { 42 } else { 41 }, 1) == 0,
        })
    }
}

impl Half {
    /// The address in a descriptor, aligned to `aligned` bits.
    const fn address(&self, descriptor: u64, aligned: u32, level: i8) -> Result<u64, TranslateError> {
        let (top, high) = match self.high_bits {
            HighBits::None => (48, 0),
            HighBits::Lpa => (48, field(descriptor, 12, 4) << 48),
            HighBits::Lpa2 => (50, field(descriptor, 8, 2) << 50),
        };
        let address = descriptor & ((1 << top) - 1) & !((1 << aligned) - 1) | high;
        if address >> self.output_bits != 0 {
            return Err(TranslateError::AddressSize { level, address, bits: self.output_bits });
        }
        Ok(address)
    }

    /// The translation by a block or page descriptor that maps `1 << shift` bytes.
    fn leaf(
        &self,
        regime: &Regime,
        descriptor: u64,
        limits: u64,
        address: u64,
        shift: u32,
        level: i8,
    ) -> Result<Translation, TranslateError> {
        let set = |word: u64, bit: u32| field(word, bit, 1) != 0;
        let offset = (1u64 << shift) - 1;
        // AP[2], or writable and clean where the CPU keeps track of that itself (DBM with TCR_EL1.HD).
        let read_only = set(descriptor, 7) && !(set(descriptor, 51) && set(regime.tcr, 40));
        let user = set(descriptor, 6) && !set(limits, 61);
        Ok(Translation {
            gpa: self.address(descriptor, shift, level)? | address & offset,
            block_size: 1 << shift,
            block_gva: address & !offset,
            writable: !read_only && !set(limits, 62),
            user,
            executable: !set(descriptor, 53) && !set(limits, 59),
            user_executable: user && !set(descriptor, 54) && !set(limits, 60),
        })
    }
}

/// Address size of ID_AA64MMFR0_EL1.PARange and TCR_EL1.IPS. 56-bit addresses need 128-bit descriptors; what is above
/// is reserved.
const fn size_bits(encoded: u64) -> u32 {
    match encoded {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Bits `low` to `low + width - 1`.
const fn field(value: u64, low: u32, width: u32) -> u64 {
    value >> low & ((1 << width) - 1)
}
