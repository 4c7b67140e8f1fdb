//! Tables are built here from the Arm ARM's tables of shifts and start levels, not from the formulas of the walk.

use super::*;
use crate::ram::RamError;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Descriptors by address; everything else is not RAM. Counts the reads.
#[derive(Default)]
struct Tables {
    words: BTreeMap<u64, u64>,
    big_endian: bool,
    reads: Mutex<u32>,
}

impl GuestRam for Tables {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        *self.reads.lock().unwrap() += 1;
        let error = RamError { address: address.0, length: data.len() };
        let word = self.words.get(&address.0).ok_or(error)?;
        data.copy_from_slice(&if self.big_endian { word.to_be_bytes() } else { word.to_le_bytes() });
        Ok(())
    }

    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError> {
        Err(RamError { address: address.0, length: data.len() })
    }
}

/// Memory in which every word holds something.
struct Noise(u64);

impl GuestRam for Noise {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        let word = (address.0 ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) | self.0 & 3;
        data.copy_from_slice(&word.to_le_bytes()[..data.len()]);
        Ok(())
    }

    fn write(&self, _: GuestAddress, _: &[u8]) -> Result<(), RamError> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Granule {
    K4,
    K16,
    K64,
}
use Granule::{K4, K16, K64};

/// Lowest address bit that a level's index resolves.
fn level_shift(granule: Granule, level: i8) -> u32 {
    match (granule, level) {
        (K4, -1) => 48,
        (K4, 0) => 39,
        (K4, 1) => 30,
        (K4, 2) => 21,
        (K4, _) => 12,
        (K16, 0) => 47,
        (K16, 1) => 36,
        (K16, 2) => 25,
        (K16, _) => 14,
        (K64, 1) => 42,
        (K64, 2) => 29,
        (K64, _) => 16,
    }
}

fn start_level(granule: Granule, tnsz: u32) -> i8 {
    match (granule, tnsz) {
        (K4, 12..=15) => -1,
        (K4, 16..=24) => 0,
        (K4, 25..=33) => 1,
        (K4, 34..=42) => 2,
        (K16, 12..=16) => 0,
        (K16, 17..=27) => 1,
        (K16, 28..=38) => 2,
        (K64, 12..=21) => 1,
        (K64, 22..=34) => 2,
        _ => 3,
    }
}

fn block_allowed(granule: Granule, level: i8, wide: bool) -> bool {
    match (granule, level) {
        (K4, 0) | (K16, 1) | (K64, 1) => wide,
        (K4, 1 | 2) | (K16, 2) | (K64, 2) => true,
        _ => false,
    }
}

/// One mapping, to be written down as registers and tables.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    granule: Granule,
    /// 52-bit addresses: DS for 4 and 16 KiB, FEAT_LPA and FEAT_LVA for 64 KiB.
    wide: bool,
    tnsz: u32,
    upper: bool,
    /// Level of the block or page.
    level: i8,
    /// Source of the addresses' bits.
    gva: u64,
    gpa: u64,
    tables: [u64; 5],
    big_endian: bool,
}

impl Mapping {
    fn page_bits(&self) -> u32 {
        level_shift(self.granule, 3)
    }

    fn output_mask(&self) -> u64 {
        (1 << if self.wide { 52 } else { 48 }) - 1
    }

    /// The address that is mapped.
    fn gva(&self) -> u64 {
        let low = self.gva & ((1 << (64 - self.tnsz)) - 1);
        if self.upper { low | !((1 << (64 - self.tnsz)) - 1) } else { low }
    }

    /// Where it leads.
    fn gpa(&self) -> u64 {
        let offset = (1 << level_shift(self.granule, self.level)) - 1;
        self.gpa & self.output_mask() & !offset | self.gva() & offset
    }

    /// Address bits of a descriptor.
    fn in_descriptor(&self, address: u64) -> u64 {
        let high = address >> 48 & 0xf;
        let low = address & ((1 << 48) - 1);
        match self.granule {
            K64 => low | high << 12,
            _ => low | (high & 3) << 48 | (high >> 2) << 8,
        }
    }

