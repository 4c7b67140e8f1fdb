//! Conditions, ignore counts and messages of breakpoints, on fake vCPUs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use fake::*;
use guest_debug::agent::{Comparison, Expression, Operand, Width, compare, message};
use guest_debug::arm64::Reg;
use guest_debug::state::check;
use guest_debug::{
    Breakpoint, DebugExit, Entry, Gva, HitCounts, HitRule, Restore, ResumeAction, SessionError, StopReason, VcpuId,
    VcpuState, Wait, WatchKind,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// [`LOOP`], with an instruction at the breakpoint that only a CPU can execute.
const STORE: [u32; 4] = [NOP, COUNT, STR_X1_X0, branch(-8)];
const HIT: u64 = RAM + 8;

/// Each kind of breakpoint on each kind of instruction.
const CASES: [(Breakpoint, [u32; 4]); 4] = [
    (Breakpoint::Hardware(Gva(HIT)), LOOP),
    (Breakpoint::Software(Gva(HIT)), LOOP),
    (Breakpoint::Hardware(Gva(HIT)), STORE),
    (Breakpoint::Software(Gva(HIT)), STORE),
];

/// vCPUs that execute `code`, each with memory of its own to store in.
fn start(vcpus: u32, code: &[u32]) -> Vm {
    let vm = Vm::new(vcpus, code).start();
    for id in 0..vcpus {
        vm.set(id, Reg::X(0), RAM + 0x3000 + u64::from(id) * 8);
    }
    vm
}

fn when(condition: Expression) -> HitRule {
    HitRule { conditions: vec![condition], commands: Vec::new() }
}

fn x1_is(value: u64) -> Expression {
    compare(Operand::Register(1), Comparison::Equal, value).unwrap()
}

fn counts(vm: &Vm, breakpoint: Breakpoint) -> HitCounts {
    vm.session.rules().into_iter().find(|info| info.breakpoint == breakpoint).unwrap().counts
}

fn eventually(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < end, "it did not happen");
        std::thread::yield_now();
    }
}

fn reason_of(breakpoint: Breakpoint) -> StopReason {
    match breakpoint {
        Breakpoint::Hardware(at) => StopReason::HardwareBreakpoint(at),
        Breakpoint::Software(at) => StopReason::SoftwareBreakpoint(at),
        Breakpoint::Watch { kind, address, .. } => StopReason::Watchpoint { kind, address },
    }
}

#[test]
fn a_condition_stops_at_the_hit_that_it_is_true_for() {
    for (breakpoint, code) in CASES {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(100))).unwrap();
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, reason_of(breakpoint));
        assert_eq!((vm.pc(0), vm.get(0, Reg::X(1))), (HIT, 100));
        assert_eq!(counts(&vm, breakpoint), HitCounts { reached: 100, hits: 1, ignore: 0 });
        // From a true one it goes on as from any.
        vm.session.set_rule(breakpoint, when(x1_is(150))).unwrap();
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, reason_of(breakpoint));
        assert_eq!(vm.get(0, Reg::X(1)), 150);
        assert_eq!(counts(&vm, breakpoint), HitCounts { reached: 150, hits: 2, ignore: 0 });
        // Without the rule every hit stops.
        assert!(vm.session.clear_rule(breakpoint).unwrap());
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, reason_of(breakpoint));
        assert_eq!(vm.get(0, Reg::X(1)), 151);
    }
}

#[test]
fn any_true_condition_stops() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(HIT)).unwrap();
    let conditions = vec![x1_is(7), x1_is(5), x1_is(3)];
    vm.session.set_rule(hardware(HIT), HitRule { conditions, commands: Vec::new() }).unwrap();
    for expected in [3, 5, 7] {
        vm.session.resume(&[]).unwrap();
        vm.stop();
        assert_eq!(vm.get(0, Reg::X(1)), expected);
    }
}

#[test]
fn a_false_condition_stops_no_other_vcpu() {
    for (breakpoint, code) in CASES {
        // vCPU 1 runs code of its own, where it is kicked by nobody and parks for nobody: it is entered once.
        let vm = start(2, &code);
        vm.load(RAM + 0x1000, &LOOP);
        vm.set(1, Reg::Pc, RAM + 0x1000);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(0))).unwrap();
        vm.session.resume(&[]).unwrap();
        eventually(|| vm.get(1, Reg::X(1)) > 0);
        let entries = || vm.vcpus[1].entries.load(Ordering::Relaxed);
        let before = entries();
        eventually(|| vm.get(0, Reg::X(1)) > 500);
        // For a planted instruction that only the CPU can execute the others wait.
        if (breakpoint, code) != (software(HIT), STORE) {
            assert_eq!(entries(), before, "{breakpoint}");
            assert_eq!(vm.session.vcpu_states(), [VcpuState::Running; 2]);
        }
        assert_eq!(vm.session.take_stop().unwrap(), None, "no client hears of it");
    }
}

