//! Steps on real KVM: each executes exactly the guest's own instruction, and leaves PSTATE as that would.
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
    use crate::support::client::{BOOT, Client, debug_held, event};
    use crate::support::{BASE, DATA, Guest, guest_code, skipped};
    use guest_debug::arm64::{Pstate, Reg, SysReg};
    use guest_debug::{Breakpoint, Gva, ResumeAction, StopReason, WatchKind};
    use reference_vmm::control::Request;

    const ESR_EL1: Reg = Reg::Sys(SysReg::ESR_EL1);
    /// Access to floating point and SIMD, which `STR Q0` needs.
    const CPACR_EL1: Reg = Reg::Sys(SysReg::new(3, 0, 1, 0, 2));
    const IF: u64 = Pstate::I | Pstate::F;

    /// Steps through `code` from its start with a client attached; the VM ends with the client.
    fn stepping(code: &[u8], client: impl FnOnce(&Guest, &Client)) {
        debug_held(code, 1, |guest, session| {
            client(guest, session);
            guest.vm.control().request(Request::Quit);
        });
    }

    fn step_to(client: &Client, offset: u64) {
        assert_eq!(client.step(BOOT), event(0, StopReason::Step));
        let pc = client.get(BOOT, Reg::Pc);
        assert_eq!(pc, BASE + offset, "at {:+#x} instead of {offset:+#x}", pc.wrapping_sub(BASE));
    }

    fn set(client: &Client, reg: Reg, value: u64) {
        client.0.write_register(BOOT, reg, &value.to_le_bytes()).unwrap();
    }

    fn mask(client: &Client) -> u64 {
        client.get(BOOT, Reg::Pstate) & IF
    }

    #[test]
    fn every_register_of_the_list_can_be_read() {
        stepping(many_nops(), |_, client| {
            let list = client.0.register_list(BOOT).unwrap();
            for reg in [Reg::X(30), Reg::Pc, Reg::V(31), Reg::Sys(SysReg::SCTLR_EL1), Reg::Sys(SysReg::TPIDR_EL0)] {
                assert!(list.contains(&reg), "{reg} is missing in {list:?}");
            }
            for reg in list {
                let value = client.0.read_register(BOOT, reg);
                assert_eq!(value.unwrap().len(), reg.size(), "{reg}");
            }
        });
    }

    #[test]
    fn sve_registers_are_written_and_read_back() {
        stepping(many_nops(), |_, client| {
            if !client.0.register_list(BOOT).unwrap().contains(&Reg::Z(3)) {
                skipped("the CPU has no SVE");
                return;
            }
            let read = |reg| client.0.read_register(BOOT, reg).unwrap();
            // What the vCPU's longest vector has; beyond that KVM keeps zeros.
            let lengths = read(Reg::SveVls);
            let longest = lengths.iter().rposition(|bits| *bits != 0).unwrap();
            let bytes = 16 * (8 * longest + 8 - lengths[longest].leading_zeros() as usize);
            let mut z: Vec<u8> = (1..=255).chain([0]).collect();
            z[bytes..].fill(0);
            client.0.write_register(BOOT, Reg::Z(3), &z).unwrap();
            assert_eq!(read(Reg::Z(3)), z);
            assert_eq!(read(Reg::V(3)), z[..16], "V is the low part of Z");
            client.0.write_register(BOOT, Reg::V(3), &[7; 16]).unwrap();
            z[..16].fill(7);
            assert_eq!(read(Reg::Z(3)), z, "and writing it leaves the rest of Z alone");
        });
    }

    guest_code!(many_nops, ".rept 10000", "nop", ".endr", "b .");

    #[test]
    fn ten_thousand_steps_and_as_many_in_a_range() {
        stepping(many_nops(), |_, client| {
            for step in 1..=10_000 {
                step_to(client, step * 4);
            }
            set(client, Reg::Pc, BASE);
            client.0.resume(&[(BOOT, ResumeAction::StepRange(BASE..BASE + 40_000))]).unwrap();
            assert_eq!(client.stop(), event(0, StopReason::Step));
            assert_eq!(client.get(BOOT, Reg::Pc), BASE + 40_000);
        });
    }

    // System registers that KVM emulates or traps in some configuration: no step may execute two instructions.
    guest_code!(
        trapped_registers,
        "mrs x0, midr_el1",
        "mrs x0, id_aa64pfr0_el1",
        "mrs x0, id_aa64dfr0_el1",
        "msr mdscr_el1, xzr",
        "mrs x0, mdscr_el1",
        "msr dbgbvr0_el1, xzr",
        "msr oslar_el1, xzr",
        "mrs x0, oslsr_el1",
        "mrs x0, icc_ctlr_el1",
        "mrs x0, cntvct_el0",
        "msr cntp_ctl_el0, xzr",
        "mrs x0, cntp_ctl_el0",
        "mrs x0, pmcr_el0",
        "msr icc_sgi1r_el1, xzr",
        "mov w0, #0x84000000",
        "hvc #0",
        "nop",
        "nop",
        "b .",
        ".balign 0x800",
        ".rept 512",
        "nop",
        ".endr"
    );

    #[test]
    fn an_emulated_instruction_is_one_step() {
        stepping(trapped_registers(), |_, client| {
            set(client, Reg::Sys(SysReg::VBAR_EL1), BASE + 0x800);
            let mut undefined = 0;
            for step in 1..=18 {
                assert_eq!(client.step(BOOT), event(0, StopReason::Step));
                let pc = client.get(BOOT, Reg::Pc);
                if pc == BASE + 0xa00 {
                    // A register that this vCPU does not have: KVM injects the exception.
                    assert_eq!(client.get(BOOT, Reg::ElrEl1), BASE + (step - 1) * 4);
                    set(client, Reg::Pc, BASE + step * 4);
                    undefined += 1;
                    continue;
                }
                assert_eq!(pc, BASE + step * 4, "step {step}");
            }
            assert!(undefined > 0, "no instruction was undefined; the PMU's were expected to be");
        });
    }

    // A timer interrupt that is pending all the time, with a vector table whose handlers count.
    guest_code!(
        with_interrupts,
        "adr x0, 9f",
        "msr vbar_el1, x0",
        "mov x0, #1",
        "msr icc_igrpen1_el1, x0",
        "mov x0, #0xff",
        "msr icc_pmr_el1, x0",
        // The redistributor: wake it, enable PPI 27 in group 1, and the distributor.
        "movz x1, #0x1100, lsl #16",
        "ldr w2, [x1, #0x14]",
        "and w2, w2, #~2",
        "str w2, [x1, #0x14]",
        "add x1, x1, #0x10000",
        "movz w2, #0x0800, lsl #16",
        "str w2, [x1, #0x80]",
        "str w2, [x1, #0x100]",
        "movz x1, #0x1000, lsl #16",
        "mov w2, #0x13",
        "str w2, [x1]",
        "msr cntv_cval_el0, xzr",
        "mov x0, #1",
        "msr cntv_ctl_el0, x0",
        "isb",
        "msr daifclr, #3",
        // From here on interrupts are open and one is pending.
        "0: add x10, x10, #1",
        "mrs x3, daif",
        "msr daifset, #2",
        "mrs x4, daif",
        "msr daifclr, #2",
        "mov x5, #0x40",
        "msr daif, x5",
        "msr daif, xzr",
        "wfi",
        "wfe",
        "svc #5",
        "udf #7",
        "brk #9",
        "1: ldaxr w6, [x9]",
        "add w6, w6, #1",
        "stlxr w7, w6, [x9]",
        "cbnz w7, 1b",
        "b 0b",
        ".balign 0x800",
        "9: .rept 4",
        "b .",
        ".balign 0x80",
        ".endr",
        // From EL1 with SP_EL1, synchronous: go on behind the instruction.
        "mrs x20, elr_el1",
        "mrs x21, esr_el1",
        "lsr x22, x21, #26",
        "cmp x22, #0x15",
        "b.eq 3f",
        "add x20, x20, #4",
        "msr elr_el1, x20",
        "3: eret",
        ".balign 0x80",
        // IRQ: count, and stay pending.
        "add x11, x11, #1",
        "mrs x23, spsr_el1",
        "orr x23, x23, #0x80",
        "msr spsr_el1, x23",
        "eret",
        ".balign 0x80",
        "b ."
    );

    const OPEN: u64 = 22 * 4;
    const VECTORS: u64 = 0x800;
    const SYNC: u64 = VECTORS + 0x200;

    fn to_open_interrupts(client: &Client) {
        set(client, Reg::X(9), DATA);
        client.insert(Breakpoint::Hardware(Gva(BASE + OPEN - 4)));
        assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + OPEN - 4))));
        client.0.remove(Breakpoint::Hardware(Gva(BASE + OPEN - 4))).unwrap();
    }

    #[test]
    fn no_step_enters_a_pending_interrupt() {
        stepping(with_interrupts(), |_, client| {
            to_open_interrupts(client);
            step_to(client, OPEN);
            assert_eq!(mask(client), 0, "MSR DAIFClr has opened them");
            step_to(client, OPEN + 4);
            assert_eq!((client.get(BOOT, Reg::X(10)), mask(client)), (1, 0));
            step_to(client, OPEN + 8);
            assert_eq!(client.get(BOOT, Reg::X(3)) & IF, 0, "MRS sees the guest's own mask");
            step_to(client, OPEN + 12);
            assert_eq!(mask(client), Pstate::I, "MSR DAIFSet");
            step_to(client, OPEN + 16);
            assert_eq!(client.get(BOOT, Reg::X(4)) & IF, Pstate::I);
            step_to(client, OPEN + 20);
            assert_eq!(mask(client), 0, "MSR DAIFClr");
            step_to(client, OPEN + 24);
            step_to(client, OPEN + 28);
            assert_eq!(mask(client), Pstate::F, "MSR DAIF");
            step_to(client, OPEN + 32);
            assert_eq!(mask(client), 0);
            step_to(client, OPEN + 36);
            step_to(client, OPEN + 40);
            assert_eq!(client.get(BOOT, Reg::X(11)), 0, "the interrupt handler has not run");
            // Left alone, the guest takes its interrupt at once.
            client.insert(Breakpoint::Hardware(Gva(BASE + VECTORS + 0x280)));
            assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + VECTORS + 0x280))));
            assert_eq!(client.get(BOOT, Reg::ElrEl1), BASE + OPEN + 40);
            assert_eq!(client.get(BOOT, Reg::SpsrEl1) & IF, 0);
        });
    }

    #[test]
    fn no_range_of_steps_enters_a_pending_interrupt() {
        stepping(with_interrupts(), |_, client| {
            to_open_interrupts(client);
            step_to(client, OPEN);
            // From the open interrupts over every way to read and write the mask, WFI and WFE, into SVC.
            client.0.resume(&[(BOOT, ResumeAction::StepRange(BASE + OPEN..BASE + OPEN + 88))]).unwrap();
            assert_eq!(client.stop(), event(0, StopReason::Step));
            assert_eq!(client.get(BOOT, Reg::Pc), BASE + SYNC);
            assert_eq!(client.get(BOOT, Reg::ElrEl1), BASE + OPEN + 44);
            assert_eq!(client.get(BOOT, Reg::SpsrEl1) & IF, 0);
            assert_eq!((client.get(BOOT, Reg::X(3)) & IF, client.get(BOOT, Reg::X(4)) & IF), (0, Pstate::I));
            assert_eq!((client.get(BOOT, Reg::X(10)), client.get(BOOT, Reg::X(11))), (1, 0));
        });
    }

    guest_code!(copy_loop, "1: ldr x4, [x1], #8", "str x4, [x2], #8", "subs x3, x3, #1", "b.ne 1b", "nop", "b .");

    #[test]
    fn a_range_of_steps_goes_round_a_loop() {
        stepping(copy_loop(), |guest, client| {
            let words: Vec<u8> = (1..=100u64).flat_map(u64::to_le_bytes).collect();
            client.0.write_memory(BOOT, Gva(DATA), &words).unwrap();
            for (reg, value) in [(1, DATA), (2, DATA + 0x1000), (3, 100)] {
                set(client, Reg::X(reg), value);
            }
            client.0.resume(&[(BOOT, ResumeAction::StepRange(BASE..BASE + 16))]).unwrap();
            assert_eq!(client.stop(), event(0, StopReason::Step));
            assert_eq!((client.get(BOOT, Reg::Pc), client.get(BOOT, Reg::X(3))), (BASE + 16, 0));
            assert_eq!(guest.read::<100>(DATA + 0x1000), std::array::from_fn(|i| i as u64 + 1));
        });
    }

    #[test]
    fn exceptions_save_the_guests_own_mask() {
        stepping(with_interrupts(), |_, client| {
            to_open_interrupts(client);
            step_to(client, OPEN);
            // svc, udf, brk: class, ISS, and the address that the handler returns to by itself.
            let cases = [(40, 0x15, 5, 4), (44, 0, 0, 0), (48, 0x3c, 9, 0)];
            for (offset, ec, iss, after) in cases {
                set(client, Reg::Pc, BASE + OPEN + offset);
                let before = client.get(BOOT, Reg::Pstate);
                assert_eq!(client.step(BOOT), event(0, StopReason::Step));
                assert_eq!(client.get(BOOT, Reg::Pc), BASE + SYNC, "class {ec:#x}");
                assert_eq!(client.get(BOOT, Reg::SpsrEl1) & !Pstate::SS, before & !Pstate::SS, "class {ec:#x}");
                assert_eq!(client.get(BOOT, Reg::Pstate) & Pstate::DAIF, Pstate::DAIF);
                assert_eq!(client.get(BOOT, Reg::ElrEl1), BASE + OPEN + offset + after);
                let esr = client.get(BOOT, ESR_EL1);
                assert_eq!((esr >> 26, esr & 0xff_ffff), (ec, iss));
                // Through the handler, over its ERET.
                let steps = if ec == 0x15 { 6 } else { 8 };
                for _ in 0..steps {
                    assert_eq!(client.step(BOOT), event(0, StopReason::Step));
                }
                assert_eq!(client.get(BOOT, Reg::Pc), BASE + OPEN + offset + 4);
                assert_eq!(mask(client), 0, "ERET has opened them again");
            }
            assert_eq!(client.get(BOOT, Reg::X(11)), 0);
        });
    }

    #[test]
    fn an_exclusive_sequence_gets_through() {
        stepping(with_interrupts(), |guest, client| {
            to_open_interrupts(client);
            step_to(client, OPEN);
            let mut tries = 0;
            for round in 1..=5 {
                loop {
                    set(client, Reg::Pc, BASE + OPEN + 52);
                    step_to(client, OPEN + 64);
                    if client.get(BOOT, Reg::X(7)) == 0 {
                        break;
                    }
                    // The host may map the page meanwhile, which loses the monitor as any exception does.
                    tries += 1;
                    assert!(tries < 5, "the store is never exclusive");
                }
                step_to(client, OPEN + 68);
                assert_eq!(guest.read::<1>(DATA), [round]);
            }
        });
    }

    #[test]
    fn stepping_over_one_breakpoint_keeps_the_others() {
        stepping(with_interrupts(), |_, client| {
            to_open_interrupts(client);
            set(client, Reg::Pstate, Pstate::EL1H | Pstate::DAIF);
            set(client, Reg::Pc, BASE + OPEN);
            client.insert(Breakpoint::Software(Gva(BASE + OPEN)));
            client.insert(Breakpoint::Hardware(Gva(BASE + OPEN + 4)));
            client.insert(Breakpoint::Software(Gva(BASE + OPEN + 8)));
            assert_eq!(client.resume(), event(0, StopReason::SoftwareBreakpoint(Gva(BASE + OPEN))));
            assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + OPEN + 4))));
            assert_eq!(client.resume(), event(0, StopReason::SoftwareBreakpoint(Gva(BASE + OPEN + 8))));
            assert_eq!(client.get(BOOT, Reg::X(10)), 1);
        });
    }

    // Accesses of every shape around DATA, in X1.
    guest_code!(
        accesses,
        "stp x2, x3, [x1]",
        "ldp x4, x5, [x1]",
        "dc zva, x1",
        "strb w2, [x1, #5]",
        "ldrh w4, [x1, #6]",
        "str q0, [x1]",
        "ldr w4, [x1, #0x100]",
        ".arch_extension lse",
        "ldadd x2, x4, [x1]",
        "b ."
    );

    #[test]
    fn far_is_matched_wherever_the_access_begins() {
        stepping(accesses(), |_, client| {
            // (instruction, watched kind, offset, length, hit)
            let cases = [
                (0, WatchKind::Write, 12, 1, true),
                (0, WatchKind::Read, 12, 1, false),
                (1, WatchKind::Read, 8, 8, true),
                (1, WatchKind::Write, 0, 16, false),
                (2, WatchKind::Write, 40, 2, true),
                (3, WatchKind::Access, 0, 8, true),
                (3, WatchKind::Access, 6, 2, false),
                (4, WatchKind::Read, 7, 1, true),
                (5, WatchKind::Write, 13, 3, true),
                (6, WatchKind::Read, 0x102, 3, true),
                (6, WatchKind::Access, 0x0, 64, false),
                (7, WatchKind::Write, 3, 1, true),
            ];
            for (index, kind, offset, length, hit) in cases {
                if index == 7 && client.get(BOOT, Reg::Sys(SysReg::new(3, 0, 0, 6, 0))) >> 20 & 0xf == 0 {
                    skipped("the CPU has no atomics (FEAT_LSE), so LDADD was not watched");
                    continue;
                }
                set(client, CPACR_EL1, 3 << 20);
                set(client, Reg::X(1), DATA);
                set(client, Reg::Pc, BASE + index * 4);
                let watch = Breakpoint::Watch { kind, address: Gva(DATA + offset), length };
                client.insert(watch);
                let stop = client.step(BOOT);
                let pc = client.get(BOOT, Reg::Pc) - BASE;
                if hit {
                    let StopReason::Watchpoint { kind: told, address } = stop.reason else {
                        panic!("case {index}: {kind:?} {offset} {length}: {stop:?}");
                    };
                    assert_eq!((told, pc), (kind, index * 4), "before the access");
                    assert!((DATA + offset..DATA + offset + length).contains(&address.0), "case {index}: {address}");
                } else {
                    assert_eq!((stop.reason, pc), (StopReason::Step, index * 4 + 4), "case {index} {kind:?}");
                }
                client.0.remove(watch).unwrap();
            }
        });
    }

    #[test]
    fn a_store_that_hits_two_watches_is_told_of_both() {
        stepping(accesses(), |guest, client| {
            for (reg, value) in [(1, DATA), (2, 0x22), (3, 0x33)] {
                set(client, Reg::X(reg), value);
            }
            client.insert(Breakpoint::Hardware(Gva(BASE + 4)));
            for offset in [0, 8] {
                client.insert(Breakpoint::Watch { kind: WatchKind::Write, address: Gva(DATA + offset), length: 8 });
            }
            let mut told = Vec::new();
            for _ in 0..2 {
                let StopReason::Watchpoint { address, .. } = client.resume().reason else { panic!("no watch") };
                // Its own half has not been stored. The other one may be: a CPU may make one store of two.
                assert_eq!(guest.read::<1>(address.0), [0]);
                told.push(address.0);
            }
            told.sort();
            assert_eq!(told, [DATA, DATA + 8]);
            assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(Gva(BASE + 4))));
            assert_eq!(guest.read::<2>(DATA), [0x22, 0x33]);
        });
    }

    #[test]
    fn every_slot_hits() {
        stepping(many_nops(), |_, client| {
            let slots = client.0.caps().hw_bps as u64;
            assert!(slots >= 2, "{slots} slots");
            for slot in 0..slots {
                client.insert(Breakpoint::Hardware(Gva(BASE + 0x100 + slot * 0x40)));
            }
            for slot in 0..slots {
                let at = Gva(BASE + 0x100 + slot * 0x40);
                assert_eq!(client.resume(), event(0, StopReason::HardwareBreakpoint(at)));
            }
        });
        stepping(accesses(), |_, client| {
            let slots = client.0.caps().hw_wps as u64;
            assert!(slots >= 2, "{slots} slots");
            for slot in 0..slots {
                let address = Gva(DATA + slot * 0x200);
                client.insert(Breakpoint::Watch { kind: WatchKind::Access, address, length: 8 });
            }
            for slot in 0..slots {
                set(client, Reg::X(1), DATA + slot * 0x200);
                set(client, Reg::Pc, BASE);
                let hit = StopReason::Watchpoint { kind: WatchKind::Access, address: Gva(DATA + slot * 0x200) };
                assert_eq!(client.resume(), event(0, hit));
            }
        });
    }
}
