//! A session that is saved, moved and restored, on fake vCPUs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use fake::*;
use guest_debug::arm64::{Pstate, Reg};
use guest_debug::state::{GuestDebugState, StateError, StepRange, StopState, VcpuMode, fits};
use guest_debug::{DebugCaps, Gva, Restore, ResumeAction, SessionError, StopReason, VcpuState, WatchKind};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

/// Waits until something is so, which must come.
fn eventually(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < end, "it did not happen");
        std::thread::yield_now();
    }
}

/// Restores into a second VM with this one's memory and registers, and starts that.
fn moved(vm: &Vm, state: &GuestDebugState) -> Vm {
    let other = vm.restored(state, CAPS, Restore::Arm);
    assert_eq!(other.session.arm().unwrap(), []);
    other.run()
}

#[test]
fn saved_while_running_breakpoints_hit_on_both_sides() {
    let vm = Vm::new(2, &LOOP).start();
    let clean = image(&vm);
    vm.load(RAM + 0x1000, &LOOP);
    vm.set(1, Reg::Pc, RAM + 0x1000);
    let unreached = RAM + 0x2000;
    vm.session.insert(V0, software(unreached)).unwrap();
    vm.session.insert(V0, hardware(unreached + 4)).unwrap();
    vm.session.insert(V0, write_watch(unreached + 8, 8)).unwrap();
    vm.session.resume(&[]).unwrap();
    eventually(|| vm.get(1, Reg::X(1)) > 10 && vm.get(0, Reg::X(1)) > 10);

    assert!(matches!(vm.session.state(), Err(SessionError::NotStopped(V0))));
    let state = save(&vm);
    assert_eq!(image(&vm)[0x2000..], clean[0x2000..], "no BRK leaves");
    assert_eq!(state.vcpus.iter().map(|vcpu| vcpu.mode).collect::<Vec<_>>(), [VcpuMode::Running; 2]);
    assert_eq!((state.hardware.len(), state.watches.len(), state.software.len()), (1, 1, 1));
    let other = moved(&vm, &state);
    vm.session.thaw().unwrap();

    for vm in [vm, other] {
        let before = vm.get(0, Reg::X(1));
        eventually(|| vm.get(0, Reg::X(1)) > before);
        if !vm.session.attached() {
            vm.session.attach().unwrap();
        } else {
            vm.session.interrupt();
            assert_eq!(vm.stop().reason, StopReason::Interrupt);
        }
        assert_ne!(vm.word(unreached), 0, "planted again");
        vm.load(unreached + 4, &[NOP]);
        vm.session.write_physical(GuestAddress(unreached), &NOP.to_le_bytes()).unwrap();
        vm.set(1, Reg::Pc, unreached);
        vm.session.resume(&[(V0, ResumeAction::Stay)]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(unreached)));
        vm.session.resume(&[(V0, ResumeAction::Stay)]).unwrap();
        let stop = vm.stop();
        assert_eq!((stop.vcpu, stop.reason), (V1, StopReason::HardwareBreakpoint(Gva(unreached + 4))));
        vm.load(unreached + 4, &[STR_X1_X0]);
        vm.set(1, Reg::X(0), unreached + 8);
        vm.session.remove(hardware(unreached + 4)).unwrap();
        vm.session.resume(&[(V0, ResumeAction::Stay)]).unwrap();
        let expected = StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(unreached + 8) };
        assert_eq!(vm.stop().reason, expected);
        vm.session.detach().unwrap();
        assert_eq!(vm.word(unreached), NOP);
    }
}

#[test]
fn stopped_at_a_breakpoint_the_next_client_is_told_the_same_stop() {
    for (breakpoint, reason) in [
        (hardware(RAM + 8), StopReason::HardwareBreakpoint(Gva(RAM + 8))),
        (software(RAM + 8), StopReason::SoftwareBreakpoint(Gva(RAM + 8))),
    ] {
        let vm = Vm::new(2, &LOOP).start();
        vm.load(RAM + 0x1000, &[branch(0)]);
        vm.set(0, Reg::Pc, RAM + 0x1000);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.select_vcpu(Some(V1)).unwrap();
        vm.session.resume(&[]).unwrap();
        let told = vm.stop();
        assert_eq!((told.vcpu, told.reason), (V1, reason));
        let state = save(&vm);
        assert_eq!(vm.word(RAM + 8), NOP);
        assert_eq!(state.reported, Some(StopState { vcpu: 1, pc: RAM + 8, reason: reason.into() }));
        let other = moved(&vm, &state);
        other.session.attach().unwrap();
        assert_eq!(other.stop(), told);
        assert_eq!(other.session.selected_vcpu(), Some(V1));
        vm.session.thaw().unwrap();
        for vm in [vm, other] {
            assert_eq!(vm.get(1, Reg::X(1)), 1);
            vm.session.resume(&[]).unwrap();
            assert_eq!(vm.stop(), told, "the next round");
            assert_eq!(vm.get(1, Reg::X(1)), 2, "the instruction was got over");
        }
    }
}

