//! The debug session on real KVM, through this VMM: holding a VM, breakpoints on every vCPU, steps, watchpoints,
//! and all of that over a reset.
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
    use crate::support::client::{BOOT, Client, debug, debug_held, event};
    use crate::support::{BASE, DATA, Guest, guest_code};
    use guest_debug::arm64::Reg;
    use guest_debug::{Breakpoint, Gva, StopReason, VcpuId, WatchKind};
    use reference_vmm::config::DebugMode;
    use std::thread;
    use std::time::Duration;
    use vm_memory::GuestAddress;

    guest_code!(
        count_to_three,
        "movz x9, #0x8010, lsl #16",
        "mov x10, #1",
        "str x10, [x9]",
        "mov x10, #2",
        "str x10, [x9, #8]",
        "mov x10, #3",
        "str x10, [x9, #16]",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0"
    );

    #[test]
    fn a_held_vm_executes_nothing_before_a_client_continues() {
        let Some(guest) = Guest::new(count_to_three(), |config| config.debug = DebugMode::Hold) else { return };
        debug(&guest, |guest| {
            thread::sleep(Duration::from_millis(300));
            let client = Client::attach(guest);
            assert_eq!(client.get(BOOT, Reg::Pc), BASE);
            assert_eq!(guest.read::<3>(DATA), [0; 3]);
            client.0.detach().unwrap();
        });
        assert_eq!(guest.read::<3>(DATA), [1, 2, 3]);
    }

    #[test]
    fn without_a_client_a_session_costs_nothing() {
        let Some(guest) = Guest::new(count_to_three(), |config| config.debug = DebugMode::Run) else { return };
        guest.vm.run().unwrap();
        assert_eq!(guest.read::<3>(DATA), [1, 2, 3]);
    }

    #[test]
    fn steps_breakpoints_and_a_watch() {
        let guest = debug_held(count_to_three(), 1, |guest, client| {
            for done in 1..=2 {
                assert_eq!(client.step(BOOT), event(0, StopReason::Step));
                assert_eq!(client.get(BOOT, Reg::Pc), BASE + 4 * done);
            }
            client.insert(Breakpoint::Hardware(Gva(BASE + 12)));
            client.insert(Breakpoint::Software(Gva(BASE + 20)));
            let watch = Breakpoint::Watch { kind: WatchKind::Write, address: Gva(DATA + 16), length: 8 };
            client.insert(watch);
            assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + 12))));
            assert_eq!(guest.read::<3>(DATA), [1, 0, 0]);
            assert_eq!(client.resume(), event(0, StopReason::SoftwareBreakpoint(Gva(BASE + 20))));
            assert_eq!(client.get(BOOT, Reg::X(10)), 2);
            let hit = StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA + 16) };
            assert_eq!(client.resume(), event(0, hit));
            assert_eq!(guest.read::<3>(DATA), [1, 2, 0], "the access has not happened yet");
            client.0.detach().unwrap();
        });
        let Some(guest) = guest else { return };
        assert_eq!(guest.read::<3>(DATA), [1, 2, 3]);
        assert_eq!(guest.read::<1>(BASE + 16), guest_words(count_to_three(), 16), "the guest's code is its own again");
    }

    fn guest_words(code: &[u8], offset: usize) -> [u64; 1] {
        [u64::from_le_bytes(code[offset..offset + 8].try_into().unwrap())]
    }

    // Three boots: counts them at DATA, resets twice.
    guest_code!(
        boot_three_times,
        "movz x9, #0x8010, lsl #16",
        "ldr x10, [x9]",
        "add x10, x10, #1",
        "str x10, [x9]",
        "nop",
        "cmp x10, #3",
        "mov w0, #0x84000000",
        "add w1, w0, #8",
        "add w2, w0, #9",
        "csel w0, w1, w2, eq",
        "hvc #0",
        "b ."
    );

    #[test]
    fn breakpoints_stay_over_a_reset() {
        debug_held(boot_three_times(), 1, |guest, client| {
            client.insert(Breakpoint::Software(Gva(BASE + 8)));
            client.insert(Breakpoint::Hardware(Gva(BASE + 16)));
            for boot in 1..=3 {
                assert_eq!(client.resume(), event(0, StopReason::SoftwareBreakpoint(Gva(BASE + 8))));
                assert_eq!(guest.read::<1>(DATA), [boot - 1]);
                assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + 16))));
                assert_eq!(guest.read::<1>(DATA), [boot]);
            }
            client.0.detach().unwrap();
        });
    }

    // vCPU 0 powers vCPU 1 on; both spin at their own place until the doubleword at DATA is set, then vCPU 0 powers off.
    guest_code!(
        two_vcpus,
        "movz x9, #0x8010, lsl #16",
        "movz w0, #0xc400, lsl #16",
        "movk w0, #3",
        "mov x1, #1",
        "adr x2, 1f",
        "mov x3, x9",
        "hvc #0",
        "0: ldr x10, [x9]",
        "cbz x10, 0b",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0",
        "1: add x11, x11, #1",
        "2: b 1b"
    );

    #[test]
    fn a_breakpoint_is_on_a_vcpu_that_comes_up_later() {
        debug_held(two_vcpus(), 2, |_, client| {
            client.insert(Breakpoint::Hardware(Gva(BASE + 48)));
            for round in 0..20 {
                assert_eq!(client.resume(), event(1, StopReason::HardwareBreakpoint(Gva(BASE + 48))));
                assert_eq!(client.get(VcpuId(1), Reg::X(11)), round);
                let pc = client.get(BOOT, Reg::Pc);
                assert!((BASE + 24..=BASE + 32).contains(&pc), "the other vCPU stands where it was: {pc:#x}");
            }
            assert_eq!(client.step(VcpuId(1)), event(1, StopReason::Step));
            assert_eq!(client.get(VcpuId(1), Reg::Pc), BASE + 52);
            client.0.write_physical(GuestAddress(DATA), &[1]).unwrap();
            client.0.detach().unwrap();
        });
    }

    // Writes 100 bytes to the serial port.
    guest_code!(
        print_100,
        "movz x9, #0x0900, lsl #16",
        "mov w10, #100",
        "mov w11, #'.'",
        "1: strb w11, [x9]",
        "subs w10, w10, #1",
        "b.ne 1b",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0"
    );

    #[test]
    fn steps_over_device_accesses_execute_each_once() {
        let guest = debug_held(print_100(), 1, |guest, client| {
            let mut expected = BASE;
            for step in 0..3 + 3 * 10 {
                assert_eq!(client.get(BOOT, Reg::Pc), expected, "step {step}");
                assert_eq!(client.step(BOOT), event(0, StopReason::Step));
                expected = if expected == BASE + 20 { BASE + 12 } else { expected + 4 };
            }
            assert_eq!(guest.output.text(), ".".repeat(10));
            client.0.detach().unwrap();
        });
        let Some(guest) = guest else { return };
        assert_eq!(guest.output.text(), ".".repeat(100));
    }

    guest_code!(spin, "1: add x0, x0, #1", "b 1b");

    #[test]
    fn interrupt_and_attach_again_and_again() {
        let Some(guest) = Guest::new(spin(), |config| config.debug = DebugMode::Run) else { return };
        debug(&guest, |guest| {
            thread::sleep(Duration::from_millis(100));
            let mut last = 0;
            for _ in 0..500 {
                let client = Client::attach(guest);
                client.0.resume(&[]).unwrap();
                client.0.interrupt();
                assert_eq!(client.stop(), event(0, StopReason::Interrupt));
                let count = client.get(BOOT, Reg::X(0));
                assert!(count >= last);
                last = count;
                client.0.detach().unwrap();
            }
            // The VM ends with a client attached and the vCPU stopped.
            let _client = Client::attach(guest);
            guest.vm.control().request(reference_vmm::control::Request::Quit);
        });
    }
}
