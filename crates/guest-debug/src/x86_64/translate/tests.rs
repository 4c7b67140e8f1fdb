//! Tables are built here from the figures of SDM chapter 4 (which bits of the address index what), not from the walk.

use super::*;
use crate::ram::RamError;
use Layout::{Bits32, Five, Four, Pae};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Entries by address; everything else is not RAM. Counts the reads.
#[derive(Default)]
struct Tables {
    entries: BTreeMap<u64, Vec<u8>>,
    reads: Mutex<u32>,
}

impl Tables {
    fn long(entries: &[(u64, u64)]) -> Self {
        let entries = entries.iter().map(|(at, entry)| (*at, entry.to_le_bytes().to_vec())).collect();
        Self { entries, ..Self::default() }
    }

    fn short(entries: &[(u64, u32)]) -> Self {
        let entries = entries.iter().map(|(at, entry)| (*at, entry.to_le_bytes().to_vec())).collect();
        Self { entries, ..Self::default() }
    }
}

impl GuestRam for Tables {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        *self.reads.lock().unwrap() += 1;
        let error = RamError { address: address.0, length: data.len() };
        let entry = self.entries.get(&address.0).filter(|entry| entry.len() == data.len()).ok_or(error)?;
        data.copy_from_slice(entry);
        Ok(())
    }

    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError> {
        Err(RamError { address: address.0, length: data.len() })
    }
}

/// Memory in which every word holds something present, mostly without high bits.
struct Noise(u64, Mutex<u32>);

impl GuestRam for Noise {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        *self.1.lock().unwrap() += 1;
        let word = (address.0 ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) >> (self.0 % 30) | 1;
        data.copy_from_slice(&word.to_le_bytes()[..data.len()]);
        Ok(())
    }

    fn write(&self, _: GuestAddress, _: &[u8]) -> Result<(), RamError> {
        Ok(())
    }
}

const CR0_PG: u64 = 0x8000_0000;
const CR4_PSE: u64 = 0x10;
const CR4_PAE: u64 = 0x20;
const CR4_LA57: u64 = 0x1000;
const EFER_LME: u64 = 0x100;
const EFER_NXE: u64 = 0x800;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Bits32,
    Pae,
    Four,
    Five,
}

impl Layout {
    /// For each level from the first: its number, and the bits of the linear address that index it.
    fn levels(self) -> &'static [(u8, u32, u32)] {
        match self {
            Bits32 => &[(2, 31, 22), (1, 21, 12)],
            Pae => &[(3, 31, 30), (2, 29, 21), (1, 20, 12)],
            Four => &[(4, 47, 39), (3, 38, 30), (2, 29, 21), (1, 20, 12)],
            Five => &[(5, 56, 48), (4, 47, 39), (3, 38, 30), (2, 29, 21), (1, 20, 12)],
        }
    }

    fn page_levels(self) -> &'static [u8] {
        match self {
            Bits32 | Pae => &[1, 2],
            Four | Five => &[1, 2, 3],
        }
    }

    fn paging(self, cr3: u64) -> Paging {
        let (cr4, efer) = match self {
            Bits32 => (CR4_PSE, 0),
            Pae => (CR4_PAE, EFER_NXE),
            Four => (CR4_PAE, EFER_LME | EFER_NXE),
            Five => (CR4_PAE | CR4_LA57, EFER_LME | EFER_NXE),
        };
        Paging { cr0: CR0_PG, cr3, cr4, efer, physical_bits: 46 }
    }
}

/// One mapping, to be written down as registers and tables.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    layout: Layout,
    /// Level of the page.
    level: u8,
    /// Sources of the addresses' bits.
    gva: u64,
    gpa: u64,
    tables: [u64; 5],
    /// R/W, U/S and XD per level.
    rights: [(bool, bool, bool); 5],
    /// Set in every entry: accessed, dirty, caching, global, available to software.
    ignored: bool,
}

impl Mapping {
    fn gva(&self) -> u64 {
        match self.layout {
            Bits32 | Pae => self.gva & 0xffff_ffff,
            Four => ((self.gva << 16) as i64 >> 16) as u64,
            Five => ((self.gva << 7) as i64 >> 7) as u64,
        }
    }

    fn page_bits(&self) -> u32 {
        match (self.layout, self.level) {
            (_, 1) => 12,
            (Bits32, _) => 22,
            (_, 2) => 21,
            _ => 30,
        }
    }