#[test]
fn a_range_of_steps_goes_on_at_the_other_side() {
    let mut code = vec![COUNT; 64];
    code.extend([branch(-256), NOP, branch(0)]);
    let vm = Vm::new(1, &code).start();
    let end = RAM + 4 * 65;
    for round in 0..20 {
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..end))]).unwrap();
        let before = vm.get(0, Reg::X(1));
        eventually(|| vm.get(0, Reg::X(1)) > before + round * 7);
        let state = save(&vm);
        assert_eq!(state.vcpus[0].mode, VcpuMode::SteppingRange(StepRange { start: RAM, end }));
        assert_eq!(vm.get(0, Reg::Pstate), Pstate::EL1H, "registers are the guest's own");
        let (pc, count) = (vm.pc(0), vm.get(0, Reg::X(1)));
        let other = moved(&vm, &state);
        eventually(|| other.get(0, Reg::X(1)) > count + 100);
        other.load(RAM + 4 * 64, &[NOP]);
        let stop = other.stop();
        assert_eq!((stop.reason, other.pc(0)), (StopReason::Step, end));
        // The source goes on with the same range.
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (pc, count));
        vm.session.thaw().unwrap();
        eventually(|| vm.get(0, Reg::X(1)) > count + 100);
        vm.session.interrupt();
        assert_eq!(vm.stop().reason, StopReason::Interrupt);
    }
}

#[test]
fn a_step_that_has_not_executed_is_made_after_the_move() {
    let vm = Vm::new(1, &[COUNT, COUNT, branch(0)]).start();
    let mut state = save(&vm);
    state.vcpus[0].mode = VcpuMode::Stepping;
    state.held = false;
    let other = moved(&vm, &state);
    eventually(|| other.session.vcpu_states() == [VcpuState::Stopped]);
    other.session.attach().unwrap();
    assert_eq!(other.stop().reason, StopReason::Step);
    assert_eq!((other.pc(0), other.get(0, Reg::X(1))), (RAM + 4, 1));
}

#[test]
fn a_frozen_step_is_made_exactly_once() {
    let vm = Vm::new(1, &[COUNT; 1000]).start();
    for index in 1..=500 {
        vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
        let state = save(&vm);
        assert!(matches!(state.vcpus[0].mode, VcpuMode::Stepping | VcpuMode::Stopped));
        assert_eq!(vm.session.take_stop().unwrap(), None, "nothing is told meanwhile");
        vm.session.thaw().unwrap();
        assert_eq!(vm.stop().reason, StopReason::Step);
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (RAM + 4 * index, index));
    }
}

