//! A session that is sent ahead of its VM, brought up to date and armed before registers come, on fake vCPUs.

mod fake;

use fake::*;
use guest_debug::arm64::Reg;
use guest_debug::state::{GuestDebugState, StateUpdate, VcpuDebugState, VcpuMode, WatchState};
use guest_debug::{DebugCaps, Gva, Restore, SessionError, StopReason, WatchKind};
use vm_memory::GuestAddress;

const WHOLE: (GuestAddress, u64) = (GuestAddress(RAM), 1 << 20);

#[test]
fn breakpoints_are_planted_as_memory_arrives() {
    let vm = Vm::new(1, &LOOP).start();
    let far = RAM + 0x3004;
    for address in [RAM + 4, RAM + 8, far] {
        vm.session.insert(V0, software(address)).unwrap();
    }
    let state = save(&vm);
    let other = vm.restored(&state, CAPS, Restore::Arm);
    other.load(far, &[0]);
    other.session.plant_ahead(GuestAddress(RAM + 0x1000), 0x2000).unwrap();
    other.session.plant_ahead(GuestAddress(far), 0).unwrap();
    assert_eq!(other.word(RAM + 8), NOP, "nothing has arrived there");
    other.session.plant_ahead(GuestAddress(RAM + 8), 1).unwrap();
    assert_eq!([other.word(RAM + 4), other.word(RAM + 8)], [BRK; 2], "all of a page");
    assert_eq!(other.word(far), 0, "its instruction is not there yet");
    let seen = other.session.read_physical(GuestAddress(RAM + 8), 4).unwrap();
    assert_eq!(seen, NOP.to_le_bytes(), "it is as invisible as any");
    assert_eq!(other.session.state().unwrap(), state);
    // The same page comes once more, with other code at one place, and then the last one.
    other.load(RAM, &[NOP, WFI, NOP]);
    other.session.plant_ahead(GuestAddress(RAM), 0x1000).unwrap();
    assert_eq!(other.word(RAM + 4), WFI);
    other.load(RAM + 4, &[COUNT]);
    other.session.plant_ahead(GuestAddress(RAM + 4), 4).unwrap();
    other.load(far, &[vm.word(far)]);
    other.session.arm().unwrap();
    for address in [RAM + 4, RAM + 8, far] {
        assert_eq!(other.word(address), BRK, "{address:#x}");
    }
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    let other = other.run();
    other.session.attach().unwrap();
    other.session.resume(&[]).unwrap();
    assert_eq!(other.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 4)));
    other.session.detach().unwrap();
    assert_eq!(image(&other), image(&vm));
}

#[test]
fn what_was_planted_ahead_is_gone_when_arming_fails() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let mut state = save(&vm);
    state.hardware.push(0x4000_0000);
    let other = vm.restored(&state, DebugCaps { hw_bps: 0, ..CAPS }, Restore::Arm);
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    other.session.arm().unwrap_err();
    assert_eq!(other.word(RAM + 8), NOP);
    assert_eq!(other.session.state().unwrap(), state);
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    assert_eq!(other.word(RAM + 8), BRK, "it can be tried again");
}

#[test]
fn a_session_that_has_changed_since_it_was_sent_is_brought_up_to_date() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let saved = vm.session.save().unwrap();
    let other = vm.restored(saved.state(), CAPS, Restore::Arm);
    other.load(RAM, &LOOP);
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    assert_eq!(other.word(RAM + 8), BRK);

    // It hits: the software breakpoints are the same.
    vm.session.resume(&[]).unwrap();
    let hit = vm.stop();
    let update = vm.session.update_since(&saved).unwrap().unwrap();
    assert!(update.same_software && update.state.software.is_empty());
    other.session.update(update).unwrap();
    assert_eq!(other.session.state().unwrap(), vm.session.state().unwrap());
    assert_eq!(other.word(RAM + 8), BRK, "it stays");

    // Another one comes, the first goes.
    vm.session.insert(V0, software(RAM + 4)).unwrap();
    vm.session.remove(software(RAM + 8)).unwrap();
    let update = vm.session.update_since(&saved).unwrap().unwrap();
    assert!(!update.same_software);
    other.session.update(update.clone()).unwrap();
    assert_eq!(
        [other.word(RAM), other.word(RAM + 8)],
        [NOP; 2],
        "what was there has gone, nobody has planted the new one"
    );
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    assert_eq!([other.word(RAM + 4), other.word(RAM + 8)], [BRK, NOP]);
    other.set(0, Reg::Pc, vm.pc(0));
    other.session.arm().unwrap();
    assert!(matches!(other.session.update(update), Err(SessionError::InForce)));
    let other = other.run();
    other.session.attach().unwrap();
    assert_eq!(other.stop(), hit);
    other.session.resume(&[]).unwrap();
    assert_eq!(other.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 4)));
}

