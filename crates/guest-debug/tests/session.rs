//! The session's behaviour through its public interface, on fake vCPUs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use fake::*;
use guest_debug::arm64::{Pstate, Reg};
use guest_debug::{Breakpoint, Gva, ResumeAction, SessionError, StopReason, VcpuId, VcpuState, WatchKind};
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use vm_memory::GuestAddress;

fn step(vm: &Vm, vcpu: VcpuId) {
    let others = (0..vm.vcpus.len() as u32).map(VcpuId).filter(|id| *id != vcpu);
    let mut actions: Vec<_> = others.map(|id| (id, ResumeAction::Stay)).collect();
    actions.push((vcpu, ResumeAction::Step));
    vm.session.resume(&actions).unwrap();
    let stop = vm.stop();
    assert_eq!((stop.vcpu, stop.reason), (vcpu, StopReason::Step));
}

#[test]
fn a_hardware_breakpoint_stops_before_its_instruction() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, hardware(RAM + 8)).unwrap();
    for round in 1..=5 {
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 8)));
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (RAM + 8, round));
    }
}

#[test]
fn a_software_breakpoint_is_seen_by_nobody_but_the_guest() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    assert_ne!(vm.word(RAM + 8), NOP, "planted");
    assert_eq!(vm.session.read_memory(V0, Gva(RAM + 8), 4).unwrap(), NOP.to_le_bytes());
    assert_eq!(vm.session.read_memory(V0, Gva(RAM + 10), 1).unwrap(), NOP.to_le_bytes()[2..3]);
    for round in 1..=5 {
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 8)));
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (RAM + 8, round));
    }
    vm.session.remove(software(RAM + 8)).unwrap();
    assert_eq!(vm.word(RAM + 8), NOP);
}

#[test]
fn a_write_over_a_planted_breakpoint_becomes_its_original() {
    let vm = Vm::new(1, &[NOP, NOP, NOP, branch(0)]).start();
    vm.session.insert(V0, software(RAM + 4)).unwrap();
    let planted = vm.word(RAM + 4);
    // Two bytes before it, and its first two.
    vm.session.write_memory(V0, Gva(RAM + 2), &[0xaa, 0xbb, 0xcc, 0xdd]).unwrap();
    assert_eq!(vm.word(RAM + 4), planted, "still planted");
    assert_eq!(vm.word(RAM) >> 16, 0xbbaa);
    let seen = vm.session.read_memory(V0, Gva(RAM + 4), 4).unwrap();
    assert_eq!(seen, [0xcc, 0xdd, NOP.to_le_bytes()[2], NOP.to_le_bytes()[3]]);
    vm.session.remove(software(RAM + 4)).unwrap();
    assert_eq!(vm.word(RAM + 4).to_le_bytes()[..], seen);
}

#[test]
fn removal_leaves_alone_what_the_guest_has_written_meanwhile() {
    let vm = Vm::new(1, &[NOP, branch(0)]).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    vm.load(RAM, &[COUNT]);
    assert_eq!(vm.session.read_memory(V0, Gva(RAM), 4).unwrap(), COUNT.to_le_bytes());
    assert_eq!(vm.session.remove(software(RAM)).unwrap(), guest_debug::Removed::Overwritten);
    assert_eq!(vm.word(RAM), COUNT);
}

#[test]
fn no_slot_left_is_answered_at_insertion() {
    let vm = Vm::new(1, &[branch(0)]).start();
    for slot in 0..6 {
        vm.session.insert(V0, hardware(RAM + slot * 4)).unwrap();
    }
    vm.session.insert(V0, hardware(RAM)).expect("a duplicate takes no slot");
    let error = vm.session.insert(V0, hardware(RAM + 0x100)).unwrap_err();
    assert!(matches!(error, SessionError::NoBreakpointSlot { available: 6 }), "{error}");
    vm.session.insert(V0, write_watch(RAM + 0x1000, 4096)).unwrap();
    let error = vm.session.insert(V0, write_watch(RAM + 0x2001, 62)).unwrap_err();
    assert!(matches!(error, SessionError::NoWatchpointSlot { needed: 6, free: 3, available: 4 }), "{error}");
    assert_eq!(vm.session.breakpoints().len(), 7);
}

