//! The guest's physical address map, and the ports.
//!
//! | from | what |
//! |---|---|
//! | `0x5000` | descriptor table of the first instruction |
//! | `0x7000` | zero page (`struct boot_params`), whose address is in RSI |
//! | `0x9000` | page tables: the first 4 GiB, each address its own |
//! | `0x8_0000` | top of the first stack |
//! | `0x9_0000` | kernel command line |
//! | `0xe_0000` | ACPI tables |
//! | `0x10_0000` | flat payloads, and what kernels ask for |
//! | `0xc000_0000` | devices, up to 4 GiB: IOAPIC at `0xfec0_0000`, local APICs at `0xfee0_0000` |
//! | `0x1_0000_0000` | RAM for which there was no room below the devices |
//!
//! Ports: `0x3f8` the serial port on IRQ 4; `0x64`, where 0xfe resets the machine; `0x600` and `0x604`, ACPI's PM1 event and
//! control registers, of which SLP_EN powers it off.

use vm_memory::GuestAddress;

/// The GDT.
pub const GDT: u64 = 0x5000;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// The first of the page tables.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Four page directories.
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// Where RSP is at first.
pub const STACK: u64 = 0x8_0000;
/// The command line.
pub const CMDLINE: u64 = 0x9_0000;
/// End of base memory.
pub const BASE_END: u64 = 0x9_fc00;
/// ACPI tables, where a kernel looks for them.
pub const ACPI: u64 = 0xe_0000;
/// Where RAM goes on.
pub const HIGH_RAM: u64 = 0x10_0000;
/// IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's own pages, three for the task state and one for page tables, below the APICs' neighbours.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// A page beside them.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// COM1.
pub const SERIAL: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's command port.
pub const KEYBOARD: u16 = 0x64;
/// The command that pulses the reset line.
pub const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's PM1a_EVT, 4 bytes.
pub const PM_EVENT: u16 = 0x600;
/// ACPI's PM1a_CNT, 2 bytes.
pub const PM_CONTROL: u16 = 0x604;
/// SLP_EN in it; the only sleep there is, is the last one.
pub const SLEEP_ENABLE: u16 = 1 << 13;

/// As many as have an APIC id of 8 bits that is none of the broadcast.
pub const MAX_CPUS: u32 = 254;
/// Where RAM ends below the devices.
pub const DEVICES: u64 = 0xc000_0000;
/// Where it goes on above them.
pub const ABOVE_DEVICES: u64 = 1 << 32;

/// Selector of the first code segment, as Linux's boot protocol has it.
pub const CODE: u16 = 0x10;
/// Selector of all other segments.
pub const DATA: u16 = 0x18;

/// Regions of RAM, address and length, of a machine with so many bytes of it.
pub fn ram(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let regions = [(GuestAddress(0), bytes.min(DEVICES)), (GuestAddress(ABOVE_DEVICES), bytes.saturating_sub(DEVICES))];
    regions.into_iter().filter(|(_, length)| *length > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_memory_goes_around_the_devices() {
        let regions = |mib: u64| ram(mib << 20).into_iter().map(|(at, length)| (at.0, length)).collect::<Vec<_>>();
        assert_eq!(regions(8), [(0, 8 << 20)]);
        assert_eq!(regions(3072), [(0, DEVICES)]);
        assert_eq!(regions(3073), [(0, DEVICES), (1 << 32, 1 << 20)]);
    }
}