#[test]
fn what_registers_are_enough_for_costs_one_exit() {
    for (breakpoint, code, exits) in [(hardware(HIT), LOOP, 1), (software(HIT), LOOP, 1), (hardware(HIT), STORE, 2)] {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(1000))).unwrap();
        vm.session.resume(&[]).unwrap();
        vm.stop();
        let entries = vm.vcpus[0].entries.load(Ordering::Relaxed);
        assert!((1000 * exits - 10..1000 * exits + 10).contains(&entries), "{breakpoint}: {entries}");
    }
}

#[test]
fn two_breakpoints_at_one_place_are_judged_each() {
    let vm = start(1, &LOOP);
    for (breakpoint, value) in [(hardware(HIT), 10), (software(HIT), 5)] {
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(value))).unwrap();
    }
    for (breakpoint, value) in [(software(HIT), 5), (hardware(HIT), 10)] {
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, reason_of(breakpoint));
        assert_eq!(vm.get(0, Reg::X(1)), value);
    }
}

#[test]
fn both_vcpus_hit_and_none_gets_past_unseen() {
    for (breakpoint, code) in CASES {
        let vm = start(2, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(300))).unwrap();
        vm.session.resume(&[]).unwrap();
        let stop = vm.stop();
        assert_eq!(stop.reason, reason_of(breakpoint));
        assert_eq!(vm.get(stop.vcpu.0, Reg::X(1)), 300);
        // Each vCPU counts before it comes by: what it has counted it has met, but for one that it is about to meet.
        let counted = vm.get(0, Reg::X(1)) + vm.get(1, Reg::X(1));
        let about_to = (0..2).filter(|id| VcpuId(*id) != stop.vcpu && vm.pc(*id) == HIT).count() as u64;
        assert_eq!(counts(&vm, breakpoint).reached, counted - about_to, "{breakpoint}");
        assert_eq!(vm.session.read_memory(V0, Gva(HIT), 4).unwrap(), code[2].to_le_bytes());
    }
}

#[test]
fn a_client_stops_a_vm_whose_vcpus_pass_all_the_time() {
    for (breakpoint, code) in CASES {
        let vm = start(2, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(0))).unwrap();
        for _ in 0..100 {
            vm.session.resume(&[]).unwrap();
            std::thread::yield_now();
            vm.session.interrupt();
            assert_eq!(vm.stop().reason, StopReason::Interrupt);
            assert_eq!(vm.session.vcpu_states(), [VcpuState::Stopped; 2]);
            let counted = vm.get(0, Reg::X(1)) + vm.get(1, Reg::X(1));
            let about_to = (0..2).filter(|id| vm.pc(*id) == HIT).count() as u64;
            assert_eq!(counts(&vm, breakpoint).reached, counted - about_to, "what was cut short is not counted twice");
        }
        vm.session.detach().unwrap();
        assert_eq!(vm.word(HIT), code[2]);
        assert!(vm.session.rules().is_empty(), "the next client has its own");
    }
}

#[test]
fn a_watch_has_a_condition() {
    // X1 to memory, and on.
    let vm = Vm::new(1, &[COUNT, STR_X1_X0, branch(-8)]).start();
    let at = RAM + 0x2000;
    vm.set(0, Reg::X(0), at);
    let watch = write_watch(at, 8);
    vm.session.insert(V0, watch).unwrap();
    // The store has not happened yet when it is looked at: memory holds what the one before has stored.
    let stored = compare(Operand::Memory(at, Width::Double), Comparison::Equal, 41).unwrap();
    vm.session.set_rule(watch, when(stored)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(at) });
    assert_eq!(vm.get(0, Reg::X(1)), 42);
    assert_eq!(counts(&vm, watch), HitCounts { reached: 42, hits: 1, ignore: 0 });
    vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!(vm.session.read_memory(V0, Gva(at), 1).unwrap(), [42]);
}