#[test]
fn bad_addresses_are_refused() {
    let vm = Vm::new(1, &[branch(0)]).start();
    assert!(matches!(vm.session.insert(V0, hardware(RAM + 2)), Err(SessionError::Address(_))));
    assert!(matches!(vm.session.insert(V0, software(RAM + 2)), Err(SessionError::Address(_))));
    assert!(matches!(vm.session.insert(V0, hardware(1 << 60)), Err(SessionError::Address(_))));
    assert!(matches!(vm.session.insert(V0, software(0x1000)), Err(SessionError::Ram(_))));
    assert!(matches!(vm.session.insert(V0, write_watch(RAM, 0)), Err(SessionError::Watch(_))));
    assert!(matches!(vm.session.insert(VcpuId(7), software(RAM)), Err(SessionError::NoSuchVcpu { .. })));
    assert!(matches!(vm.session.remove(hardware(RAM)), Err(SessionError::NoSuchBreakpoint(Gva(RAM)))));
    assert!(vm.session.breakpoints().is_empty());
}

#[test]
fn a_step_does_not_enter_a_pending_interrupt() {
    let vm = Vm::new(1, &[COUNT, COUNT, COUNT, COUNT, branch(0)]).start();
    vm.vcpus[0].irq_pending.store(true, Ordering::Relaxed);
    for index in 1..=4 {
        step(&vm, V0);
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (RAM + index * 4, index));
        assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H, "the mask is gone again");
    }
}

#[test]
fn a_step_leaves_the_mask_as_the_instruction_would() {
    let vm = Vm::new(1, &[DAIFSET_I, MRS_X3_DAIF, DAIFCLR_I, MRS_X3_DAIF, NOP, MSR_DAIF_X3, branch(0)]).start();
    step(&vm, V0);
    assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H | Pstate::I);
    step(&vm, V0);
    assert_eq!(vm.get(0, Reg::X(3)), Pstate::I, "F was masked by the step alone");
    step(&vm, V0);
    assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H);
    step(&vm, V0);
    assert_eq!(vm.get(0, Reg::X(3)), 0);
    step(&vm, V0);
    vm.set(0, Reg::X(3), Pstate::F | Pstate::A);
    step(&vm, V0);
    assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H | Pstate::F | Pstate::A);
}

#[test]
fn a_step_over_svc_saves_the_guests_own_mask() {
    let vm = Vm::new(1, &[SVC, COUNT, branch(0)]).start();
    step(&vm, V0);
    assert_eq!(vm.pc(0), VBAR + 0x200);
    assert_eq!(vm.get(0, Reg::SpsrEl1), Pstate::EL1H, "SPSR without the step's mask");
    assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H | Pstate::DAIF);
    step(&vm, V0);
    step(&vm, V0);
    assert_eq!((vm.pc(0), vm.get(0, Reg::Pstate)), (RAM + 4, Pstate::EL1H), "ERET brought its own");
}

#[test]
fn a_step_over_wfi_does_not_wait() {
    let vm = Vm::new(1, &[WFI, COUNT, branch(0)]).start();
    step(&vm, V0);
    assert_eq!(vm.pc(0), RAM + 4);
    assert_eq!(vm.vcpus[0].entries.load(Ordering::Relaxed), 0);
}

#[test]
fn a_foreign_brk_goes_to_the_guest() {
    let vm = Vm::new(1, &[BRK_7, COUNT, branch(0)]).start();
    vm.session.insert(V0, hardware(VBAR + 0x200)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(VBAR + 0x200)));
    assert_eq!(vm.get(0, Reg::ElrEl1), RAM);
    assert_eq!(vm.get(0, Reg::SpsrEl1), Pstate::EL1H);
    assert_eq!(vm.get(0, Reg::Sys(guest_debug::arm64::SysReg::ESR_EL1)), 0x3c << 26 | 1 << 25 | 7);
}