    fn gpa(&self) -> u64 {
        let width = match (self.layout, self.level) {
            (Bits32, 1) => 32,
            (Bits32, _) => 40,
            _ => 46,
        };
        let offset = (1 << self.page_bits()) - 1;
        self.gpa & ((1 << width) - 1) & !offset | self.gva() & offset
    }

    fn table(&self, n: usize) -> u64 {
        match (self.layout, n) {
            (Bits32, _) => self.tables[n] & 0xffff_f000,
            (Pae, 0) => self.tables[n] & 0xffff_ffe0,
            _ => self.tables[n] & 0x3fff_ffff_f000,
        }
    }

    fn entry(&self, n: usize, level: u8) -> u64 {
        let pdpte = self.layout == Pae && level == 3;
        let (rw, us, xd) = self.rights[n];
        let mut entry = 1;
        if !pdpte {
            entry |= if rw { 2 } else { 0 } | if us { 4 } else { 0 };
            entry |= if xd && self.layout != Bits32 { 1 << 63 } else { 0 };
        }
        if self.ignored {
            entry |= match (self.layout, level) {
                (Pae, 3) => 0xe18,
                (Four | Five, 1) => 0x7ff0_0000_0000_0ff8,
                (Four | Five, _) => 0x7ff0_0000_0000_0f78,
                (_, 1) => 0xff8,
                _ => 0xf78,
            };
        }
        if level != self.level {
            return entry | self.table(n + 1);
        }
        let page = self.gpa() & !((1 << self.page_bits()) - 1);
        entry |= if level > 1 { 0x80 } else { 0 };
        // PAT of a large page.
        entry |= if level > 1 && self.ignored { 0x1000 } else { 0 };
        match (self.layout, level) {
            (Bits32, 2) => entry | page & 0xffc0_0000 | (page >> 32) << 13,
            _ => entry | page,
        }
    }

    /// Addresses and values of the entries, from the first level on; none if two of them are in one place.
    fn entries(&self) -> Option<Vec<(u8, u64, u64)>> {
        let size = if self.layout == Bits32 { 4 } else { 8 };
        let levels = self.layout.levels().iter().take_while(|(level, ..)| *level >= self.level);
        let entries: Vec<_> = levels
            .enumerate()
            .map(|(n, &(level, high, low))| {
                let index = self.gva() << (63 - high) >> (63 - high + low);
                (level, self.table(n) + index * size, self.entry(n, level))
            })
            .collect();
        let distinct: BTreeMap<_, _> = entries.iter().map(|(_, at, _)| (at / 8, ())).collect();
        (distinct.len() == entries.len()).then_some(entries)
    }

    fn tables(&self, entries: &[(u8, u64, u64)]) -> Tables {
        if self.layout == Bits32 {
            Tables::short(&entries.iter().map(|(_, at, entry)| (*at, *entry as u32)).collect::<Vec<_>>())
        } else {
            Tables::long(&entries.iter().map(|(_, at, entry)| (*at, *entry)).collect::<Vec<_>>())
        }
    }

    fn paging(&self) -> Paging {
        let low = if self.ignored { if self.layout == Pae { 0x18 } else { 0xfff } } else { 0 };
        self.layout.paging(self.table(0) | low)
    }

    /// Bits that the SDM's tables of entries have as reserved, with 46 bits of physical address.
    fn reserved(&self, level: u8) -> u64 {
        let page = level == self.level;
        match (self.layout, level, page) {
            (Bits32, 2, true) => 0x0020_0000,
            (Bits32, ..) => 0,
            (Pae, 3, _) => 0xffff_c000_0000_01e6,
            (Pae, 2, true) => 0x7fff_c000_001f_e000,
            (Pae, ..) => 0x7fff_c000_0000_0000,
            (_, 3, true) => 0x000f_c000_3fff_e000,
            (_, 2, true) => 0x000f_c000_001f_e000,
            (_, 4 | 5, _) => 0x000f_c000_0000_0080,
            _ => 0x000f_c000_0000_0000,
        }
    }
}