#[test]
fn a_session_is_armed_before_the_registers_are_there_if_it_needs_none() {
    let vm = Vm::new(2, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let stopped = vm.session.save().unwrap();
    vm.session.insert(V0, hardware(RAM + 0x2000)).unwrap();
    vm.load(RAM + 0x1000, &[branch(0)]);
    (0..2).for_each(|id| vm.set(id, Reg::Pc, RAM + 0x1000));
    vm.session.resume(&[]).unwrap();
    vm.session.freeze().unwrap();
    let running = vm.session.save().unwrap();
    let other = vm.restored(running.state(), CAPS, Restore::Arm);
    other.session.plant_ahead(WHOLE.0, WHOLE.1).unwrap();
    assert!(other.session.arm_ahead().unwrap());
    assert!(other.session.arm_ahead().unwrap(), "it is");
    // The page with the breakpoint comes once more.
    other.load(RAM, &LOOP);
    other.session.plant_ahead(GuestAddress(RAM), 16).unwrap();
    assert_eq!(other.word(RAM + 8), BRK);

    // The source has something to say after all: everybody stands still, and the hardware breakpoint is gone.
    let state = GuestDebugState { software: Vec::new(), ..GuestDebugState::clone(stopped.state()) };
    other.session.update(StateUpdate { same_software: true, state }).unwrap();
    assert_eq!(other.session.state().unwrap(), **stopped.state());
    assert!(other.session.arm_ahead().unwrap());
    let state = GuestDebugState::clone(running.state());
    other.session.update(StateUpdate { same_software: false, state: state.clone() }).unwrap();
    assert_eq!(other.word(RAM + 8), NOP, "a list of its own is planted anew");
    assert!(other.session.arm_ahead().unwrap());
    assert_eq!(other.word(RAM + 8), BRK);
    assert!(matches!(other.session.attach(), Err(SessionError::Arriving)), "the session may still become another one");
    other.session.arm().unwrap();
    let update = StateUpdate { same_software: false, state };
    assert!(matches!(other.session.update(update), Err(SessionError::InForce)));
    (0..2).for_each(|id| other.set(id, Reg::Pc, RAM));
    let other = other.run();
    other.session.attach().unwrap();
    assert_eq!(other.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 8)));
}

#[test]
fn a_stop_that_is_to_be_told_needs_registers() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.resume(&[]).unwrap();
    let hit = vm.stop();
    let other = vm.restored(&save(&vm), CAPS, Restore::Arm);
    assert!(!other.session.arm_ahead().unwrap());
    assert_eq!(other.word(RAM + 8), NOP, "nothing is done");
    other.session.arm().unwrap();
    let other = other.run();
    other.session.attach().unwrap();
    assert_eq!(other.stop(), hit);
    let asleep = vm.restored(&vm.session.state().unwrap(), CAPS, Restore::Dormant);
    assert!(matches!(asleep.session.arm_ahead(), Err(SessionError::NotStopped(V0))));
}

#[test]
fn an_update_is_not_believed_either() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let state = save(&vm);
    let other = vm.restored(&state, DebugCaps { hw_wps: 0, ..CAPS }, Restore::Arm);
    let refused = |same_software, state| {
        let error = other.session.update(StateUpdate { same_software, state }).unwrap_err();
        let SessionError::State(error) = error else { panic!("{error}") };
        error.to_string()
    };
    let beside = GuestDebugState { software: Vec::new(), ..state.clone() };
    let unattached = GuestDebugState { attached: false, held: true, vcpus: vec![stopped()], ..beside.clone() };
    assert!(refused(true, unattached).contains("software"), "whose would they be");
    let two = GuestDebugState { vcpus: vec![stopped(); 2], ..beside.clone() };
    assert!(refused(true, two).contains("vCPUs"));
    let watched = |watches| GuestDebugState { watches, ..beside.clone() };
    let watch = WatchState { address: RAM, length: 8, kind: WatchKind::Write };
    assert!(refused(true, watched(vec![watch])).contains("watchpoint"), "the host has none");
    let mut bad = state.clone();
    bad.software[0].original = BRK.to_le_bytes();
    assert!(refused(false, bad).contains("software[0].original"));
    assert_eq!(other.session.state().unwrap(), state, "nothing of it was taken");
    let never = Vm::new(1, &LOOP).start();
    let update = StateUpdate { same_software: false, state };
    assert!(matches!(never.session.update(update), Err(SessionError::InForce)));
}

