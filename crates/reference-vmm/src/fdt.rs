//! The device tree that describes the VM to its guest.
//!
//! Bindings: Linux, Documentation/devicetree/bindings (arm/cpus.yaml, arm/psci.yaml, timer/arm,arch_timer.yaml,
//! interrupt-controller/arm,gic-v3.yaml, serial/8250.yaml).

use crate::layout::{GICD, GICR_BASE, GICR_SIZE_PER_CPU, RAM_BASE, SERIAL, SERIAL_SPI};
use std::ops::Range;
use vm_fdt::{FdtWriter, FdtWriterResult};

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const GIC_FDT_SPI: u32 = 0;
const GIC_FDT_PPI: u32 = 1;
const IRQ_EDGE_RISING: u32 = 1;
const IRQ_LEVEL_HIGH: u32 = 4;
/// Secure and non-secure physical, virtual and hypervisor timer, in the order of the binding.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The 8250 driver derives its divisor from it; the device ignores the divisor.
const SERIAL_CLOCK_HZ: u32 = 1_843_200;

/// What the device tree tells.
#[derive(Debug, Clone)]
pub struct FdtConfig<'a> {
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Size of RAM in bytes.
    pub memory: u64,
    /// Where the initramfs is; empty when there is none.
    pub initrd: Range<u64>,
    /// Affinity fields of each vCPU's MPIDR_EL1, in the order of their indexes.
    pub mpidrs: &'a [u64],
}