#[test]
fn two_watches_of_one_store_are_judged_each() {
    let vm = Vm::new(1, &[COUNT, STR_X1_X0, branch(-8)]).start();
    let at = RAM + 0x2000;
    vm.set(0, Reg::X(0), at);
    let (whole, half) = (write_watch(at, 8), write_watch(at + 4, 4));
    for (watch, value) in [(whole, 10), (half, 5)] {
        vm.session.insert(V0, watch).unwrap();
        vm.session.set_rule(watch, when(x1_is(value))).unwrap();
    }
    for (value, address) in [(5, at + 4), (10, at)] {
        vm.session.resume(&[]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(address) });
        assert_eq!(vm.get(0, Reg::X(1)), value);
    }
}

#[test]
fn hits_are_ignored_as_often_as_asked() {
    for (breakpoint, code) in CASES {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_ignore_count(breakpoint, 9).unwrap();
        vm.session.resume(&[]).unwrap();
        vm.stop();
        assert_eq!(vm.get(0, Reg::X(1)), 10);
        assert_eq!(counts(&vm, breakpoint), HitCounts { reached: 10, hits: 10, ignore: 0 });
        // Only hits that count are.
        let even = compare(Operand::Register(1), Comparison::Above, 20).unwrap();
        vm.session.set_rule(breakpoint, when(even)).unwrap();
        vm.session.set_ignore_count(breakpoint, 4).unwrap();
        vm.session.resume(&[]).unwrap();
        vm.stop();
        assert_eq!(vm.get(0, Reg::X(1)), 25);
        assert_eq!(counts(&vm, breakpoint), HitCounts { reached: 25, hits: 15, ignore: 0 });
    }
}

fn says(text: &str) -> HitRule {
    let even = compare(Operand::Register(1), Comparison::BelowOrEqual, 3).unwrap();
    HitRule { conditions: vec![even], commands: vec![message(text, &[Operand::Register(1)]).unwrap()] }
}

#[test]
fn a_message_is_printed_in_place_of_a_stop() {
    for (breakpoint, code) in CASES {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, says("round %lu\\n")).unwrap();
        vm.session.resume(&[]).unwrap();
        eventually(|| vm.get(0, Reg::X(1)) > 50);
        assert_eq!(vm.session.take_stop().unwrap(), None);
        assert_eq!(vm.session.take_messages().texts, ["round 1\n", "round 2\n", "round 3\n"]);
        assert_eq!(counts(&vm, breakpoint).hits, 3);
    }
}

#[test]
fn the_doorbell_rings_for_a_message_and_what_nobody_fetches_is_counted() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(HIT)).unwrap();
    let commands = vec![message(&"x".repeat(1000), &[]).unwrap()];
    vm.session.set_rule(hardware(HIT), HitRule { conditions: Vec::new(), commands }).unwrap();
    vm.session.resume(&[]).unwrap();
    eventually(|| vm.get(0, Reg::X(1)) > 200);
    assert!(vm.session.stop_fd().read().is_ok());
    vm.session.interrupt();
    vm.stop();
    let messages = vm.session.take_messages();
    assert_eq!(messages.texts.len(), 65, "64 KiB wait");
    assert_eq!(messages.texts.len() as u64 + messages.dropped, counts(&vm, hardware(HIT)).hits);
}

#[test]
fn a_condition_without_a_value_stops_and_says_why() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(HIT)).unwrap();
    let nowhere = compare(Operand::Memory(0x10, Width::Word), Comparison::Equal, 0).unwrap();
    vm.session.set_rule(hardware(HIT), when(nowhere)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(HIT)));
    let texts = vm.session.take_messages().texts;
    assert!(texts[0].contains("4 bytes at 0x10 can't be read"), "{texts:?}");
    // A command that has none prints that in the place of its text.
    let commands = vec![message("%s", &[Operand::Register(2)]).unwrap()];
    vm.session.set_rule(hardware(HIT), HitRule { conditions: vec![x1_is(5)], commands }).unwrap();
    vm.session.resume(&[]).unwrap();
    eventually(|| vm.get(0, Reg::X(1)) > 10);
    let texts = vm.session.take_messages().texts;
    assert!(texts.len() == 1 && texts[0].contains("64 bytes at 0x0 can't be read"), "{texts:?}");
}

#[test]
fn memory_is_looked_at_without_the_sessions_own_instructions() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, software(HIT)).unwrap();
    let code = compare(Operand::Memory(HIT, Width::Word), Comparison::Equal, NOP.into()).unwrap();
    vm.session.set_rule(software(HIT), when(code)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(HIT)));
}

