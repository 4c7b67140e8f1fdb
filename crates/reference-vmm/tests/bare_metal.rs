//! Bare-metal programs on real KVM, whose machine code is assembled into this test binary and copied out of it.
//!
//! Needs an arm64 host with /dev/kvm; elsewhere its tests are ignored, and say so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

/// The tests below are not compiled elsewhere; this one says so, and is counted as skipped there.
#[test]
#[cfg_attr(not(target_arch = "aarch64"), ignore = "guests need an arm64 host with /dev/kvm")]
fn this_is_an_arm64_host() {}

#[cfg(target_arch = "aarch64")]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "guest_code! assembles")]
mod tests {
    use crate::support::{DATA, Guest, Output, guest_code};
    use reference_vmm::config::VmConfig;
    use reference_vmm::control::Request;
    use reference_vmm::error::VmError;
    use std::time::{Duration, Instant};
    use vm_memory::{Bytes, GuestAddress};

    // PSCI SYSTEM_OFF (Arm DEN 0022, section 5.11).
    guest_code!(power_off, "mov w0, #0x84000000", "add w0, w0, #8", "hvc #0", "b .");

    #[test]
    fn power_off_ends_the_vm() {
        let Some(guest) = Guest::new(power_off(), |_| {}) else { return };
        guest.vm.run().unwrap();
    }

    #[test]
    fn secondary_vcpus_stay_off_until_they_are_wanted() {
        let Some(guest) = Guest::new(power_off(), |config| config.cpus = 4) else { return };
        guest.vm.run().unwrap();
    }

    // What a payload finds when it is entered, as it is documented: 8 doublewords at 0x80100000.
    guest_code!(
        entry_state,
        "adr x10, 0f",
        "sub x10, x10, #(0f - entry_state_start)",
        "0: movz x9, #0x8010, lsl #16",
        "mrs x11, CurrentEL",
        "mrs x12, DAIF",
        "mrs x13, SCTLR_EL1",
        "ldr w14, [x0]",
        "stp x0, x10, [x9]",
        "stp x11, x12, [x9, #16]",
        "stp x13, x14, [x9, #32]",
        "stp x1, x2, [x9, #48]",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0"
    );

    fn assert_entry_state(guest: &Guest, address: u64) {
        guest.vm.run().unwrap();
        let [fdt, pc, el, daif, sctlr, magic, x1, x2] = guest.read::<8>(DATA);
        assert_eq!(pc, address);
        assert!(fdt > address && fdt.is_multiple_of(8), "{fdt:#x}");
        assert_eq!(magic, u64::from(0xd00d_feed_u32.to_be()), "X0 holds the address of a device tree");
        assert_eq!(el >> 2 & 3, 1, "EL1");
        assert_eq!(daif, 0xf << 6, "all interrupts masked");
        assert_eq!(sctlr & 1, 0, "MMU off");
        assert_eq!((x1, x2), (0, 0));
    }

    #[test]
    fn a_flat_binary_is_entered_as_documented() {
        let Some(guest) = Guest::new(entry_state(), |_| {}) else { return };
        assert_entry_state(&guest, 0x8000_0000);
    }

    #[test]
    fn an_elf_file_is_entered_at_its_entry_point() {
        let Some(guest) = Guest::new(&elf(entry_state(), 0x8004_0000), |_| {}) else { return };
        assert_entry_state(&guest, 0x8004_0000);
    }

    /// An ELF file with one segment, `code`, at a physical address, entered at its first byte.
    fn elf(code: &[u8], address: u64) -> Vec<u8> {
        const HEADERS: u64 = 64 + 56;
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // ET_EXEC, EM_AARCH64, version
        file.extend([2, 0, 183, 0, 1, 0, 0, 0]);
        file.extend([address, 64, 0].iter().flat_map(|value| value.to_le_bytes()));
        // flags; header sizes and counts
        file.extend([0; 4]);
        file.extend([64_u16, 56, 1, 0, 0, 0].iter().flat_map(|value| value.to_le_bytes()));
        // PT_LOAD, readable and executable
        file.extend([1_u32, 5].iter().flat_map(|value| value.to_le_bytes()));
        let length = code.len() as u64;
        let program_header = [HEADERS, address, address, length, length, 0x1000];
        file.extend(program_header.iter().flat_map(|value| value.to_le_bytes()));
        file.extend(code);
        file
    }