fn stopped() -> VcpuDebugState {
    VcpuDebugState { mode: VcpuMode::Stopped, told: None }
}

#[test]
fn nothing_is_planted_ahead_in_a_session_that_sleeps() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let other = vm.restored(&save(&vm), CAPS, Restore::Dormant);
    assert!(matches!(other.session.plant_ahead(WHOLE.0, WHOLE.1), Err(SessionError::NotStopped(V0))));
    assert_eq!(other.word(RAM + 8), NOP);
}

#[test]
fn a_state_that_was_sent_ahead_is_told_from_another() {
    let vm = Vm::new(1, &LOOP).start();
    let unreached = [software(RAM + 0x2000), hardware(RAM + 0x2004), write_watch(RAM + 0x2008, 8)];
    for breakpoint in unreached {
        vm.session.insert(V0, breakpoint).unwrap();
    }
    vm.session.resume(&[]).unwrap();
    vm.session.freeze().unwrap();
    let saved = vm.session.save().unwrap();
    assert_eq!(**saved.state(), vm.session.state().unwrap());
    assert_eq!(vm.session.update_since(&saved).unwrap(), None);
    vm.session.thaw().unwrap();
    assert!(matches!(vm.session.update_since(&saved), Err(SessionError::NotStopped(V0))));
    vm.session.freeze().unwrap();
    assert_eq!(vm.session.update_since(&saved).unwrap(), None, "it ran, and was planted again");
    vm.session.thaw().unwrap();
    vm.session.interrupt();
    vm.stop();

    let saved = vm.session.save().unwrap();
    let changed = || vm.session.update_since(&saved).unwrap().map(|update| update.state);
    for breakpoint in [software(RAM + 0x3000), hardware(RAM + 0x3000), write_watch(RAM + 0x3000, 4)] {
        vm.session.insert(V0, breakpoint).unwrap();
        let state = vm.session.state().unwrap();
        assert!(changed().is_some_and(|now| now == state || now == but_for_software(&state)), "{breakpoint:?}");
        vm.session.remove(breakpoint).unwrap();
        assert_eq!(changed(), None, "it is what it was, {breakpoint:?}");
    }
    vm.session.remove(unreached[0]).unwrap();
    assert_eq!(changed(), Some(vm.session.state().unwrap()));
    vm.session.insert(V0, unreached[0]).unwrap();
    assert_eq!(changed(), None);
    vm.session.select_vcpu(Some(V0)).unwrap();
    assert_eq!(changed().unwrap().selected_vcpu, Some(0));
    vm.session.select_vcpu(None).unwrap();
    vm.session.write_physical(GuestAddress(RAM + 0x2000), &WFI.to_le_bytes()).unwrap();
    assert_eq!(changed().unwrap().software[0].original, WFI.to_le_bytes());
    vm.session.write_physical(GuestAddress(RAM + 0x2000), &[0; 4]).unwrap();
    assert_eq!(changed(), None);
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let saved = vm.session.save().unwrap();
    vm.session.resume(&[]).unwrap();
    vm.stop();
    let state = vm.session.update_since(&saved).unwrap().unwrap().state;
    assert!(state.vcpus[0].told.is_some() && state.reported.is_some(), "{state:?}");
}

fn but_for_software(state: &GuestDebugState) -> GuestDebugState {
    GuestDebugState { software: Vec::new(), ..state.clone() }
}

#[test]
fn a_state_that_was_restored_and_not_armed_is_told_from_another() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    let state = save(&vm);
    let [one, other] = [0; 2].map(|_| vm.restored(&state, CAPS, Restore::Dormant).run());
    let saved = one.session.save().unwrap();
    assert_eq!(one.session.update_since(&saved).unwrap(), None);
    assert_eq!(other.session.update_since(&saved).unwrap(), None, "the same, whosever it is");
    let fewer = GuestDebugState { software: Vec::new(), ..state };
    let other = vm.restored(&fewer, CAPS, Restore::Dormant).run();
    let update = other.session.update_since(&saved).unwrap().unwrap();
    assert_eq!(update, StateUpdate { same_software: false, state: fewer });
}