/// Makes the device tree blob.
///
/// # Errors
///
/// Whatever vm-fdt answers, such as a command line with a zero in it.
pub fn build(config: &FdtConfig<'_>) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "reference-vmm")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    chosen(&mut fdt, config)?;
    memory(&mut fdt, config)?;
    cpus(&mut fdt, config)?;
    psci(&mut fdt)?;
    gic(&mut fdt, config)?;
    timer(&mut fdt)?;
    serial(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> FdtWriterResult<()> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", config.cmdline)?;
    fdt.property_string("stdout-path", &serial_path())?;
    if !config.initrd.is_empty() {
        fdt.property_u64("linux,initrd-start", config.initrd.start)?;
        fdt.property_u64("linux,initrd-end", config.initrd.end)?;
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> FdtWriterResult<()> {
    let node = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, config.memory])?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> FdtWriterResult<()> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for mpidr in config.mpidrs {
        let node = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", *mpidr)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

fn psci(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> FdtWriterResult<()> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", GICD.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    let redistributors = GICR_SIZE_PER_CPU * config.mpidrs.len() as u64;
    fdt.property_array_u64("reg", &[GICD.base, GICD.size, GICR_BASE, redistributors])?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_array_u32("interrupts", &TIMER_PPIS.map(|ppi| [GIC_FDT_PPI, ppi, IRQ_LEVEL_HIGH]).concat())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn serial(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let clock = fdt.begin_node("serial-clock")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;

    let node = fdt.begin_node(serial_path().trim_start_matches('/'))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL.base, SERIAL.size])?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
    fdt.property_array_u32("interrupts", &[GIC_FDT_SPI, SERIAL_SPI, IRQ_EDGE_RISING])?;
    fdt.end_node(node)
}

fn serial_path() -> String {
    format!("/serial@{:x}", SERIAL.base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn be32(blob: &[u8], offset: usize) -> u32 {
        u32::from_be_bytes(blob[offset..offset + 4].try_into().unwrap())
    }

    fn text(blob: &[u8], offset: usize) -> String {
        let end = blob[offset..].iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(blob[offset..offset + end].to_vec()).unwrap()
    }

    /// Flattens a blob into "/node/property" -> value (Devicetree Specification, section 5).
    fn parse(blob: &[u8]) -> BTreeMap<String, Vec<u8>> {
        assert_eq!(be32(blob, 0), 0xd00d_feed);
        assert_eq!(be32(blob, 4) as usize, blob.len());
        let (mut at, strings) = (be32(blob, 8) as usize, be32(blob, 12) as usize);
        let (mut path, mut properties) = (Vec::new(), BTreeMap::new());
        loop {
            let token = be32(blob, at);
            at += 4;
            match token {
                1 => {
                    let name = text(blob, at);
                    at = (at + name.len() + 1).next_multiple_of(4);
                    path.push(name);
                }
                2 => drop(path.pop().unwrap()),
                3 => {
                    let (length, name) = (be32(blob, at) as usize, be32(blob, at + 4) as usize);
                    let key = format!("{}/{}", path.join("/"), text(blob, strings + name));
                    properties.insert(key, blob[at + 8..at + 8 + length].to_vec());
                    at = (at + 8 + length).next_multiple_of(4);
                }
                9 => return properties,
                other => panic!("token {other}"),
            }
        }
    }

    fn u64s(value: &[u8]) -> Vec<u64> {
        value.chunks(8).map(|chunk| u64::from_be_bytes(chunk.try_into().unwrap())).collect()
    }

    fn u32s(value: &[u8]) -> Vec<u32> {
        value.chunks(4).map(|chunk| be32(chunk, 0)).collect()
    }

    #[test]
    fn describes_the_layout() {
        let mpidrs = [0, 1, 0x100];
        let config =
            FdtConfig { cmdline: "console=ttyS0 quiet", memory: 1 << 29, initrd: 0x9000..0xa000, mpidrs: &mpidrs };
        let tree = parse(&build(&config).unwrap());
        assert_eq!(tree["/chosen/bootargs"], b"console=ttyS0 quiet\0");
        assert_eq!(tree["/chosen/stdout-path"], b"/serial@9000000\0");
        assert_eq!(u64s(&tree["/chosen/linux,initrd-start"]), [0x9000]);
        assert_eq!(u64s(&tree["/chosen/linux,initrd-end"]), [0xa000]);
        assert_eq!(u64s(&tree["/memory@80000000/reg"]), [RAM_BASE, 1 << 29]);
        assert_eq!(u64s(&tree["/cpus/cpu@100/reg"]), [0x100]);
        assert_eq!(tree["/cpus/cpu@1/enable-method"], b"psci\0");
        assert_eq!(tree["/psci/method"], b"hvc\0");
        assert_eq!(
            u64s(&tree["/interrupt-controller@10000000/reg"]),
            [GICD.base, GICD.size, GICR_BASE, 3 * GICR_SIZE_PER_CPU]
        );
        assert_eq!(u32s(&tree["/timer/interrupts"]), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        assert_eq!(u64s(&tree["/serial@9000000/reg"]), [SERIAL.base, SERIAL.size]);
        assert_eq!(u32s(&tree["/serial@9000000/interrupts"]), [0, SERIAL_SPI, 1]);
        assert_eq!(tree["/serial@9000000/compatible"], b"ns16550a\0");
    }

    #[test]
    fn no_initramfs_no_property() {
        let config = FdtConfig { cmdline: "", memory: 1 << 23, initrd: 0..0, mpidrs: &[0] };
        let tree = parse(&build(&config).unwrap());
        assert!(!tree.contains_key("/chosen/linux,initrd-start"));
    }

    #[test]
    fn a_zero_in_the_command_line_is_an_error() {
        assert!(build(&FdtConfig { cmdline: "a\0", memory: 1, initrd: 0..0, mpidrs: &[0] }).is_err());
    }

    #[test]
    fn the_largest_vm_fits_in_its_place() {
        let mpidrs: Vec<u64> =
            (0..u64::from(crate::layout::MAX_CPUS)).map(|id| (id & 0xf) | ((id >> 4) << 8)).collect();
        let cmdline = "x".repeat(2047);
        let config = FdtConfig { cmdline: &cmdline, memory: 1 << 39, initrd: 1..2, mpidrs: &mpidrs };
        assert!((build(&config).unwrap().len() as u64) < crate::layout::FDT_MAX_SIZE);
    }
}