    // Counts its boots at 0x80100000; resets twice, powers off the third time. Leaves registers, the MMU's
    // registers and the GIC behind in a state that a reset must undo, and notes what it found.
    guest_code!(
        reset_twice,
        "movz x9, #0x8010, lsl #16",
        "ldr x10, [x9]",
        "add x10, x10, #1",
        "str x10, [x9]",
        // [x9 + 32 * boot]: TPIDR_EL1, VBAR_EL1, GICD_CTLR and GICD_ISENABLER1, GICD_IPRIORITYR8 and IER
        "add x11, x9, x10, lsl #5",
        "mrs x12, TPIDR_EL1",
        "mrs x13, VBAR_EL1",
        "stp x12, x13, [x11]",
        "movz x14, #0x1000, lsl #16",
        "ldr w12, [x14]",
        "ldr w13, [x14, #0x104]",
        "stp w12, w13, [x11, #16]",
        "ldr w12, [x14, #0x420]",
        "movz x15, #0x0900, lsl #16",
        "ldrb w13, [x15, #1]",
        "stp w12, w13, [x11, #24]",
        "mov x12, #0x5000",
        "msr TPIDR_EL1, x12",
        "msr VBAR_EL1, x12",
        "isb",
        "mov w12, #0x12",
        "str w12, [x14]",
        "str w12, [x14, #0x104]",
        "str w12, [x14, #0x420]",
        "mov w12, #1",
        "strb w12, [x15, #1]",
        "cmp x10, #3",
        "mov w0, #0x84000000",
        "add w1, w0, #8",
        "add w2, w0, #9",
        "csel w0, w1, w2, eq",
        "hvc #0",
        "b ."
    );

    #[test]
    fn a_reset_starts_the_machine_again_from_its_first_state() {
        let Some(guest) = Guest::new(reset_twice(), |config| config.cpus = 2) else { return };
        guest.vm.run().unwrap();
        assert_eq!(guest.read::<1>(DATA), [3], "memory keeps its contents over a reset");
        let first = guest.read::<4>(0x8010_0020);
        assert_eq!(guest.read::<4>(0x8010_0040), first);
        assert_eq!(guest.read::<4>(0x8010_0060), first);
        // The test means something only if the guest's writes would have been seen.
        assert_ne!(first[0], 0x5000);
        assert_eq!(first[2] >> 32, 0, "no line is enabled at first");
        assert_eq!(first[3], 0);
    }

    // The kernel file is loaded again: the program overwrites its own first instruction with a HVC of SYSTEM_OFF's
    // code path gone wrong (UDF), and resets.
    guest_code!(
        overwrite_and_reset,
        "movz x9, #0x8010, lsl #16",
        "ldr x10, [x9]",
        "add x11, x10, #1",
        "str x11, [x9]",
        "movz x12, #0x8000, lsl #16",
        "str xzr, [x12]",
        "dc cvau, x12",
        "dsb sy",
        "ic ivau, x12",
        "dsb sy",
        "isb",
        "mov w0, #0x84000000",
        "add w1, w0, #8",
        "add w2, w0, #9",
        "cmp x10, #1",
        "csel w0, w1, w2, eq",
        "hvc #0",
        "b ."
    );

    #[test]
    fn a_reset_loads_the_payload_again() {
        let Some(guest) = Guest::new(overwrite_and_reset(), |_| {}) else { return };
        guest.vm.run().unwrap();
        assert_eq!(guest.read::<1>(DATA), [2]);
    }

    // vCPU 0 powers vCPU 1 on with CPU_ON and spins; vCPU 1 counts up to 1000 and resets the VM, or powers it off
    // in the fourth round. Each round the reset meets vCPU 0 inside the guest.
    guest_code!(
        reset_by_second_vcpu,
        "movz x9, #0x8010, lsl #16",
        "movz w0, #0xc400, lsl #16",
        "movk w0, #3",
        "mov x1, #1",
        "adr x2, 1f",
        "mov x3, x9",
        "hvc #0",
        "b .",
        "1: ldr x10, [x0]",
        "add x10, x10, #1",
        "str x10, [x0]",
        "mov x11, #1000",
        "2: subs x11, x11, #1",
        "b.ne 2b",
        "cmp x10, #4",
        "mov w0, #0x84000000",
        "add w1, w0, #8",
        "add w2, w0, #9",
        "csel w0, w1, w2, eq",
        "hvc #0",
        "b ."
    );

    #[test]
    fn a_reset_reaches_a_vcpu_that_is_inside_the_guest() {
        let Some(guest) = Guest::new(reset_by_second_vcpu(), |config| config.cpus = 2) else { return };
        guest.vm.run().unwrap();
        assert_eq!(guest.read::<1>(DATA), [4]);
    }

