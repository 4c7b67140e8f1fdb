//! A session of an x86_64 guest, on vCPUs that interpret a few instructions.

#![expect(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "shared with other tests")]
mod fake_x86;

use fake_x86::*;
use guest_debug::agent::{Comparison, Operand, compare};
use guest_debug::state::{Architecture, GuestDebugState, StateError};
use guest_debug::x86_64::Reg;
use guest_debug::x86_64::stop::Exception;
use guest_debug::{
    DebugSession, DebugVcpu, Gva, HitRule, Removed, ResumeAction, SessionError, StopEvent, StopReason, WatchKind,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

/// RFLAGS as saved by a guest whose interrupts are on.
const ON: u64 = 2 | IF;

fn hit(address: u64) -> StopReason {
    StopReason::HardwareBreakpoint(Gva(address))
}

fn planted(address: u64) -> StopReason {
    StopReason::SoftwareBreakpoint(Gva(address))
}

// -- breakpoints

#[test]
fn a_hardware_breakpoint_stops_before_its_instruction_each_time() {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, &jump(-4)]);
    vm.insert(hardware(RAM + 1));
    for count in 0..5 {
        assert_eq!(vm.go(), hit(RAM + 1));
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 1, count));
    }
}

#[test]
fn a_breakpoint_is_on_every_vcpu() {
    let vm = Vm::new(2, CAPS, &[NOP, NOP, SPIN]);
    vm.insert(hardware(RAM + 1));
    let mut stops = vec![];
    vm.session.resume(&[]).unwrap();
    stops.push(vm.stop().vcpu);
    vm.session.resume(&[]).unwrap();
    stops.push(vm.stop().vcpu);
    stops.sort();
    assert_eq!(stops, [V0, V1]);
}

#[test]
fn breakpoints_and_watches_share_four_slots() {
    let vm = Vm::new(1, CAPS, &[SPIN]);
    vm.insert(hardware(RAM));
    vm.insert(watch(WatchKind::Write, DATA, 12));
    assert_eq!(
        vm.session.insert(V0, watch(WatchKind::Write, DATA + 0x10, 12)).unwrap_err().to_string(),
        "the watch needs 2 watchpoint slots, 1 of 4 are free"
    );
    vm.insert(hardware(RAM + 1));
    let full = vm.session.insert(V0, hardware(RAM + 2)).unwrap_err();
    assert!(matches!(full, SessionError::NoBreakpointSlot { available: 4 }), "{full}");
    vm.session.remove(watch(WatchKind::Write, DATA, 12)).unwrap();
    vm.insert(hardware(RAM + 2));
    vm.insert(hardware(RAM + 3));
    let full = vm.session.insert(V0, watch(WatchKind::Access, DATA, 1)).unwrap_err();
    assert!(matches!(full, SessionError::NoWatchpointSlot { needed: 1, free: 0, available: 4 }), "{full}");
}

#[test]
fn a_software_breakpoint_is_one_byte_at_any_address() {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, &jump(-4)]);
    vm.insert(software(RAM + 1));
    assert_eq!(vm.byte(RAM + 1), INT3[0]);
    assert_eq!(vm.byte(RAM + 2), COUNT[1], "nothing behind it is touched");
    assert_eq!(vm.session.read_memory(V0, Gva(RAM), 4).unwrap(), [NOP, COUNT].concat());
    for count in 0..3 {
        assert_eq!(vm.go(), planted(RAM + 1));
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 1, count), "pc is on it");
    }
    vm.session.write_memory(V0, Gva(RAM + 1), NOP).unwrap();
    assert_eq!(vm.byte(RAM + 1), INT3[0], "a client writes below it");
    assert_eq!(vm.session.remove(software(RAM + 1)).unwrap(), Removed::Restored);
    assert_eq!(vm.byte(RAM + 1), NOP[0]);
}

#[test]
fn a_breakpoint_on_the_guests_own_int3_gives_it_back() {
    let vm = Vm::new(1, CAPS, &[INT3, SPIN]);
    vm.insert(software(RAM));
    assert_eq!(vm.go(), planted(RAM));
    vm.insert(hardware(handler(3)));
    assert_eq!(vm.go(), hit(handler(3)), "it is executed, and is the guest's");
    vm.session.remove(software(RAM)).unwrap();
    assert_eq!(vm.byte(RAM), INT3[0]);
}