#[test]
fn stops_that_nobody_fetched_are_told_to_the_next_client() {
    let vm = Vm::new(2, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.insert(V0, hardware(RAM + 4)).unwrap();
    vm.set(1, Reg::Pc, RAM + 8);
    vm.session.resume(&[]).unwrap();
    // The one that hits second may have been resumed only after the first one had hit.
    eventually(|| vm.session.vcpu_states().contains(&VcpuState::Stopped));
    let state = save(&vm);
    assert!(!state.pending.is_empty() && state.reported.is_none(), "{state:?}");
    assert_eq!(vm.word(RAM + 8), NOP);
    let other = moved(&vm, &state);
    assert_eq!(other.session.vcpu_states(), [VcpuState::Stopped; 2]);
    other.session.attach().unwrap();
    vm.session.thaw().unwrap();
    for vm in [vm, other] {
        for pending in &state.pending {
            let stop = vm.stop();
            assert_eq!((stop.vcpu.0, stop.reason), (pending.vcpu, pending.reason.into()));
            assert_eq!(vm.pc(pending.vcpu), pending.pc);
            vm.session.resume(&[]).unwrap();
        }
    }
}

#[test]
fn a_vcpu_that_was_left_stopped_stays_so() {
    let vm = Vm::new(2, &LOOP).start();
    vm.session.resume(&[(V1, ResumeAction::Stay)]).unwrap();
    let state = save(&vm);
    assert_eq!(state.vcpus[0].mode, VcpuMode::Running);
    assert_eq!(state.vcpus[1].mode, VcpuMode::Stopped);
    let other = moved(&vm, &state);
    vm.session.thaw().unwrap();
    for vm in [vm, other] {
        let before = vm.get(0, Reg::X(1));
        eventually(|| vm.get(0, Reg::X(1)) > before);
        assert_eq!(vm.session.vcpu_states(), [VcpuState::Running, VcpuState::Stopped]);
        assert_eq!(vm.pc(1), RAM);
    }
}

#[test]
fn a_dormant_session_touches_nothing_and_loses_nothing() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(RAM + 4)).unwrap();
    vm.session.insert(V0, software(RAM + 0x2000)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 4)));
    let state = save(&vm);
    let clean = image(&vm);

    let dormant = vm.restored(&state, CAPS, Restore::Dormant).run();
    eventually(|| dormant.get(0, Reg::X(1)) > 100);
    assert_eq!(image(&dormant), clean);
    assert!(dormant.session.is_dormant() && dormant.session.breakpoints().is_empty());
    assert!(!dormant.vcpus[0].config().enabled, "nothing armed");
    assert_eq!(save(&dormant), state, "nothing lost at the next save");
    let again = dormant.restored(&state, CAPS, Restore::Dormant).run();
    dormant.session.thaw().unwrap();

    for vm in [dormant, again] {
        let before = vm.get(0, Reg::X(1));
        eventually(|| vm.get(0, Reg::X(1)) > before);
        vm.session.attach().unwrap();
        assert_eq!(vm.session.breakpoints().len(), 2);
        assert_ne!(vm.word(RAM + 0x2000), 0);
        // It may be where it was told to be, by chance; then that stop is told again.
        if vm.pc(0) != RAM + 4 {
            assert_eq!(vm.session.take_stop().unwrap(), None, "a stop that is over is not told");
        }
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 4)));
    }
}

#[test]
fn too_few_breakpoint_slots_are_filled_up_with_software_breakpoints() {
    let vm = Vm::new(1, &[COUNT, COUNT, COUNT, COUNT, COUNT, branch(-20)]).start();
    for index in 0..5 {
        vm.session.insert(V0, hardware(RAM + index * 4)).unwrap();
    }
    vm.session.insert(V0, software(RAM + 12)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM)));
    let state = save(&vm);
    let few = DebugCaps { hw_bps: 2, ..CAPS };
    assert_eq!(fits(&state, &few).unwrap().as_software, 3);
    let other = vm.restored(&state, few, Restore::Arm);
    let stand_ins = other.session.arm().unwrap();
    assert_eq!(stand_ins, [Gva(RAM + 4), Gva(RAM + 8), Gva(RAM + 12)]);
    let other = other.run();
    other.session.attach().unwrap();
    assert_eq!(other.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM)));
    assert_eq!(other.session.breakpoints().len(), 6);
    for index in [1, 2] {
        other.session.resume(&[]).unwrap();
        assert_eq!(other.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + index * 4)));
    }
    // Saved again, they are hardware breakpoints.
    let again = save(&other);
    assert_eq!((&again.hardware, &again.software), (&state.hardware, &state.software));
    other.session.thaw().unwrap();
    // Both kinds at one place: each can be removed alone.
    other.session.remove(software(RAM + 12)).unwrap();
    assert_ne!(other.word(RAM + 12), COUNT);
    other.session.remove(hardware(RAM + 12)).unwrap();
    assert_eq!(other.word(RAM + 12), COUNT);
    assert!(matches!(other.session.insert(V0, hardware(RAM + 20)), Err(SessionError::NoBreakpointSlot { .. })));
    for index in [4, 0, 1] {
        other.session.resume(&[]).unwrap();
        assert_eq!(other.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + index * 4)));
    }
    other.session.detach().unwrap();
    assert_eq!(other.word(RAM + 4), COUNT);
}

#[test]
fn breakpoints_on_no_page_need_a_slot() {
    let vm = Vm::new(1, &LOOP).start();
    for index in 0..3 {
        vm.session.insert(V0, hardware(0x4000_0000 + index * 4)).unwrap();
    }
    let mut state = save(&vm);
    state.hardware.push(RAM);
    let other = vm.restored(&state, DebugCaps { hw_bps: 2, ..CAPS }, Restore::Arm);
    let error = other.session.arm().unwrap_err();
    let SessionError::State(error) = error else { panic!("{error}") };
    assert_eq!(error, StateError::BreakpointSlots { needed: 3, available: 2 });
    assert_eq!(other.word(RAM), NOP, "nothing planted");
    assert_eq!(other.session.state().unwrap(), state);
}