#[test]
fn a_watch_stops_before_the_access_and_is_stepped_over_once() {
    let vm = Vm::new(1, &[COUNT, STR_X1_X0, COUNT, branch(-8)]).start();
    vm.set(0, Reg::X(0), RAM + 0x4000);
    vm.session.insert(V0, write_watch(RAM + 0x4004, 2)).unwrap();
    vm.session.resume(&[]).unwrap();
    let expected = StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(RAM + 0x4004) };
    assert_eq!(vm.stop().reason, expected, "the access began below the watch");
    assert_eq!(vm.word(RAM + 0x4000), 0);
    // gdb removes the watch to step over the access, and inserts it again.
    vm.session.remove(write_watch(RAM + 0x4004, 2)).unwrap();
    step(&vm, V0);
    assert_eq!(vm.word(RAM + 0x4000), 1);
    vm.session.insert(V0, write_watch(RAM + 0x4004, 2)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, expected);
}

#[test]
fn going_on_from_a_watch_keeps_the_others_armed() {
    let vm = Vm::new(1, &[COUNT, STR_X1_X0, branch(-8)]).start();
    vm.set(0, Reg::X(0), RAM + 0x4000);
    for watch in [write_watch(RAM + 0x4000, 2), write_watch(RAM + 0x4006, 2)] {
        vm.session.insert(V0, watch).unwrap();
    }
    for round in 1..=3 {
        let mut told = Vec::new();
        for _ in 0..2 {
            vm.session.resume(&[]).unwrap();
            let StopReason::Watchpoint { address, .. } = vm.stop().reason else { panic!("no watch") };
            told.push(address.0);
            assert_eq!(vm.get(0, Reg::X(1)), round, "both are told of one store, before it happens");
        }
        told.sort();
        assert_eq!(told, [RAM + 0x4000, RAM + 0x4006]);
    }
}

#[test]
fn a_range_step_ends_outside_the_range() {
    let vm = Vm::new(1, &[COUNT, COUNT, COUNT, COUNT, branch(0)]).start();
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 12))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!(vm.pc(0), RAM + 12);
    vm.set(0, Reg::Pc, RAM);
    vm.session.insert(V0, hardware(RAM + 8)).unwrap();
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 12))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 8)), "a breakpoint inside counts");
}

#[test]
fn a_range_of_steps_goes_a_stretch_at_a_time() {
    let vm = Vm::new(1, &[COUNT; 1000]).start();
    let before = vm.vcpus[0].register_reads.load(Ordering::Relaxed);
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 4000))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (RAM + 4000, 1000));
    let entries = vm.vcpus[0].entries.load(Ordering::Relaxed);
    assert!(entries < 20, "{entries} entries for 1000 steps");
    let reads = vm.vcpus[0].register_reads.load(Ordering::Relaxed) - before;
    assert!(reads < 60, "{reads} reads for 1000 steps");
    let calls = vm.vcpus[0].config_calls.load(Ordering::Relaxed);
    assert!(calls < 20, "{calls} settings for 1000 steps");
}

#[test]
fn a_range_step_leaves_the_mask_as_its_instructions_would() {
    let vm = Vm::new(1, &[COUNT, MRS_X3_DAIF, COUNT, DAIFSET_I, COUNT, COUNT, SVC, COUNT]).start();
    vm.vcpus[0].irq_pending.store(true, Ordering::Relaxed);
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 8))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.pc(0), vm.get(0, Reg::X(3)), vm.get(0, Reg::Pstate)), (RAM + 8, 0, Pstate::EL1H));
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 20))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.pc(0), vm.get(0, Reg::Pstate)), (RAM + 20, Pstate::EL1H | Pstate::I));
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 40))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.pc(0), vm.get(0, Reg::SpsrEl1)), (VBAR + 0x200, Pstate::EL1H | Pstate::I));
}

#[test]
fn an_interrupt_stops_a_running_guest() {
    let vm = Vm::new(2, &[branch(0)]).start();
    vm.session.resume(&[]).unwrap();
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Interrupt);
    assert_eq!(vm.session.vcpu_states(), [VcpuState::Stopped; 2]);
    assert!(vm.session.take_stop().unwrap().is_none());
}