#[test]
fn detaching_leaves_no_trace() {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, &jump(-4)]);
    vm.insert(software(RAM + 1));
    vm.insert(hardware(RAM + 4));
    assert_eq!(vm.go(), planted(RAM + 1));
    assert!(vm.vcpus[0].config().enabled);
    vm.session.detach().unwrap();
    while vm.vcpus[0].config().enabled {
        std::thread::yield_now();
    }
    assert_eq!(vm.byte(RAM + 1), COUNT[0]);
}

#[test]
fn a_condition_is_evaluated_beside_the_vcpu() {
    let vm = Vm::new(2, CAPS, &[NOP, COUNT, &jump(-4)]);
    // RBX is number 1, as gdb counts.
    let condition = compare(Operand::Register(1), Comparison::Equal, 7).unwrap();
    for at in [software(RAM + 1), hardware(RAM + 1)] {
        vm.set(Reg::Rip, RAM);
        vm.set(Reg::Rbx, 0);
        vm.vcpus[1].set_u64(Reg::Rbx, 100).unwrap();
        vm.insert(at);
        vm.session.set_rule(at, HitRule { conditions: vec![condition.clone()], commands: vec![] }).unwrap();
        vm.session.resume(&vm.only(ResumeAction::Continue)).unwrap();
        assert_eq!(vm.stop().vcpu, V0);
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 1, 7));
        assert_eq!(vm.session.rules()[0].counts.reached, 8);
        vm.session.clear_rule(at).unwrap();
        vm.session.remove(at).unwrap();
    }
}

// -- watches

#[test]
fn a_write_watch_stops_behind_every_store() {
    let vm = Vm::new(1, CAPS, &[COUNT, STORE, LOAD, &jump(-9)]);
    vm.insert(watch(WatchKind::Write, DATA + 4, 4));
    for count in 1..4 {
        let reason = StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA + 4) };
        assert_eq!(vm.go(), reason);
        assert_eq!((vm.get(Reg::Rip), vm.word(DATA)), (RAM + 6, count), "the access has happened");
        let told = vm.session.state().unwrap().vcpus[0].told.clone().unwrap();
        assert_eq!((told.pc, told.watches), (RAM + 6, vec![]), "and there is nothing to get over");
    }
}

#[test]
fn an_access_watch_tells_loads_too_and_a_read_watch_is_one() {
    for kind in [WatchKind::Access, WatchKind::Read] {
        let vm = Vm::new(1, CAPS, &[STORE, LOAD, SPIN]);
        vm.insert(watch(kind, DATA, 8));
        assert_eq!(vm.session.breakpoints()[0].widened, kind == WatchKind::Read);
        for pc in [RAM + 3, RAM + 6] {
            assert_eq!(vm.go(), StopReason::Watchpoint { kind, address: Gva(DATA) });
            assert_eq!(vm.get(Reg::Rip), pc);
        }
    }
}

#[test]
fn a_watch_beside_the_access_is_not_told() {
    let vm = Vm::new(1, CAPS, &[STORE, NOP, SPIN]);
    vm.insert(watch(WatchKind::Write, DATA + 8, 8));
    vm.insert(hardware(RAM + 3));
    assert_eq!(vm.go(), hit(RAM + 3));
}

#[test]
fn a_step_over_a_watched_access_tells_the_watch() {
    let vm = Vm::new(1, CAPS, &[STORE, NOP, SPIN]);
    vm.insert(watch(WatchKind::Write, DATA, 8));
    vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA) });
    assert_eq!(vm.get(Reg::Rip), RAM + 3);
    assert_eq!(vm.step(), RAM + 4);
}

#[test]
fn a_breakpoint_on_a_watched_access_is_told_first() {
    let vm = Vm::new(1, CAPS, &[STORE, SPIN]);
    for at in [hardware(RAM), software(RAM)] {
        vm.set(Reg::Rip, RAM);
        vm.insert(watch(WatchKind::Write, DATA, 8));
        vm.insert(at);
        assert!(matches!(vm.go(), StopReason::HardwareBreakpoint(_) | StopReason::SoftwareBreakpoint(_)));
        assert!(matches!(vm.go(), StopReason::Watchpoint { .. }), "{at}");
        assert_eq!(vm.get(Reg::Rip), RAM + 3);
        vm.session.remove(at).unwrap();
    }
}

// -- steps