#[test]
fn a_range_of_steps_goes_through_a_false_condition() {
    for (breakpoint, code) in CASES {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        vm.session.set_rule(breakpoint, when(x1_is(20))).unwrap();
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 16))]).unwrap();
        assert_eq!(vm.stop().reason, reason_of(breakpoint));
        assert_eq!(vm.get(0, Reg::X(1)), 20);
        assert_eq!(counts(&vm, breakpoint), HitCounts { reached: 20, hits: 1, ignore: 0 });
        // And ends behind it, where the range does.
        vm.session.set_rule(breakpoint, when(x1_is(0))).unwrap();
        vm.session.resume(&[(V0, ResumeAction::StepRange(RAM + 4..RAM + 12))]).unwrap();
        assert_eq!((vm.stop().reason, vm.pc(0)), (StopReason::Step, RAM + 12));
    }
}

#[test]
fn rules_are_saved_and_go_on_at_the_other_side() {
    for (breakpoint, code) in CASES {
        let vm = start(1, &code);
        vm.session.insert(V0, breakpoint).unwrap();
        let late = compare(Operand::Register(1), Comparison::AboveOrEqual, 5000).unwrap();
        vm.session.set_rule(breakpoint, when(late)).unwrap();
        vm.session.set_ignore_count(breakpoint, 3).unwrap();
        vm.session.resume(&[]).unwrap();
        eventually(|| vm.get(0, Reg::X(1)) > 10);
        for _ in 0..20 {
            // At any moment: what was under way is neither lost nor counted twice.
            vm.session.freeze().unwrap();
            let met = vm.get(0, Reg::X(1)) - u64::from(vm.pc(0) == HIT);
            assert_eq!(counts(&vm, breakpoint).reached, met);
            vm.session.thaw().unwrap();
        }
        vm.session.freeze().unwrap();
        let state = vm.session.state().unwrap();
        assert_eq!(check(&state), Ok(()));
        assert_eq!(state.rules.len(), 1);
        let other = vm.restored(&state, CAPS, Restore::Arm);
        other.session.arm().unwrap();
        let other = other.run();
        // Nobody is attached there yet, and nobody is needed for a hit that does not count.
        eventually(|| other.session.vcpu_states() == [VcpuState::Stopped]);
        assert_eq!(other.get(0, Reg::X(1)), 5003);
        other.session.attach().unwrap();
        assert_eq!(other.stop().reason, reason_of(breakpoint));
        assert_eq!(counts(&other, breakpoint), HitCounts { reached: 5003, hits: 4, ignore: 0 });
    }
}

#[test]
fn a_stop_that_is_told_again_counts_once() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(HIT)).unwrap();
    vm.session.set_rule(hardware(HIT), when(x1_is(3))).unwrap();
    vm.session.resume(&[]).unwrap();
    vm.stop();
    vm.session.freeze().unwrap();
    let other = vm.restored(&vm.session.state().unwrap(), CAPS, Restore::Arm);
    other.session.arm().unwrap();
    let other = other.run();
    other.session.attach().unwrap();
    other.stop();
    assert_eq!(counts(&other, hardware(HIT)), HitCounts { reached: 3, hits: 1, ignore: 0 });
}

#[test]
fn a_software_breakpoint_that_stands_in_has_the_hardware_breakpoints_rule() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.insert(V0, hardware(HIT)).unwrap();
    vm.session.set_rule(hardware(HIT), when(x1_is(40))).unwrap();
    vm.session.freeze().unwrap();
    let few = guest_debug::DebugCaps { hw_bps: 0, ..CAPS };
    let other = vm.restored(&vm.session.state().unwrap(), few, Restore::Arm);
    assert_eq!(other.session.arm().unwrap(), [Gva(HIT)]);
    let other = other.run();
    other.session.attach().unwrap();
    other.session.resume(&[]).unwrap();
    assert_eq!(other.stop().reason, StopReason::HardwareBreakpoint(Gva(HIT)));
    assert_eq!(other.get(0, Reg::X(1)), 40);
}

#[test]
fn a_rule_outlives_the_insertion() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.set_rule(hardware(HIT), when(x1_is(5))).unwrap();
    for _ in 0..2 {
        vm.session.insert(V0, hardware(HIT)).unwrap();
        vm.session.remove(hardware(HIT)).unwrap();
    }
    vm.session.insert(V0, hardware(HIT)).unwrap();
    vm.session.resume(&[]).unwrap();
    vm.stop();
    assert_eq!(vm.get(0, Reg::X(1)), 5);
}

