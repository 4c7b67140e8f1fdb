//! ACPI tables, by which a kernel finds its processors and interrupts, and the way to power off (ACPI 6.4, chapter 5).
//!
//! The least that Linux is content with: RSDP, XSDT, FADT, MADT, and a DSDT with nothing but `\_S5`.

use super::layout::{ACPI, IOAPIC, KEYBOARD, KEYBOARD_RESET, LAPIC, PM_CONTROL, PM_EVENT};

/// Who made them.
const OEM: &[u8; 6] = b"GDEBUG";
const OEM_TABLE: &[u8; 8] = b"REFVMM  ";
const HEADER: usize = 36;
const FADT_LENGTH: usize = 276;
/// FADT flags: WBINVD works, there are no power and sleep buttons of a fixed kind, and the reset register is there.
const FADT_FLAGS: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 10;
/// `Name (\_S5, Package () { 0, 0, 0, 0 })`: the sleep type for power-off is 0.
const S5: [u8; 12] = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x06, 4, 0, 0, 0, 0];

/// The tables, for [`ACPI`], where the RSDP is.
pub(super) fn build(cpus: u32) -> Vec<u8> {
    let mut bytes = vec![0; 0x40];
    let mut put = |table: Vec<u8>| {
        let at = ACPI + bytes.len() as u64;
        bytes.extend(&table);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        at
    };
    let dsdt = put(table(b"DSDT", 2, &S5));
    let fadt = put(fadt(dsdt));
    let madt = put(madt(cpus));
    let xsdt = put(table(b"XSDT", 1, &[fadt, madt].map(u64::to_le_bytes).concat()));

    let mut rsdp = [&b"RSD PTR "[..], &[0], OEM, &[2], &[0; 4]].concat();
    sum_up(&mut rsdp, 8);
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.extend([0; 4]);
    sum_up(&mut rsdp, 32);
    bytes.iter_mut().zip(rsdp).for_each(|(to, from)| *to = from);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut body = vec![0; FADT_LENGTH - HEADER];
    let mut put = |at: usize, value: &[u8]| {
        body.iter_mut().skip(at - HEADER).zip(value).for_each(|(to, from)| *to = *from);
    };
    put(40, &(dsdt as u32).to_le_bytes());
    // SCI_INT.
    put(46, &9u16.to_le_bytes());
    put(56, &u32::from(PM_EVENT).to_le_bytes());
    put(64, &u32::from(PM_CONTROL).to_le_bytes());
    // PM1_EVT_LEN, PM1_CNT_LEN.
    put(88, &[4, 2]);
    // IAPC_BOOT_ARCH: an 8042, no VGA, no CMOS clock.
    put(109, &(1u16 << 1 | 1 << 2 | 1 << 5).to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(116, &port(KEYBOARD, 8));
    put(128, &[KEYBOARD_RESET]);
    // Minor version 6.4.
    put(131, &[4]);
    put(140, &dsdt.to_le_bytes());
    put(148, &port(PM_EVENT, 32));
    put(172, &port(PM_CONTROL, 16));
    table(b"FACP", 6, &body)
}

/// A generic address structure of a port.
fn port(port: u16, bits: u8) -> Vec<u8> {
    let access = bits.ilog2() as u8 - 2;
    [&[1, bits, 0, access][..], &u64::from(port).to_le_bytes()].concat()
}

fn madt(cpus: u32) -> Vec<u8> {
    // PCAT_COMPAT: there are PICs as well.
    let mut body = [LAPIC, 1].map(u32::to_le_bytes).concat();
    for id in 0..cpus as u8 {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, 0, 0]);
    body.extend([IOAPIC, 0].map(u32::to_le_bytes).concat());
    table(b"APIC", 5, &body)
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend(((HEADER + body.len()) as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(OEM);
    table.extend(OEM_TABLE);
    table.extend(
        [1u32, u32::from_le_bytes(*OEM_TABLE.first_chunk().unwrap_or(&[0; 4])), 1].map(u32::to_le_bytes).concat(),
    );
    table.extend(body);
    sum_up(&mut table, 9);
    table
}

/// Makes all bytes sum up to 0.
fn sum_up(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Follows the pointers as a kernel does, and checks every sum.
    #[test]
    fn every_table_is_found_and_sums_up() {
        let bytes = build(3);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((&bytes[..8], sum(&bytes[..20]), sum(&bytes[..36])), (&b"RSD PTR "[..], 0, 0));
        let table = |at: u64| {
            let table = &bytes[(at - ACPI) as usize..];
            let length = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
            assert_eq!(sum(&table[..length]), 0);
            &table[..length]
        };
        let xsdt = table(u64_at(&bytes, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], HEADER + 16));
        let (fadt, madt) = (table(u64_at(xsdt, 36)), table(u64_at(xsdt, 44)));
        assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], FADT_LENGTH));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], HEADER + 8 + 3 * 8 + 12));
        assert_eq!(table(u64_at(fadt, 140))[HEADER..], S5);
    }
}