    // As before, but vCPU 0 reads a device register without end: a reset finds it with an access that KVM has not
    // completed. Completed after the reset, it would skip the first instruction.
    guest_code!(
        reset_in_device_access,
        "b 0f",
        "b 3f",
        "0: movz x9, #0x8010, lsl #16",
        "movz w0, #0xc400, lsl #16",
        "movk w0, #3",
        "mov x1, #1",
        "adr x2, 1f",
        "mov x3, x9",
        "hvc #0",
        "movz x11, #0x0900, lsl #16",
        "4: ldrb w12, [x11, #5]",
        "b 4b",
        "1: ldr x10, [x0]",
        "add x10, x10, #1",
        "str x10, [x0]",
        "movz x11, #0x8, lsl #16",
        "2: subs x11, x11, #1",
        "b.ne 2b",
        "cmp x10, #10",
        "5: mov w0, #0x84000000",
        "add w1, w0, #8",
        "add w2, w0, #9",
        "csel w0, w1, w2, eq",
        "hvc #0",
        "b .",
        "3: movz x9, #0x8010, lsl #16",
        "mov x10, #-1",
        "str x10, [x9]",
        "cmp x10, x10",
        "b 5b"
    );

    #[test]
    fn a_reset_completes_device_accesses_first() {
        let Some(guest) = Guest::new(reset_in_device_access(), |config| config.cpus = 2) else { return };
        guest.vm.run().unwrap();
        assert_eq!(guest.read::<1>(DATA), [10]);
    }

    // Writes "ok" to the serial port, reads and writes where there is nothing, and notes what it read.
    guest_code!(
        serial_and_nothing,
        "movz x9, #0x8010, lsl #16",
        "movz x10, #0x0900, lsl #16",
        "mov w11, #'o'",
        "strb w11, [x10]",
        "mov w11, #'k'",
        "strb w11, [x10]",
        "movz x12, #0x0a00, lsl #16",
        "ldr x13, [x12]",
        "str x10, [x12]",
        "str x13, [x9]",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0"
    );

    #[test]
    fn serial_output_and_unknown_addresses() {
        let Some(guest) = Guest::new(serial_and_nothing(), |_| {}) else { return };
        guest.vm.ram().write_obj(u64::MAX, GuestAddress(DATA)).unwrap();
        guest.vm.run().unwrap();
        assert_eq!(guest.output.text(), "ok");
        assert_eq!(guest.read::<1>(DATA), [0], "what nobody answers reads as zero");
    }

    // A pair of registers stored to a device: KVM gets no syndrome that it could decode.
    guest_code!(undecodable, "movz x9, #0x0900, lsl #16", "stp x0, x1, [x9]", "b .");

    #[test]
    fn an_access_that_kvm_cannot_decode_is_a_clear_error() {
        let Some(guest) = Guest::new(undecodable(), |_| {}) else { return };
        let error = guest.vm.run().unwrap_err().to_string();
        assert!(error.starts_with("vCPU 0: the guest accessed a device with an instruction"), "{error}");
    }

    guest_code!(spin, "b .");

    #[test]
    fn a_spinning_guest_can_be_ended() {
        let Some(guest) = Guest::new(spin(), |config| config.cpus = 3) else { return };
        let control = guest.vm.control().clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            control.request(Request::Quit);
        });
        let begin = Instant::now();
        guest.vm.run().unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(100));
        thread.join().unwrap();
    }

    // Waits for the serial port's interrupt line (INTID 33) to be pending, without taking the interrupt, then reads
    // the byte, echoes it and powers off.
    guest_code!(
        echo_by_interrupt,
        "movz x9, #0x1000, lsl #16",
        "mov w10, #2",
        "str w10, [x9, #0xc08]",
        "movz x11, #0x0900, lsl #16",
        "mov w12, #1",
        "strb w12, [x11, #1]",
        "1: ldr w12, [x9, #0x204]",
        "tbz w12, #1, 1b",
        "ldrb w12, [x11]",
        "strb w12, [x11]",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0"
    );

    #[test]
    fn serial_input_raises_the_interrupt_of_the_device_tree() {
        let Some(guest) = Guest::new(echo_by_interrupt(), |_| {}) else { return };
        let serial = guest.vm.serial().clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            serial.input(b"!");
        });
        guest.vm.run().unwrap();
        thread.join().unwrap();
        assert_eq!(guest.output.text(), "!");
    }

    #[test]
    fn bad_settings_are_refused_before_anything_is_made() {
        let config = VmConfig { cpus: 0, ..VmConfig::new("/nonexistent") };
        let error = reference_vmm::kvm::Vm::new(&config, Box::new(Output::default())).unwrap_err();
        assert!(matches!(error, VmError::Setting { name: "--cpus", .. }), "{error}");
    }
}