#[test]
fn no_step_enters_a_pending_interrupt() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[NOP, COUNT, NOP, SPIN]);
        vm.vcpus[0].irq_pending.store(true, Ordering::Relaxed);
        assert_eq!((vm.step(), vm.step(), vm.step()), (RAM + 1, RAM + 4, RAM + 5));
        assert_eq!(vm.vcpus[0].config().block_interrupts, caps == CAPS, "KVM holds them back where it can");
        assert_eq!(vm.get(Reg::Eflags), ON);
        vm.insert(hardware(handler(0x20)));
        assert_eq!(vm.go(), hit(handler(0x20)), "it comes as soon as the guest runs");
    }
}

#[test]
fn a_step_leaves_the_interrupt_flag_as_the_instruction_would() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[CLI, NOP, STI, NOP, PUSHFQ, CLI, POPFQ, CLI, PUSHFQ, STI, POPFQ]);
        let flag = || {
            vm.step();
            vm.get(Reg::Eflags) & IF != 0
        };
        let seen: Vec<_> = (0..11).map(|_| flag()).collect();
        assert_eq!(seen, [false, false, true, true, true, false, true, false, false, true, false]);
    }
}

#[test]
fn a_program_that_may_not_write_the_interrupt_flag_keeps_it() {
    let vm = Vm::new(1, OLD, &[POPFQ, NOP]);
    vm.set(Reg::Cs, 0x33);
    vm.ram.write_obj(2u64, GuestAddress(STACK)).unwrap();
    // The fake CPU does as it is told, so only what the session makes of it is looked at.
    vm.step();
    assert_eq!(vm.get(Reg::Eflags), ON);
}

#[test]
fn a_step_leaves_nothing_of_itself_on_the_stack() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[PUSHFQ, SPIN]);
        vm.step();
        assert_eq!(vm.word(STACK - 8), ON);
    }
}

#[test]
fn a_step_over_syscall_ends_where_it_goes() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[SYSCALL, SPIN]);
        assert_eq!(vm.step(), ENTRY);
        assert_eq!(vm.get(Reg::R(11)), ON, "what SYSRET restores is the program's own");
        assert_eq!(vm.get(Reg::Eflags), 2, "IA32_FMASK clears IF");
        vm.set(Reg::Rip, RAM);
        vm.set(Reg::Fmask, TF);
        vm.set(Reg::Eflags, ON);
        assert_eq!(vm.step(), ENTRY);
        assert_eq!(vm.get(Reg::Eflags), ON, "unless it is not among its bits");
    }
}

#[test]
fn a_step_into_a_handler_ends_at_its_first_instruction() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[INT_80, LOAD, SPIN]);
        assert_eq!(vm.step(), handler(0x80));
        let frame = |at: u64| (vm.word(at), vm.word(at + 16));
        assert_eq!(frame(vm.get(Reg::Rsp)), (RAM + 2, ON));
        assert_eq!(vm.get(Reg::Eflags), 2);
        assert_eq!((vm.step(), vm.step()), (handler(0x80) + 1, RAM + 2));
        assert_eq!(vm.get(Reg::Eflags), ON);
        // A page fault has an error code below its frame.
        vm.set(Reg::Rax, RAM - 0x1000);
        assert_eq!(vm.step(), handler(14));
        assert_eq!(frame(vm.get(Reg::Rsp) + 8), (RAM + 2, ON));
    }
}

#[test]
fn a_step_over_hlt_does_not_wait() {
    let vm = Vm::new(1, CAPS, &[HLT, NOP, SPIN]);
    assert_eq!((vm.step(), vm.step()), (RAM + 1, RAM + 2));
    vm.set(Reg::Rip, RAM);
    vm.insert(software(RAM));
    assert_eq!(vm.go(), planted(RAM));
    assert_eq!(vm.step(), RAM + 1, "with a breakpoint on it");
}

#[test]
fn a_step_that_has_not_executed_is_begun_again() {
    for caps in [CAPS, OLD] {
        let vm = Vm::new(1, caps, &[COUNT, COUNT, SPIN]);
        vm.vcpus[0].early_traps.store(3, Ordering::Relaxed);
        assert_eq!((vm.step(), vm.get(Reg::Rbx)), (RAM + 3, 1));
        vm.vcpus[0].early_traps.store(3, Ordering::Relaxed);
        vm.insert(hardware(RAM + 3));
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM + 3..RAM + 6))]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::Step);
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 6, 2), "neither is the one over a breakpoint");
        // Nothing tells these from a jump to itself, which is done at some time.
        assert_eq!(vm.step(), RAM + 6);
        vm.vcpus[0].early_traps.store(u32::MAX, Ordering::Relaxed);
        vm.set(Reg::Rip, RAM);
        assert_eq!(vm.step(), RAM, "one that never executes does not hang");
        assert_eq!(vm.get(Reg::Eflags), ON);
    }
}