#[test]
fn what_is_refused() {
    let vm = Vm::new(1, &LOOP).start();
    let session = &vm.session;
    let refused = |breakpoint| session.set_rule(breakpoint, when(x1_is(0))).unwrap_err();
    assert!(matches!(refused(hardware(HIT + 1)), SessionError::Address(_)));
    assert!(matches!(refused(software(HIT + 2)), SessionError::Address(_)));
    assert!(matches!(refused(write_watch(HIT, 0)), SessionError::Watch(_)));
    let many = HitRule { conditions: vec![x1_is(0); 17], commands: Vec::new() };
    assert!(matches!(session.set_rule(hardware(HIT), many), Err(SessionError::TooManyRules)));
    // Those that are not inserted make room; those that are do not.
    for index in 0..1100 {
        session.set_ignore_count(software(RAM + 0x4000 + index * 4), 1).unwrap();
    }
    assert_eq!(session.rules().len(), 1024);
    for info in session.rules() {
        session.insert(V0, info.breakpoint).unwrap();
    }
    assert!(matches!(session.set_ignore_count(hardware(HIT), 1), Err(SessionError::TooManyRules)));
    assert_eq!(session.rules().len(), 1024);
    session.detach().unwrap();
    assert!(matches!(session.set_rule(hardware(HIT), HitRule::default()), Err(SessionError::NotAttached)));
}

#[test]
fn rules_change_only_while_everything_is_stopped() {
    let vm = Vm::new(1, &LOOP).start();
    vm.session.resume(&[]).unwrap();
    let error = vm.session.set_rule(hardware(HIT), when(x1_is(0))).unwrap_err();
    assert!(matches!(error, SessionError::NotStopped(V0)));
}

/// A vCPU's thread may be busy in the VMM with a reset, for which every vCPU has to leave the guest.
#[test]
fn a_vcpu_that_does_not_come_to_wait_keeps_no_other_one() {
    let vm = Vm::new(2, &STORE);
    vm.session.attach().unwrap();
    vm.session.insert(V0, software(HIT)).unwrap();
    vm.session.set_rule(software(HIT), when(x1_is(1))).unwrap();
    vm.session.resume(&[]).unwrap();
    let [mut first, mut busy] = [V0, V1].map(|id| vm.session.vcpu_thread(id).unwrap());
    assert_eq!((first.wait(), busy.wait()), (Wait::Run, Wait::Run));
    assert_eq!(first.before_run(&*vm.vcpus[0]).unwrap(), Entry::Run);
    vm.set(0, Reg::Pc, HIT);
    let hit = DebugExit { syndrome: 0x3c << 26 | 1 << 25 | 0x67db, far: 0 };
    let started = Instant::now();
    first.on_debug_exit(&*vm.vcpus[0], hit).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!busy.stop_requested() && !first.stop_requested());
    assert_eq!((vm.session.take_stop().unwrap(), vm.pc(0)), (None, HIT), "it comes by again");
    assert_eq!(counts(&vm, software(HIT)).reached, 0);
    // Once the other one waits it gets over it.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !busy.stop_requested() {
                std::thread::yield_now();
            }
            assert_eq!(busy.wait(), Wait::Run);
        });
        first.on_debug_exit(&*vm.vcpus[0], hit).unwrap();
        assert_eq!(vm.word(HIT), STORE[2]);
        assert_eq!(first.before_run(&*vm.vcpus[0]).unwrap(), Entry::Run);
        vm.set(0, Reg::Pc, HIT + 4);
        let step = DebugExit { syndrome: 0x32 << 26 | 1 << 25 | 0x22, far: 0 };
        first.on_debug_exit(&*vm.vcpus[0], step).unwrap();
    });
    assert_ne!(vm.word(HIT), STORE[2], "planted again");
    assert_eq!(counts(&vm, software(HIT)).reached, 1);
}

#[test]
fn a_planted_hypervisor_call_stops_whatever_its_condition_is() {
    const HVC: u32 = 0xd400_0002;
    let vm = start(2, &[NOP, COUNT, HVC, branch(-8)]);
    vm.session.insert(V0, software(HIT)).unwrap();
    vm.session.set_rule(software(HIT), when(x1_is(0))).unwrap();
    vm.session.resume(&[(V1, ResumeAction::Stay)]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(HIT)));
    assert!(vm.session.take_messages().texts[0].contains("HVC or SMC"));
}
