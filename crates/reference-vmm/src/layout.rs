//! The guest's physical address map, and where a boot payload goes in it.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0900_0000` | `0x0900_1000` | 16550 serial port, SPI 1 (INTID 33), edge |
//! | `0x1000_0000` | `0x1001_0000` | GICv3 distributor |
//! | `0x1100_0000` | 128 KiB per vCPU | GICv3 redistributors |
//! | `0x8000_0000` | as much as was asked for | RAM |
//!
//! In RAM, from below: the kernel, the initramfs, and in the last 2 MiB the device tree.

use crate::error::VmError;
use std::ops::Range;

/// A guest-physical range that a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioRange {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl MmioRange {
    /// Offset of `address` inside the range, if it is inside.
    pub fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.base).filter(|offset| *offset < self.size)
    }
}

/// Serial port registers, one byte each from the base.
pub const SERIAL: MmioRange = MmioRange { base: 0x0900_0000, size: 0x1000 };
/// Shared peripheral interrupt of the serial port, counted from 0: its INTID is 32 more.
pub const SERIAL_SPI: u32 = 1;
/// GICv3 distributor.
pub const GICD: MmioRange = MmioRange { base: 0x1000_0000, size: 0x1_0000 };
/// First GICv3 redistributor; the others follow without a gap.
pub const GICR_BASE: u64 = 0x1100_0000;
/// Two 64 KiB frames for each vCPU.
pub const GICR_SIZE_PER_CPU: u64 = 0x2_0000;
/// Interrupt lines of the GIC, SGIs and PPIs included.
pub const GIC_LINES: u32 = 64;
/// First byte of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Where a flat payload is loaded and entered: the first byte of RAM.
pub const FLAT_BASE: u64 = RAM_BASE;

/// KVM's GICv3 has redistributors for so many vCPUs.
pub const MAX_CPUS: u32 = 512;

/// The arm64 boot protocol allows a device tree of 2 MiB at most.
pub const FDT_MAX_SIZE: u64 = 0x20_0000;
/// The initramfs starts on a page of the largest page size.
const INITRD_ALIGN: u64 = 0x1_0000;
/// Linux wants the initramfs within a 32 GiB window of the kernel; what is loaded stays in the first GiB.
const BOOT_WINDOW: u64 = 0x4000_0000;

/// Where the parts of a boot payload go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The device tree's address.
    pub fdt: u64,
    /// The initramfs, empty when there is none.
    pub initrd: Range<u64>,
}

/// End of RAM for a guest with `memory` bytes.
pub fn ram_end(memory: u64) -> u64 {
    RAM_BASE.saturating_add(memory)
}

/// Places the device tree and the initramfs above a kernel that ends at `kernel_end`.
///
/// `memory` and `initrd_size` are in bytes.
///
/// # Errors
///
/// [`VmError::OutOfMemory`] with the part that does not fit, what it needs and what there is.
pub fn place(memory: u64, kernel_end: u64, initrd_size: u64) -> Result<Placement, VmError> {
    let top = ram_end(memory.min(BOOT_WINDOW)) & !(FDT_MAX_SIZE - 1);
    let fdt = top - FDT_MAX_SIZE;
    if kernel_end > fdt {
        let (needed, available) = (kernel_end - RAM_BASE, fdt - RAM_BASE);
        return Err(VmError::OutOfMemory { what: "the kernel", needed, available });
    }
    let start = fdt.checked_sub(initrd_size).map(|start| start & !(INITRD_ALIGN - 1)).filter(|s| *s >= kernel_end);
    let available = fdt - kernel_end;
    let start = start.ok_or(VmError::OutOfMemory { what: "the initramfs", needed: initrd_size, available })?;
    Ok(Placement { fdt, initrd: start..start + initrd_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_do_not_overlap() {
        let kernel_end = RAM_BASE + 30 * MIB;
        let placed = place(64 * MIB, kernel_end, 5 * MIB + 1).unwrap();
        assert_eq!(placed.fdt, RAM_BASE + 62 * MIB);
        assert!(placed.initrd.start >= kernel_end);
        assert!(placed.initrd.end <= placed.fdt);
        assert_eq!(placed.initrd.end - placed.initrd.start, 5 * MIB + 1);
        assert_eq!(placed.initrd.start % INITRD_ALIGN, 0);
    }

    #[test]
    fn large_memory_boots_from_its_first_gib() {
        let placed = place(8 << 30, RAM_BASE + MIB, MIB).unwrap();
        assert_eq!(placed.fdt, RAM_BASE + (1 << 30) - FDT_MAX_SIZE);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = place(32 * MIB, RAM_BASE + 31 * MIB, 0).unwrap_err();
        assert!(matches!(error, VmError::OutOfMemory { what: "the kernel", .. }), "{error}");
        let error = place(32 * MIB, RAM_BASE + 20 * MIB, 11 * MIB).unwrap_err();
        assert!(
            matches!(error, VmError::OutOfMemory { what: "the initramfs", needed, available }
                if needed == 11 * MIB && available == 10 * MIB),
            "{error}"
        );
        assert!(place(32 * MIB, RAM_BASE, u64::MAX).is_err());
    }

    #[test]
    fn ranges_answer_their_own_addresses() {
        assert_eq!(SERIAL.offset(SERIAL.base), Some(0));
        assert_eq!(SERIAL.offset(SERIAL.base + SERIAL.size), None);
        assert_eq!(SERIAL.offset(0), None);
    }
}