fn mappings() -> impl Strategy<Value = Mapping> {
    let layouts = prop_oneof![Just(Bits32), Just(Pae), Just(Four), Just(Five)];
    let page = layouts.prop_flat_map(|layout| (Just(layout), prop::sample::select(layout.page_levels())));
    (page, any::<(u64, u64)>(), any::<[u64; 5]>(), any::<[(bool, bool, bool); 5]>(), any::<bool>()).prop_map(
        |((layout, level), (gva, gpa), tables, rights, ignored)| Mapping {
            layout,
            level,
            gva,
            gpa,
            tables,
            rights,
            ignored,
        },
    )
}

#[test]
fn linux_kernel_text_in_a_2_mib_page() {
    // swapper_pg_dir with the kernel's text at its usual place: entries 511 and 510 of the first two levels, then 8.
    let tables = Tables::long(&[(0x2a0_aff8, 0x2a0_c067), (0x2a0_cff0, 0x2a0_d063), (0x2a0_d040, 0x0100_01e1)]);
    let translation = translate(&Four.paging(0x2a0_a000), 0xffff_ffff_8100_1234, &tables).unwrap();
    let expected = Translation {
        gpa: 0x0100_1234,
        page_size: 0x20_0000,
        page_gva: 0xffff_ffff_8100_0000,
        writable: false,
        user: false,
        executable: true,
    };
    assert_eq!(translation, expected);
    assert_eq!(*tables.reads.lock().unwrap(), 3);
}

#[test]
fn pse_36_puts_high_bits_into_the_middle() {
    // Bits 39:32 of the page are 0xab, in bits 20:13 of the entry.
    let tables = Tables::short(&[(0x1ffc, 0x1255_6083)]);
    let translation = translate(&Bits32.paging(0x1000), 0xffc1_2345, &tables).unwrap();
    assert_eq!((translation.gpa, translation.page_size), (0xab_1241_2345, 0x40_0000));
    // With 36 bits of physical address four of these are reserved, with 32 all of them.
    for (physical_bits, bits) in [(40, 0), (36, 0x0014_0000), (32, 0x0015_6000)] {
        let error = translate(&Paging { physical_bits, ..Bits32.paging(0x1000) }, 0xffc1_2345, &tables).err();
        let reserved = TranslateError::Reserved { level: 2, at: 0x1ffc, entry: 0x1255_6083, bits };
        assert_eq!(error, (bits != 0).then_some(reserved), "{physical_bits} bits");
    }
}

#[test]
fn without_pse_the_bit_is_ignored() {
    let tables = Tables::short(&[(0x1004, 0x2087), (0x2004, 0x5007)]);
    let paging = Paging { cr4: 0, ..Bits32.paging(0x1000) };
    assert_eq!(translate(&paging, 0x0040_1678, &tables).unwrap().gpa, 0x5678);
}

#[test]
fn no_paging_is_flat() {
    let paging = Paging { cr0: 0x11, ..Five.paging(0x1000) };
    let translation = translate(&paging, 0xffff_fff0, &Tables::default()).unwrap();
    assert_eq!((translation.gpa, translation.page_size, translation.page_gva), (0xffff_fff0, 1 << 32, 0));
    assert_eq!(translate(&paging, 1 << 32, &Tables::default()), Err(TranslateError::Wide { gva: 1 << 32 }));
}

#[test]
fn addresses_that_no_mode_has() {
    let translate = |layout: Layout, gva| translate(&layout.paging(0), gva, &Tables::default()).unwrap_err();
    let gva = 0x0000_8000_0000_0000;
    assert_eq!(translate(Four, gva), TranslateError::NonCanonical { gva, va: VaBits::Bits48 });
    assert_eq!(translate(Five, gva), TranslateError::TableOutsideRam { level: 5, at: 0 });
    let gva = 0x0100_0000_0000_0000;
    assert_eq!(translate(Five, gva), TranslateError::NonCanonical { gva, va: VaBits::Bits57 });
    for layout in [Bits32, Pae] {
        assert_eq!(translate(layout, 1 << 32), TranslateError::Wide { gva: 1 << 32 });
    }
}

#[test]
fn registers_that_no_cpu_holds() {
    let translate = |paging: Paging| translate(&paging, 0, &Tables::default()).unwrap_err();
    let cr4 = CR4_PSE;
    assert_eq!(translate(Paging { cr4, ..Four.paging(0) }), TranslateError::LongModeWithoutPae { cr4 });
    let cr3 = 1 << 46;
    assert_eq!(translate(Four.paging(cr3)), TranslateError::TableBase { cr3, bits: 46 });
    for bits in [0, 31, 53, 255] {
        let paging = Paging { physical_bits: bits, ..Four.paging(0) };
        assert_eq!(translate(paging), TranslateError::PhysicalBits { bits });
    }
}