#[test]
fn breakpoints_are_planted_only_on_the_instruction_that_was_saved() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 4)).unwrap();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let state = save(&vm);
    vm.load(RAM + 4, &[WFI]);
    let other = vm.restored(&state, CAPS, Restore::Arm);
    assert_eq!(other.word(RAM + 8), NOP, "not before it is armed");
    other.session.arm().unwrap();
    assert_eq!(other.word(RAM + 4), WFI);
    assert_ne!(other.word(RAM + 8), NOP);
    assert_eq!(other.session.breakpoints().iter().filter(|info| info.armed).count(), 1);
    let other = other.run();
    other.session.freeze().unwrap();
    assert_eq!(other.session.state().unwrap().software, state.software);
}

#[test]
fn nothing_but_breakpoints_changes_while_frozen() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let state = save(&vm);
    let session = &vm.session;
    assert!(matches!(session.freeze(), Err(SessionError::Frozen)));
    assert!(matches!(session.freeze_planted(), Err(SessionError::Frozen)));
    assert!(matches!(session.resume(&[]), Err(SessionError::Frozen)));
    assert!(matches!(session.attach(), Err(SessionError::Frozen)));
    assert!(matches!(session.write_memory(V0, Gva(RAM), &[0]), Err(SessionError::Frozen)));
    assert!(matches!(session.write_physical(GuestAddress(RAM), &[0]), Err(SessionError::Frozen)));
    assert!(matches!(session.write_register(V0, Reg::Pc, &[0; 8]), Err(SessionError::Frozen)));
    assert!(matches!(session.before_reset(), Err(SessionError::Frozen)));
    assert!(matches!(session.after_reset(), Err(SessionError::Frozen)));
    assert_eq!(session.state().unwrap(), state);
    assert_eq!(session.read_memory(V0, Gva(RAM + 8), 4).unwrap(), NOP.to_le_bytes(), "reading works");
    session.detach().unwrap();
    assert_eq!(vm.get(0, Reg::X(1)), 0, "the guest still stands");
    session.thaw().unwrap();
    session.thaw().unwrap();
    eventually(|| vm.get(0, Reg::X(1)) > 10);
    assert_eq!(vm.word(RAM + 8), NOP);
}

#[test]
fn breakpoints_set_while_frozen_come_with_the_thaw() {
    for planted in [true, false] {
        let vm = Vm::new(1, &LOOP).start();
        let session = &vm.session;
        let code = vm.word(RAM + 4);
        session.insert(V0, software(RAM + 8)).unwrap();
        if planted { session.freeze_planted() } else { session.freeze() }.unwrap();
        session.insert(V0, software(RAM + 4)).unwrap();
        assert_eq!(vm.word(RAM + 4), code, "memory is being saved");
        session.remove(software(RAM + 8)).unwrap();
        session.insert(V0, hardware(RAM + 8)).unwrap();
        let state = session.state().unwrap();
        assert_eq!(state.software.iter().map(|point| point.physical).collect::<Vec<_>>(), [RAM + 4]);
        assert_eq!(state.hardware, [RAM + 8]);
        session.thaw().unwrap();
        assert_eq!(vm.word(RAM + 8), NOP);
        session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 4)));
        session.remove(software(RAM + 4)).unwrap();
        assert_eq!(vm.word(RAM + 4), code);
        session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 8)));
    }
}

#[test]
fn an_interrupt_while_frozen_is_told_at_once_and_outlasts_the_thaw() {
    let vm = Vm::new(2, &LOOP).start();
    vm.session.resume(&[]).unwrap();
    vm.session.freeze().unwrap();
    assert_eq!(vm.session.take_stop().unwrap(), None);
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Interrupt);
    let state = vm.session.state().unwrap();
    assert_eq!(state.reported.map(|stop| stop.vcpu), Some(0), "the next client is told the same");
    let counted = vm.get(0, Reg::X(1));
    vm.session.thaw().unwrap();
    assert_eq!(vm.session.take_stop().unwrap(), None);
    assert_eq!(vm.session.vcpu_states(), [VcpuState::Stopped; 2]);
    assert_eq!(vm.get(0, Reg::X(1)), counted);
    vm.session.resume(&[]).unwrap();
    eventually(|| vm.get(0, Reg::X(1)) > counted);
}