#[test]
fn an_interrupted_step_leaves_no_mask_behind() {
    // A range step that never ends by itself.
    let vm = Vm::new(1, &[COUNT, branch(-4)]).start();
    for _ in 0..50 {
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 8))]).unwrap();
        std::thread::yield_now();
        vm.session.interrupt();
        assert_eq!(vm.stop().reason, StopReason::Interrupt);
        assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H);
    }
}

/// Both vCPUs count in a loop and hit the same place; each hit is told once, none is lost.
fn simultaneous_hits(breakpoint: Breakpoint, reason: StopReason) {
    let vm = Vm::new(2, &[COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, breakpoint).unwrap();
    let mut told = [0; 2];
    for _ in 0..1000 {
        vm.session.resume(&[]).unwrap();
        let stop = vm.stop();
        assert_eq!(stop.reason, reason);
        told[stop.vcpu.0 as usize] += 1;
        assert_eq!(vm.get(stop.vcpu.0, Reg::X(1)), told[stop.vcpu.0 as usize], "hit and told in step");
    }
    assert!(told.iter().all(|count| *count > 0), "{told:?}");
}

#[test]
fn simultaneous_hardware_hits_are_told_once_each() {
    simultaneous_hits(hardware(RAM + 4), StopReason::HardwareBreakpoint(Gva(RAM + 4)));
}

#[test]
fn simultaneous_software_hits_are_told_once_each() {
    simultaneous_hits(software(RAM + 4), StopReason::SoftwareBreakpoint(Gva(RAM + 4)));
}

#[test]
fn a_pending_stop_waits_for_its_vcpu() {
    // As gdb does it: after one vCPU's hit, breakpoints out, that vCPU steps alone, breakpoints in, all continue.
    let vm = Vm::new(2, &[COUNT, NOP, branch(-8)]).start();
    let mut told = [0; 2];
    for _ in 0..200 {
        vm.session.insert(V0, software(RAM + 4)).unwrap();
        vm.session.resume(&[]).unwrap();
        let stop = vm.stop();
        told[stop.vcpu.0 as usize] += 1;
        assert_eq!(vm.get(stop.vcpu.0, Reg::X(1)), told[stop.vcpu.0 as usize]);
        vm.session.remove(software(RAM + 4)).unwrap();
        step(&vm, stop.vcpu);
    }
    assert!(told.iter().all(|count| *count > 0), "{told:?}");
}

#[test]
fn nothing_changed_means_no_ioctl() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.resume(&[]).unwrap();
    while vm.vcpus[0].entries.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    vm.session.interrupt();
    vm.stop();
    let calls = vm.vcpus[0].config_calls.load(Ordering::Relaxed);
    for _ in 0..10 {
        vm.session.resume(&[]).unwrap();
        vm.session.interrupt();
        vm.stop();
    }
    assert_eq!(vm.vcpus[0].config_calls.load(Ordering::Relaxed), calls);
}

#[test]
fn detaching_leaves_no_trace() {
    let vm = Vm::new(2, &[NOP, COUNT, NOP, branch(-8)]).start();
    let before = vm.session.read_physical(GuestAddress(RAM), 4096).unwrap();
    for _ in 0..20 {
        vm.session.insert(V1, software(RAM + 8)).unwrap();
        vm.session.insert(V1, hardware(RAM + 4)).unwrap();
        vm.session.insert(V1, write_watch(RAM + 0x100, 8)).unwrap();
        vm.session.resume(&[]).unwrap();
        vm.stop();
        let entered = vm.vcpus[0].entries.load(Ordering::Relaxed);
        vm.session.detach().unwrap();
        while vm.vcpus[0].entries.load(Ordering::Relaxed) == entered {
            std::thread::yield_now();
        }
        assert!(!vm.vcpus[0].config().enabled);
        let mut now = vec![0; 4096];
        vm_memory::Bytes::read_slice(&*vm.ram, &mut now, GuestAddress(RAM)).unwrap();
        assert_eq!(now, before);
        vm.session.attach().unwrap();
        assert!(vm.session.breakpoints().is_empty());
    }
}