#[test]
fn xd_is_reserved_without_nxe() {
    let entry = 1 << 63 | 0x5001;
    let tables = Tables::long(&[(0x1000, 0x2001), (0x2000, 0x3001), (0x3000, 0x4001), (0x4000, entry)]);
    let paging = Four.paging(0x1000);
    assert!(!translate(&paging, 0, &tables).unwrap().executable);
    let error = translate(&Paging { efer: EFER_LME, ..paging }, 0, &tables).unwrap_err();
    assert_eq!(error, TranslateError::Reserved { level: 1, at: 0x4000, entry, bits: 1 << 63 });
}

proptest! {
    #[test]
    fn every_mapping_leads_where_its_tables_say(mapping in mappings()) {
        let Some(entries) = mapping.entries() else { return Ok(()) };
        let tables = mapping.tables(&entries);
        let counted = |n: usize| !(mapping.layout == Pae && n == 0);
        let all = |right: fn(&(bool, bool, bool)) -> bool| {
            (0..entries.len()).filter(|n| counted(*n)).all(|n| right(&mapping.rights[n]))
        };
        let expected = Translation {
            gpa: mapping.gpa(),
            page_size: 1 << mapping.page_bits(),
            page_gva: mapping.gva() & !((1 << mapping.page_bits()) - 1),
            writable: all(|right| right.0),
            user: all(|right| right.1),
            executable: mapping.layout == Bits32 || all(|right| !right.2),
        };
        prop_assert_eq!(translate(&mapping.paging(), mapping.gva(), &tables), Ok(expected));
        prop_assert_eq!(*tables.reads.lock().unwrap() as usize, entries.len());
    }

    #[test]
    fn an_entry_that_is_not_present_is_named(mapping in mappings(), which: prop::sample::Index, garbage: u64) {
        let Some(mut entries) = mapping.entries() else { return Ok(()) };
        let which = which.index(entries.len());
        let garbage = if mapping.layout == Bits32 { garbage & 0xffff_ffff } else { garbage };
        entries[which].2 = garbage & !1;
        let (level, at, entry) = entries[which];
        let error = translate(&mapping.paging(), mapping.gva(), &mapping.tables(&entries));
        prop_assert_eq!(error, Err(TranslateError::NotPresent { level, at, entry }));
        let error = translate(&mapping.paging(), mapping.gva(), &mapping.tables(&entries[..which]));
        prop_assert_eq!(error, Err(TranslateError::TableOutsideRam { level, at }));
    }

    #[test]
    fn each_reserved_bit_is_refused_and_named(mapping in mappings(), which: prop::sample::Index) {
        let Some(entries) = mapping.entries() else { return Ok(()) };
        let which = which.index(entries.len());
        let reserved = mapping.reserved(entries[which].0);
        for bit in (0..64).map(|n| 1 << n).filter(|bit| reserved & bit != 0) {
            let mut entries = entries.clone();
            entries[which].2 |= bit;
            let (level, at, entry) = entries[which];
            let error = translate(&mapping.paging(), mapping.gva(), &mapping.tables(&entries));
            prop_assert_eq!(error, Err(TranslateError::Reserved { level, at, entry, bits: bit }));
        }
    }

    #[test]
    fn any_registers_and_any_tables_end(
        (cr0, cr3, cr4, efer) in any::<(u64, u64, u64, u64)>(),
        physical_bits in any::<u8>(),
        gva in any::<u64>(),
        seed in any::<u64>(),
        plausible in any::<bool>(),
    ) {
        let ram = Noise(seed, Mutex::new(0));
        let mut paging = Paging { cr0, cr3, cr4, efer, physical_bits };
        let mut address = gva;
        if plausible {
            paging = Paging { cr0: cr0 | CR0_PG, cr3: cr3 & 0x3fff_ffff_ffff, physical_bits: 52, ..paging };
            address = gva >> 33;
        }
        if let Ok(translation) = translate(&paging, address, &ram) {
            prop_assert!(translation.gpa >> 52 == 0);
            prop_assert!(translation.page_size.is_power_of_two());
            prop_assert_eq!(translation.gpa % translation.page_size, address % translation.page_size);
        }
        prop_assert!(*ram.1.lock().unwrap() <= 5);
    }
}