    fn build(&self) -> (Regime, Tables) {
        let start = start_level(self.granule, self.tnsz);
        let table = |level: i8| self.tables[(level + 1) as usize] & self.output_mask() & !((1 << self.page_bits()) - 1);
        let mut ram = Tables { big_endian: self.big_endian, ..Tables::default() };
        for level in start..=self.level {
            let top = if level == start { 64 - self.tnsz } else { level_shift(self.granule, level - 1) };
            let shift = level_shift(self.granule, level);
            let index = (self.gva() & ((1 << top) - 1)) >> shift;
            let descriptor = match level {
                _ if level < self.level => self.in_descriptor(table(level + 1)) | 0b11,
                3 => self.in_descriptor(self.gpa() & !((1 << shift) - 1)) | 0b11,
                _ => self.in_descriptor(self.gpa() & !((1 << shift) - 1)) | 0b01,
            };
            ram.words.insert(table(level) + 8 * index, descriptor);
        }
        let base = table(start);
        let ttbr = base & ((1 << 48) - 1) | (base >> 48) << 2 | 0x1234 << 48 | 1;
        let (tg0, tg1) = match self.granule {
            K4 => (0, 2),
            K16 => (2, 1),
            K64 => (1, 3),
        };
        let (tcr, other) = match self.upper {
            // The other half is disabled: using it by mistake must show.
            true => (tg1 << 30 | u64::from(self.tnsz) << 16, 1 << 7),
            false => (tg0 << 14 | u64::from(self.tnsz), 1 << 23),
        };
        let sctlr = 1 | u64::from(self.big_endian) << 25;
        let ips = if self.wide { 6 } else { 5 };
        let ds = u64::from(self.wide && self.granule != K64) << 59;
        let mmfr0 = ips | if self.wide { 1 << 28 | 2 << 20 } else { 1 << 20 };
        let mmfr2 = 1 << 28 | u64::from(self.wide) << 16;
        let (ttbr0, ttbr1) = if self.upper { (0, ttbr) } else { (ttbr, 0) };
        (Regime { sctlr, tcr: tcr | other | ds | ips << 32, ttbr0, ttbr1, mmfr0, mmfr2 }, ram)
    }
}

fn mappings() -> impl Strategy<Value = Mapping> {
    let granule = prop_oneof![Just(K4), Just(K16), Just(K64)];
    let shape = (granule, any::<bool>(), 12u32..=48, any::<bool>(), -1i8..=3);
    let values = (any::<u64>(), any::<u64>(), any::<[u64; 5]>(), any::<bool>());
    (shape, values).prop_filter_map("not a level or size of the granule", |(shape, values)| {
        let (granule, wide, tnsz, upper, level) = shape;
        let (gva, gpa, tables, big_endian) = values;
        let least = if wide { 12 } else { 16 };
        let most = if granule == K64 { 47 } else { 48 };
        let leaf = level == 3 || block_allowed(granule, level, wide) && level >= start_level(granule, tnsz);
        let mapping = Mapping { granule, wide, tnsz, upper, level, gva, gpa, tables, big_endian };
        (leaf && (least..=most).contains(&tnsz)).then_some(mapping)
    })
}

/// Two tables at one address could overwrite each other's descriptors.
fn distinct(mapping: &Mapping) -> bool {
    let (_, ram) = mapping.build();
    ram.words.len() == (mapping.level - start_level(mapping.granule, mapping.tnsz) + 1) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_was_mapped_is_found(mapping in mappings().prop_filter("overlapping tables", distinct)) {
        let (regime, ram) = mapping.build();
        let found = translate(&regime, mapping.gva(), &ram);
        let size = 1 << level_shift(mapping.granule, mapping.level);
        prop_assert_eq!(found.map(|found| found.gpa), Ok(mapping.gpa()));
        let found = found.unwrap();
        prop_assert_eq!(found.block_size, size);
        prop_assert_eq!(found.block_gva, mapping.gva() & !(size - 1));
    }

    #[test]
    fn a_bit_above_the_range_is_refused(mapping in mappings().prop_filter("overlapping tables", distinct), bit: u8) {
        let (regime, ram) = mapping.build();
        // Bit 55 selects the TTBR, so it is left alone.
        let above: Vec<u32> = (64 - mapping.tnsz..64).filter(|bit| *bit != 55).collect();
        let gva = mapping.gva() ^ 1 << above[usize::from(bit) % above.len()];
        let ttbr = u8::from(mapping.upper);
        let bits = 64 - mapping.tnsz;
        prop_assert_eq!(translate(&regime, gva, &ram), Err(TranslateError::OutOfRange { gva, ttbr, bits }));
    }

    #[test]
    fn any_registers_and_any_tables_end(regime: [u64; 6], gva: u64, noise: u64, tidy: bool) {
        let [sctlr, mut tcr, ttbr0, ttbr1, mut mmfr0, mmfr2] = regime;
        if tidy {
            // Likely enough to get past the checks: 48 bits, no disabled walks.
            tcr = tcr & !(0x80_0080 | 0x3f_003f) | 0x10_0010;
            mmfr0 |= 5;
        }
        let regime = Regime { sctlr, tcr, ttbr0, ttbr1, mmfr0, mmfr2 };
        for gva in [gva, gva >> 16, !(gva >> 16)] {
            if let Ok(found) = translate(&regime, gva, &Noise(noise)) {
                prop_assert!(found.gpa < 1 << 52);
                prop_assert!(found.block_size.is_power_of_two());
            }
            let _ = translate_instruction(&regime, gva, &Noise(!noise));
        }
    }
}