#[test]
fn a_session_without_a_client_is_saved_too() {
    for held in [true, false] {
        let vm = Vm::new(1, &LOOP).run();
        if !held {
            vm.session.attach().unwrap();
            vm.session.detach().unwrap();
            eventually(|| vm.get(0, Reg::X(1)) > 0);
        }
        let state = save(&vm);
        assert_eq!((state.attached, state.held), (false, held));
        let other = moved(&vm, &state);
        if held {
            assert_eq!(other.session.vcpu_states(), [VcpuState::Stopped]);
        } else {
            let before = vm.get(0, Reg::X(1));
            eventually(|| other.get(0, Reg::X(1)) > before);
            assert!(!other.vcpus[0].config().enabled);
        }
        other.session.attach().unwrap();
        assert_eq!(other.session.take_stop().unwrap(), None);
        other.session.insert(V0, hardware(RAM + 4)).unwrap();
        other.session.resume(&[]).unwrap();
        assert_eq!(other.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 4)));
    }
}

#[test]
fn moved_to_and_fro_while_breakpoints_hit() {
    let mut vm = Vm::new(2, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.insert(V0, hardware(RAM + 4)).unwrap();
    let mut hits = 0;
    for round in 0..200 {
        vm.session.resume(&[]).unwrap();
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        let state = save(&vm);
        assert_eq!(vm.word(RAM + 8), NOP);
        assert_eq!(state.software.len(), 1);
        let other = moved(&vm, &state);
        drop(vm);
        vm = other;
        vm.session.attach().unwrap();
        if let Some(stop) = vm.session.take_stop().unwrap() {
            let at = [RAM + 4, RAM + 8];
            assert!(at.contains(&vm.pc(stop.vcpu.0)), "{stop:?}");
            hits += 1;
        }
    }
    assert!(hits > 0);
    vm.session.detach().unwrap();
    let counts = [vm.get(0, Reg::X(1)), vm.get(1, Reg::X(1))];
    eventually(|| vm.get(0, Reg::X(1)) > counts[0] && vm.get(1, Reg::X(1)) > counts[1]);
}

#[test]
fn a_watch_that_is_told_again_after_a_move_is_remembered_once() {
    let mut vm = Vm::new(1, &[STR_X1_X0, branch(0)]).start();
    vm.set(0, Reg::X(0), RAM + 0x1000);
    vm.session.insert(V0, write_watch(RAM + 0x1000, 8)).unwrap();
    vm.session.resume(&[]).unwrap();
    let told = vm.stop();
    for _ in 0..3 {
        let state = save(&vm);
        assert_eq!(state.vcpus[0].told.as_ref().unwrap().watches, [RAM + 0x1000]);
        vm = moved(&vm, &state);
        vm.session.attach().unwrap();
        assert_eq!(vm.stop(), told);
    }
}

#[test]
fn the_state_does_not_fit_a_host_without_the_slots() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, write_watch(RAM + 0x1000, 8)).unwrap();
    vm.session.insert(V0, write_watch(RAM + 0x1010, 8)).unwrap();
    let state = save(&vm);
    let error = fits(&state, &DebugCaps { hw_wps: 1, ..CAPS }).unwrap_err();
    assert_eq!(error, StateError::WatchpointSlots { needed: 2, available: 1 });
    assert_eq!(fits(&state, &DebugCaps::default()).unwrap_err(), StateError::NoGuestDebug);
    assert_eq!(fits(&state, &CAPS).unwrap().watch_slots, 2);
    // It can sleep there, and a client is refused with the reason.
    let other = vm.restored(&state, DebugCaps { hw_wps: 1, ..CAPS }, Restore::Dormant).run();
    assert!(matches!(other.session.attach(), Err(SessionError::State(StateError::WatchpointSlots { .. }))));
    eventually(|| other.get(0, Reg::X(1)) > 10);
    assert_eq!(other.session.state().unwrap(), state);
}

#[test]
fn a_client_that_is_faster_than_the_vcpu_threads_is_told_once() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    vm.session.resume(&[]).unwrap();
    let hit = vm.stop();
    assert_eq!(hit.reason, StopReason::SoftwareBreakpoint(Gva(RAM)));
    let state = save(&vm);
    let other = vm.restored(&state, CAPS, Restore::Arm);
    other.session.arm().unwrap();
    other.session.attach().unwrap();
    assert_eq!(other.stop(), hit);
    let session = other.session.clone();
    let resuming = std::thread::spawn(move || session.resume(&[(V0, ResumeAction::Step)]));
    std::thread::sleep(Duration::from_millis(20));
    let other = other.run();
    resuming.join().unwrap().unwrap();
    assert_eq!(other.stop().reason, StopReason::Step);
    assert_eq!(other.pc(0), RAM + 4);
}