#[test]
fn an_interrupted_step_leaves_no_trace() {
    let vm = Vm::new(1, OLD, &[SPIN]);
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 2))]).unwrap();
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Interrupt);
    assert_eq!(vm.get(Reg::Eflags), ON);
}

#[test]
fn a_range_of_steps_ends_where_the_range_does() {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, COUNT, NOP, SPIN]);
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 7))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 7, 2));
    vm.set(Reg::Rip, RAM);
    vm.insert(hardware(RAM + 4));
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 7))]).unwrap();
    assert_eq!(vm.stop().reason, hit(RAM + 4), "or at a breakpoint inside");
}

#[test]
fn a_plain_step_of_a_range_is_one_call_and_an_entry() {
    let vm = Vm::new(1, CAPS, &[COUNT; 300]);
    let vcpu = &vm.vcpus[0];
    let cost = |count: u64| {
        vm.set(Reg::Rip, RAM);
        vm.set(Reg::Rbx, 0);
        let calls = || [&vcpu.config_calls, &vcpu.register_calls].map(|calls| calls.load(Ordering::Relaxed) as u64);
        let before = calls();
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 3 * count))]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::Step);
        let after = calls();
        assert_eq!(vm.get(Reg::Rbx), count);
        [0, 1].map(|n| after[n] - before[n])
    };
    // From the second one on there is a stop that was told.
    let [_, few, many] = [1, 100, 300].map(cost);
    assert_eq!([many[0] - few[0], many[1] - few[1]], [200, 0], "{few:?} and {many:?}");
}

#[test]
fn what_a_range_knows_ends_with_an_instruction_that_changes_it() {
    let vm = Vm::new(1, CAPS, &[COUNT, CLI, COUNT, PUSHFQ, STI, COUNT, PUSHFQ, SPIN]);
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 13))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (RAM + 13, 3));
    assert_eq!([vm.word(STACK - 8), vm.word(STACK - 16)], [2, ON]);
}

#[test]
fn a_range_of_steps_fetches_from_each_page() {
    let vm = Vm::new(1, CAPS, &[SPIN]);
    let start = RAM + 0xff8;
    vm.load(start, &[COUNT; 6]);
    vm.set(Reg::Rip, start);
    vm.session.resume(&[(V0, ResumeAction::StepRange(start..start + 18))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (start + 18, 6));
}

// -- exceptions of the guest's own

#[test]
fn a_foreign_int3_goes_to_the_guest() {
    let vm = Vm::new(1, CAPS, &[INT3, COUNT, NOP, SPIN]);
    vm.insert(software(RAM + 4));
    assert_eq!(vm.go(), planted(RAM + 4));
    assert_eq!(vm.get(Reg::Rbx), 1, "its handler has returned behind it");
    assert_eq!(*vm.vcpus[0].injections.lock().unwrap(), [Exception::Breakpoint]);
}

#[test]
fn a_step_over_a_foreign_int3_ends_at_its_handler() {
    let vm = Vm::new(1, OLD, &[INT3, NOP, SPIN]);
    assert_eq!(vm.step(), handler(3));
    assert_eq!((vm.word(vm.get(Reg::Rsp)), vm.word(vm.get(Reg::Rsp) + 16)), (RAM + 1, ON));
}

#[test]
fn the_guest_has_its_debug_registers_while_the_session_needs_none() {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, &jump(-4)]);
    vm.vcpus[0].break_itself(RAM);
    // It takes no debug register, and getting over it takes some for a step.
    vm.insert(software(RAM + 1));
    let round = || {
        assert_eq!(vm.go(), planted(RAM + 1));
        vm.vcpus[0].own_hits.load(Ordering::Relaxed)
    };
    assert_eq!([round(), round(), round()], [1, 2, 3]);
    vm.insert(hardware(RAM + 0x100));
    assert_eq!([round(), round()], [3, 3], "KVM has the session's in place of them");
    vm.session.remove(hardware(RAM + 0x100)).unwrap();
    assert_eq!([round(), round()], [4, 5]);
    assert!(vm.vcpus[0].injections.lock().unwrap().is_empty());
}

#[test]
fn the_guests_own_single_step_goes_to_the_guest() {
    let vm = Vm::new(1, CAPS, &[NOP, SPIN]);
    vm.insert(hardware(handler(1)));
    vm.vcpus[0].trap_itself();
    assert_eq!(vm.go(), hit(handler(1)));
    let injections = vm.vcpus[0].injections.lock().unwrap().clone();
    assert!(matches!(injections[..], [Exception::Debug { dr6 }] if dr6 & 0x4000 != 0), "{injections:x?}");
}