/// A 4 KiB, 48-bit setup with a page at level 3, as arm64 Linux has it for the kernel.
fn linux() -> Mapping {
    Mapping {
        granule: K4,
        wide: false,
        tnsz: 16,
        upper: true,
        level: 3,
        gva: 0x8000_8001_0123,
        gpa: 0x4021_0000,
        tables: [0, 0x4100_0000, 0x4100_1000, 0x4100_2000, 0x4100_3000],
        big_endian: false,
    }
}

const LINUX_GVA: u64 = 0xffff_8000_8001_0123;

#[test]
fn a_linux_kernel_page() {
    let (regime, ram) = linux().build();
    let found = translate(&regime, LINUX_GVA, &ram).unwrap();
    assert_eq!((found.gpa, found.block_size, found.block_gva), (0x4021_0123, 4096, LINUX_GVA & !0xfff));
    assert!(found.writable && found.executable && !found.user && !found.user_executable);
    assert_eq!(*ram.reads.lock().unwrap(), 4);
}

#[test]
fn permissions_of_leaf_and_tables() {
    let (mut regime, mut ram) = linux().build();
    let leaf = *ram.words.keys().last().unwrap();
    let root = *ram.words.keys().next().unwrap();
    let plain = ram.words[&leaf];
    *ram.words.get_mut(&leaf).unwrap() = plain | 1 << 7 | 1 << 6 | 1 << 53;
    let found = translate(&regime, LINUX_GVA, &ram).unwrap();
    assert!(!found.writable && found.user && !found.executable && found.user_executable);

    *ram.words.get_mut(&leaf).unwrap() = plain | 1 << 7 | 1 << 51;
    assert!(!translate(&regime, LINUX_GVA, &ram).unwrap().writable);
    regime.tcr |= 1 << 40;
    assert!(translate(&regime, LINUX_GVA, &ram).unwrap().writable, "clean, but the CPU makes it dirty");

    *ram.words.get_mut(&root).unwrap() |= 1 << 62 | 1 << 59;
    let found = translate(&regime, LINUX_GVA, &ram).unwrap();
    assert!(!found.writable && !found.executable);
    regime.tcr |= 1 << 42;
    let found = translate(&regime, LINUX_GVA, &ram).unwrap();
    assert!(found.writable && found.executable, "hierarchical permissions are off");
}

#[test]
fn tags_are_ignored_where_tcr_says_so() {
    let (mut regime, ram) = linux().build();
    let tagged = LINUX_GVA & !(0xff << 56) | 0x5a << 56;
    let out_of_range = Err(TranslateError::OutOfRange { gva: tagged, ttbr: 1, bits: 48 });
    assert_eq!(translate(&regime, tagged, &ram), out_of_range);
    regime.tcr |= 1 << 37;
    assert_eq!(translate(&regime, tagged, &ram), out_of_range, "TBI0 is for the lower half");
    regime.tcr |= 1 << 38;
    assert_eq!(translate(&regime, tagged, &ram).unwrap().gpa, 0x4021_0123);
    assert_eq!(translate_instruction(&regime, tagged, &ram).unwrap().gpa, 0x4021_0123);
    regime.tcr |= 1 << 52;
    assert_eq!(translate(&regime, tagged, &ram).unwrap().gpa, 0x4021_0123);
    assert_eq!(translate_instruction(&regime, tagged, &ram), out_of_range, "TBID1 keeps tags for data");
}

