//! Conditions of breakpoints on real KVM: what is passed leaves the guest as if nobody had looked.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

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
    use crate::support::client::{BOOT, Client, debug_held};
    use crate::support::{BASE, guest_code};
    use guest_debug::agent::{Comparison, Operand, compare};
    use guest_debug::arm64::Reg;
    use guest_debug::{Breakpoint, Gva, HitRule, StopReason};

    // Everything that is carried out from outside, beside what is not. Each register is used afterwards.
    guest_code!(
        all_kinds,
        "mov x20, sp",
        "movz x1, #0x8010, lsl #16",
        "mov sp, x1",
        "movz x0, #0x1234, lsl #32",
        "movk x0, #0xbeef, lsl #16",
        "movn w2, #0x10",
        "adr x3, .+0x40",
        "adrp x4, .",
        "add x5, x0, #0x123",
        "add w6, w0, #1, lsl #12",
        "sub sp, sp, #0x40",
        "mov x29, sp",
        "stp x0, x2, [sp, #16]",
        "ldr x7, [sp, #24]",
        "mov x8, x7",
        "mov w9, w0",
        "subs x10, x0, x0",
        "b.ne 9f",
        "b.eq 1f",
        "movz x11, #0xdead",
        "1: cbz x10, 2f",
        "movz x11, #0xdead",
        "2: cbnz x0, 3f",
        "movz x11, #0xdead",
        "3: tbz x10, #63, 4f",
        "movz x11, #0xdead",
        "4: tbnz x0, #44, 5f",
        "movz x12, #1",
        "5: bl 6f",
        "b 7f",
        "6: mov x13, x30",
        "bti c",
        "nop",
        "cmp x0, #1",
        "b.hi 8f",
        "movz x14, #0xdead",
        "8: ret",
        "7: add sp, sp, #0x40",
        "mov x21, sp",
        "mrs x15, nzcv",
        "9: b 9b"
    );

    /// X0 to X30, SP and PSTATE when the guest is at the end of the code.
    fn at_the_end(kinds: &[fn(Gva) -> Breakpoint]) -> Option<Vec<u64>> {
        let code = all_kinds();
        let count = code.len() as u64 / 4;
        let end = Breakpoint::Hardware(Gva(BASE + 4 * (count - 1)));
        let mut registers = Vec::new();
        debug_held(code, 1, |guest, client| {
            client.insert(end);
            let never = || compare(Operand::Register(0), Comparison::Equal, 0x7777).unwrap();
            for (at, kind) in (0..count - 1).zip(kinds.iter().cycle()) {
                let breakpoint = kind(Gva(BASE + 4 * at));
                client.insert(breakpoint);
                let rule = HitRule { conditions: vec![never()], commands: Vec::new() };
                client.0.set_rule(breakpoint, rule).unwrap();
            }
            let Breakpoint::Hardware(last) = end else { return };
            assert_eq!(client.resume().reason, StopReason::HardwareBreakpoint(last));
            registers = read(client);
            let reached: u64 = client.0.rules().iter().map(|info| info.counts.reached).sum();
            let executed = if kinds.is_empty() { 0 } else { count - 1 - SKIPPED };
            assert_eq!(reached, executed, "each instruction once");
            assert!(client.0.rules().iter().all(|info| info.counts.hits == 0));
            client.0.detach().unwrap();
            guest.vm.control().request(reference_vmm::control::Request::Quit);
        })?;
        Some(registers)
    }

    /// Instructions that the code jumps over.
    const SKIPPED: u64 = 6;

    fn read(client: &Client) -> Vec<u64> {
        let registers = (0..31).map(Reg::X).chain([Reg::SpEl1, Reg::Pstate]);
        registers.map(|reg| client.get(BOOT, reg)).collect()
    }

    #[test]
    fn a_guest_that_is_passed_at_every_instruction_computes_the_same() {
        let Some(alone) = at_the_end(&[]) else { return };
        assert_eq!(alone.get(11), Some(&0), "the code is as it is thought to be");
        assert_eq!(at_the_end(&[Breakpoint::Software]).unwrap(), alone);
    }

    guest_code!(loops, "mov x1, #0", "movz x2, #0x8010, lsl #16", "1: add x1, x1, #1", "str x1, [x2]", "b 1b");

    #[test]
    fn a_condition_becomes_true_at_its_hit_on_every_kind_of_instruction() {
        let (add, store, branch) = (Gva(BASE + 8), Gva(BASE + 12), Gva(BASE + 16));
        let watch = |address| Breakpoint::Watch { kind: guest_debug::WatchKind::Write, address, length: 8 };
        let cases = [
            Breakpoint::Hardware(add),
            Breakpoint::Software(add),
            Breakpoint::Hardware(store),
            Breakpoint::Software(store),
            Breakpoint::Hardware(branch),
            Breakpoint::Software(branch),
            watch(Gva(crate::support::DATA)),
        ];
        for breakpoint in cases {
            debug_held(loops(), 1, |guest, client| {
                client.insert(breakpoint);
                let conditions = vec![compare(Operand::Register(1), Comparison::Equal, 300).unwrap()];
                client.0.set_rule(breakpoint, HitRule { conditions, commands: Vec::new() }).unwrap();
                client.0.set_ignore_count(breakpoint, 0).unwrap();
                client.resume();
                assert_eq!(client.get(BOOT, Reg::X(1)), 300, "{breakpoint}");
                let counts = client.0.rules().first().unwrap().counts;
                // The addition is met before it counts.
                let met = if breakpoint == Breakpoint::Hardware(add) || breakpoint == Breakpoint::Software(add) {
                    301
                } else {
                    300
                };
                assert_eq!((counts.reached, counts.hits), (met, 1), "{breakpoint}");
                client.0.detach().unwrap();
                guest.vm.control().request(reference_vmm::control::Request::Quit);
            });
        }
    }
}
