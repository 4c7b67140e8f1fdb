//! Ranges of steps on real KVM: the vCPU runs through plain code at once, and stops wherever steps would have.
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
    use guest_debug::arm64::{Pstate, Reg};
    use guest_debug::{Breakpoint, Gva, ResumeAction, StopReason, WatchKind};
    use reference_vmm::config::DebugMode;
    use reference_vmm::control::Request;
    use reference_vmm::layout::SERIAL;

    // X1 counts. X3 is a device, X4 memory, and X5 says whether a branch is taken.
    guest_code!(
        code,
        "adr x0, 9f",
        "msr vbar_el1, x0",
        "add x1, x1, #1",
        "ldr w2, [x3, #0x18]",
        "add x1, x1, #1",
        "0: str x1, [x4]",
        "1: add x1, x1, #1",
        "cbz x5, 2f",
        "add x1, x1, #0x100",
        "2: add x1, x1, #1",
        "bl 4f",
        "add x1, x1, #1",
        "3: udf #7",
        "b .",
        "4: add x1, x1, #0x1000",
        "ret",
        ".balign 0x800",
        "9: .rept 512",
        "nop",
        ".endr"
    );

    const START: u64 = BASE + 8;
    const STORE: u64 = BASE + 20;
    const BEHIND_STORE: u64 = BASE + 24;
    const MEETING: u64 = BASE + 36;
    const UNDEFINED: u64 = BASE + 48;
    const FUNCTION: u64 = BASE + 56;
    const END: u64 = BASE + 64;
    const HANDLER: u64 = BASE + 0x800 + 0x200;

    /// A vCPU at the start of the range, with nothing masked.
    fn at_the_start(body: impl FnOnce(&Guest, &Client)) {
        debug_held(code(), 1, |guest, client| {
            for _ in 0..2 {
                assert_eq!(client.step(BOOT), event(0, StopReason::Step));
            }
            for (reg, value) in
                [(Reg::X(1), 0), (Reg::X(3), SERIAL.base), (Reg::X(4), DATA), (Reg::Pstate, Pstate::EL1H)]
            {
                set(client, reg, value);
            }
            body(guest, client);
            guest.vm.control().request(Request::Quit);
        });
    }

    fn set(client: &Client, reg: Reg, value: u64) {
        client.0.write_register(BOOT, reg, &value.to_le_bytes()).unwrap();
    }

    /// Steps through the range up to `end`, from wherever the vCPU is: why it stops, where, and what it has counted.
    fn range(client: &Client, end: u64) -> (StopReason, u64, u64) {
        client.0.resume(&[(BOOT, ResumeAction::StepRange(START..end))]).unwrap();
        let stop = client.stop();
        (stop.reason, client.get(BOOT, Reg::Pc), client.get(BOOT, Reg::X(1)))
    }

    fn mask(client: &Client, reg: Reg) -> u64 {
        client.get(BOOT, reg) & (Pstate::I | Pstate::F | Pstate::A)
    }

    #[test]
    fn it_goes_over_devices_branches_and_calls_to_an_exception() {
        for (taken, count) in [(0, 0x1005), (1, 0x1105)] {
            at_the_start(|guest, client| {
                set(client, Reg::X(5), taken);
                assert_eq!(range(client, END), (StopReason::Step, HANDLER, count));
                assert_eq!(client.get(BOOT, Reg::ElrEl1), UNDEFINED);
                assert_eq!(mask(client, Reg::SpsrEl1), 0, "what the handler returns to");
                assert_eq!(guest.read::<1>(DATA), [2]);
            });
        }
    }

    #[test]
    fn it_ends_at_the_first_instruction_outside() {
        at_the_start(|_, client| {
            assert_eq!(range(client, STORE), (StopReason::Step, STORE, 2));
            assert_eq!(range(client, FUNCTION), (StopReason::Step, FUNCTION, 4), "a call leads out of it");
            assert_eq!(mask(client, Reg::Pstate), 0);
        });
    }

    #[test]
    fn a_watch_hits_before_the_access() {
        at_the_start(|guest, client| {
            client.insert(Breakpoint::Watch { kind: WatchKind::Write, address: Gva(DATA), length: 8 });
            let hit = StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA) };
            assert_eq!(range(client, END), (hit, STORE, 2));
            assert_eq!((guest.read::<1>(DATA), mask(client, Reg::Pstate)), ([0], 0));
            assert_eq!(range(client, FUNCTION), (StopReason::Step, FUNCTION, 4));
            assert_eq!(guest.read::<1>(DATA), [2]);
        });
    }

    #[test]
    fn breakpoints_inside_hit() {
        at_the_start(|_, client| {
            client.insert(Breakpoint::Software(Gva(BEHIND_STORE)));
            client.insert(Breakpoint::Hardware(Gva(MEETING)));
            let (software, hardware) = (StopReason::SoftwareBreakpoint, StopReason::HardwareBreakpoint);
            assert_eq!(range(client, END), (software(Gva(BEHIND_STORE)), BEHIND_STORE, 2));
            assert_eq!(mask(client, Reg::Pstate), 0);
            assert_eq!(range(client, END), (hardware(Gva(MEETING)), MEETING, 3));
            assert_eq!(mask(client, Reg::Pstate), 0);
            assert_eq!(range(client, END), (StopReason::Step, HANDLER, 0x1005));
        });
    }

    // A loop whose branch leads into the stretch that it ends, an exclusive sequence, ISB, and a line over the end of a page.
    guest_code!(
        ways,
        "mov x3, #3",
        "1: add x1, x1, #1",
        "subs x3, x3, #1",
        "b.ne 1b",
        "2: ldaxr x6, [x4]",
        "add x6, x6, #1",
        "stlxr w7, x6, [x4]",
        "cbnz w7, 2b",
        "isb",
        ".rept 1000",
        "add x1, x1, #1",
        ".endr",
        "b ."
    );

    #[test]
    fn it_takes_every_way_with_any_number_of_slots() {
        const LENGTH: u64 = 4 * 1009;
        for slots in [2, 3, 4, 16] {
            let guest = Guest::new(ways(), |config| {
                config.debug = DebugMode::Hold;
                config.limits.breakpoints = Some(slots);
            });
            let Some(guest) = guest else { return };
            debug(&guest, |guest| {
                let client = Client::attach(guest);
                set(&client, Reg::X(4), DATA);
                client.0.resume(&[(BOOT, ResumeAction::StepRange(BASE..BASE + LENGTH))]).unwrap();
                assert_eq!(client.stop(), event(0, StopReason::Step));
                let [pc, counted, left] = [Reg::Pc, Reg::X(1), Reg::X(3)].map(|reg| client.get(BOOT, reg));
                assert_eq!((pc, counted, left), (BASE + LENGTH, 1003, 0), "{slots} slots");
                assert_eq!(guest.read::<1>(DATA), [1], "{slots} slots");
                guest.vm.control().request(Request::Quit);
            });
        }
    }
}