#[test]
fn the_mmu_is_off() {
    let (mut regime, ram) = linux().build();
    regime.sctlr = 0;
    regime.mmfr0 = 2;
    let found = translate(&regime, 0x40_1234_5678, &ram).unwrap();
    assert_eq!((found.gpa, found.block_gva, found.block_size), (0x40_1234_5678, 0, 1 << 40));
    let error = TranslateError::AddressSize { level: 0, address: 1 << 40, bits: 40 };
    assert_eq!(translate(&regime, 1 << 40, &ram), Err(error));
    assert_eq!(*ram.reads.lock().unwrap(), 0);
}

#[test]
fn every_bad_setting_is_named() {
    let (good, ram) = linux().build();
    let error = |change: fn(&mut Regime)| {
        let mut regime = good;
        change(&mut regime);
        translate(&regime, LINUX_GVA, &ram).unwrap_err()
    };
    assert_eq!(error(|regime| regime.tcr |= 1 << 23), TranslateError::WalkDisabled { gva: LINUX_GVA, ttbr: 1 });
    assert_eq!(error(|regime| regime.tcr &= !(3 << 30)), TranslateError::ReservedGranule { ttbr: 1, value: 0 });
    let size = |value, least, most| TranslateError::InputSize { ttbr: 1, value, least, most };
    assert_eq!(error(|regime| regime.tcr ^= 0x10_0000 ^ 0xf_0000), size(15, 16, 48));
    assert_eq!(error(|regime| regime.tcr |= 0x3f_0000), size(63, 16, 48));
    let without_small_tables = |regime: &mut Regime| {
        regime.mmfr2 = 0;
        regime.tcr |= 0x3f_0000;
    };
    assert_eq!(error(without_small_tables), size(63, 16, 39));
    // 32 bits of output address, a table above.
    let small_output = |regime: &mut Regime| {
        regime.tcr &= !(7 << 32);
        regime.ttbr1 |= 1 << 33;
    };
    assert_eq!(
        error(small_output),
        TranslateError::AddressSize { level: 0, address: 0x2_4100_0000, bits: 32 },
        "the table is at {:#x}",
        good.ttbr1
    );
    assert_eq!(
        error(|regime| regime.ttbr1 = 0xdead_0000),
        TranslateError::TableOutsideRam { level: 0, at: 0xdead_0000 + 8 * 256 }
    );
}

#[test]
fn every_bad_descriptor_is_named() {
    let (regime, good) = linux().build();
    let levels: Vec<u64> = good.words.keys().copied().collect();
    let error = |level: i8, descriptor: u64| {
        let mut ram = Tables { words: good.words.clone(), ..Tables::default() };
        ram.words.insert(levels[level as usize], descriptor);
        translate(&regime, LINUX_GVA, &ram)
    };
    for level in 0..=3 {
        let at = levels[level as usize];
        for descriptor in [0, 0xffff_ffff_ffff_fffe, 2] {
            assert_eq!(error(level, descriptor), Err(TranslateError::Unmapped { level, at, descriptor }));
        }
    }
    for level in [0, 3] {
        let at = levels[level as usize];
        assert_eq!(error(level, 0x4000_0001), Err(TranslateError::Reserved { level, at, descriptor: 0x4000_0001 }));
    }
    assert_eq!(error(2, 0x4020_0001).unwrap().gpa, 0x4021_0123, "a 2 MiB block");
    assert_eq!(error(1, 0x7fff_f003), Err(TranslateError::TableOutsideRam { level: 2, at: 0x7fff_f000 }));
}

#[test]
fn a_table_that_points_at_itself_ends() {
    let (mut regime, mut ram) = linux().build();
    ram.words.clear();
    for entry in 0..512 {
        ram.words.insert(0x4100_0000 + 8 * entry, 0x4100_0003);
    }
    regime.ttbr1 = 0x4100_0000;
    assert_eq!(translate(&regime, LINUX_GVA, &ram).unwrap().gpa, 0x4100_0123);
    assert_eq!(*ram.reads.lock().unwrap(), 4);
}

#[test]
fn output_beyond_the_configured_size_is_refused() {
    let (mut regime, mut ram) = linux().build();
    let leaf = *ram.words.keys().last().unwrap();
    ram.words.insert(leaf, 1 << 44 | 3);
    regime.tcr = regime.tcr & !(7 << 32) | 3 << 32;
    let error = TranslateError::AddressSize { level: 3, address: 1 << 44, bits: 42 };
    assert_eq!(translate(&regime, LINUX_GVA, &ram), Err(error));
}