// -- state

fn stopped() -> (Vm, GuestDebugState) {
    let vm = Vm::new(1, CAPS, &[NOP, COUNT, STORE, &jump(-7)]);
    vm.insert(hardware(RAM));
    vm.insert(software(RAM + 1));
    vm.insert(watch(WatchKind::Write, DATA, 8));
    assert_eq!(vm.go(), hit(RAM));
    vm.session.freeze().unwrap();
    let state = vm.session.state().unwrap();
    (vm, state)
}

/// States that were saved have to be read by every later version.
#[test]
#[cfg(feature = "serde")]
fn a_state_is_written_as_ever() {
    let (_, state) = stopped();
    let written = serde_json::to_string_pretty(&state).unwrap() + "\n";
    let golden = include_str!("data/state-v2-x86_64.json");
    assert_eq!(written, golden, "a change of the format needs a new version and a new file");
    assert_eq!(serde_json::from_str::<GuestDebugState>(golden).unwrap(), state);
}

#[test]
fn a_session_goes_on_elsewhere() {
    let (source, state) = stopped();
    assert_eq!(source.byte(RAM + 1), COUNT[0], "memory at rest has none of it");
    assert_eq!((state.architecture, state.software[0].original), (Architecture::X86_64, [COUNT[0], 0, 0, 0]));
    let vm = source.restored(&state, CAPS).unwrap();
    assert_eq!(vm.session.arm().unwrap(), []);
    let vm = vm.run();
    vm.session.attach().unwrap();
    assert_eq!(vm.stop(), StopEvent { vcpu: V0, reason: hit(RAM) }, "the same stop");
    assert_eq!(vm.go(), planted(RAM + 1));
    assert!(matches!(vm.go(), StopReason::Watchpoint { .. }));
    assert_eq!(vm.go(), hit(RAM), "a stop that was told is not hit again, and every other is");
}

#[test]
fn hardware_breakpoints_without_a_slot_become_software_ones() {
    let (source, state) = stopped();
    let one = guest_debug::DebugCaps { hw_bps: 1, hw_wps: 1, ..CAPS };
    let vm = source.restored(&state, one).unwrap();
    assert_eq!(vm.session.arm().unwrap(), [Gva(RAM)], "the watch has the only slot");
    let vm = vm.run();
    vm.session.attach().unwrap();
    assert_eq!(vm.stop().reason, hit(RAM));
    assert_eq!(vm.go(), planted(RAM + 1));
    assert!(matches!(vm.go(), StopReason::Watchpoint { .. }));
    assert_eq!(vm.go(), hit(RAM), "to the client it is what it was");
}

#[test]
fn the_other_architectures_state_is_refused() {
    let (source, state) = stopped();
    let refused = |error| match error {
        SessionError::State(StateError::Architecture { found, expected }) => (found, expected),
        other => panic!("{other}"),
    };
    let error = <DebugSession>::from_state(&state, 1, CAPS, Arc::new(source.ram.clone()), guest_debug::Restore::Arm);
    assert_eq!(refused(error.unwrap_err()), (Architecture::X86_64, Architecture::Aarch64));
    let foreign = GuestDebugState { architecture: Architecture::Aarch64, ..state };
    let error = source.restored(&foreign, CAPS).map(drop).unwrap_err();
    assert_eq!(refused(error), (Architecture::Aarch64, Architecture::X86_64));
}

#[test]
fn fields_that_no_x86_64_session_has() {
    let (_, state) = stopped();
    let check = |change: &dyn Fn(&mut GuestDebugState)| {
        let mut state = state.clone();
        change(&mut state);
        guest_debug::state::check_as::<guest_debug::X86_64>(&state).unwrap_err().to_string()
    };
    assert_eq!(
        check(&|state| state.software[0].original[1] = 1),
        "software[0].original: must be one byte and zeros behind it"
    );
    assert!(check(&|state| state.hardware[0] = 1 << 60).starts_with("hardware[0]: address 0x1000000000000000 is not"));
    assert!(check(&|state| state.watches[0].length = 100).starts_with("watches[0].length: the watch needs 13 "));
    let watch = |n: u64| guest_debug::state::WatchState { address: DATA + 8 * n, ..state.watches[0] };
    assert!(
        check(&|state| state.watches = (0..5).map(watch).collect()).starts_with("watches: need 5 watchpoint slots"),
    );
}