#[test]
fn breakpoints_survive_a_reboot_where_the_code_is_the_same() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.insert(V0, software(RAM + 0x100)).unwrap();
    vm.session.before_reset().unwrap();
    assert_eq!(vm.word(RAM + 8), NOP);
    vm.load(RAM + 0x100, &[COUNT]);
    vm.session.after_reset().unwrap();
    assert_ne!(vm.word(RAM + 8), NOP, "planted again");
    assert_eq!(vm.word(RAM + 0x100), COUNT, "another program's now");
    let armed: Vec<_> = vm.session.breakpoints().iter().map(|info| info.armed).collect();
    assert_eq!(armed, [true, false]);
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 8)));
}

#[test]
fn memory_that_is_not_there() {
    let vm = Vm::new(1, &[branch(0)]).start();
    let end = RAM + (1 << 20);
    assert_eq!(vm.session.read_memory(V0, Gva(end - 3), 16).unwrap().len(), 3, "what can be read");
    assert!(vm.session.read_memory(V0, Gva(end), 1).is_err());
    assert!(vm.session.write_memory(V0, Gva(end - 3), &[1; 16]).is_err());
    assert_eq!(vm.session.read_memory(V0, Gva(end - 3), 3).unwrap(), [0; 3], "all or nothing");
}

#[test]
fn a_running_vcpu_is_not_touched() {
    let vm = Vm::new(1, &[branch(0)]).start();
    vm.session.resume(&[]).unwrap();
    assert!(matches!(vm.session.insert(V0, hardware(RAM)), Err(SessionError::NotStopped(V0))));
    assert!(matches!(vm.session.read_register(V0, Reg::Pc), Err(SessionError::NotStopped(V0))));
    assert!(matches!(vm.session.read_memory(V0, Gva(RAM), 4), Err(SessionError::NotStopped(V0))));
}

#[test]
fn ten_thousand_software_breakpoints() {
    const COUNT_OF: u64 = 10_000;
    let vm = Vm::new(1, &[branch(0x10_000)]).start();
    let area = RAM + 0x10_000;
    let code: Vec<u32> = vec![NOP; COUNT_OF as usize];
    vm.load(area, &code);
    vm.load(area + COUNT_OF * 4, &[branch(0)]);
    let addresses = || (0..COUNT_OF).map(|index| area + index * 4);
    for address in addresses() {
        vm.session.insert(V0, software(address)).unwrap();
    }
    assert_eq!(vm.session.breakpoints().len(), COUNT_OF as usize);
    let seen = vm.session.read_memory(V0, Gva(area), code.len() * 4).unwrap();
    assert!(seen.chunks(4).all(|word| word == NOP.to_le_bytes()), "none of them is visible");
    for address in addresses().take(100) {
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(address)));
    }
    for address in addresses().rev() {
        vm.session.remove(software(address)).unwrap();
    }
    assert!(vm.session.breakpoints().is_empty());
    assert!(addresses().all(|address| vm.word(address) == NOP));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is planted, written and removed: the client reads what a guest without breakpoints would hold,
    /// and at the end memory holds it too.
    #[test]
    fn planted_memory_is_invisible(
        actions in proptest::collection::vec((0u8..3, 0u64..40, proptest::collection::vec(any::<u8>(), 1..12)), 1..40),
    ) {
        let vm = Vm::new(1, &[branch(0)]).start();
        let base = RAM + 0xff0; // across a page boundary
        let mut model = vec![0u8; 64];
        vm.session.write_memory(V0, Gva(base), &model).unwrap();
        for (action, offset, data) in actions {
            let place = base + (offset & !3);
            match action {
                0 => vm.session.insert(V0, software(place)).unwrap(),
                1 => drop(vm.session.remove(software(place))),
                _ => {
                    let at = offset as usize;
                    model[at..at + data.len()].copy_from_slice(&data);
                    vm.session.write_memory(V0, Gva(base + offset), &data).unwrap();
                }
            }
            prop_assert_eq!(&vm.session.read_memory(V0, Gva(base), 64).unwrap(), &model);
        }
        vm.session.detach().unwrap();
        let mut now = vec![0; 64];
        vm_memory::Bytes::read_slice(&*vm.ram, &mut now, GuestAddress(base)).unwrap();
        prop_assert_eq!(now, model);
    }
}
