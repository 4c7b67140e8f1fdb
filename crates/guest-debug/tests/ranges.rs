//! Ranges of steps, whose plain stretches a vCPU runs through at once.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "shared by tests, each of which uses a part")]
mod fake;
#[allow(dead_code, reason = "shared by tests, each of which uses a part")]
mod scripted;

use fake::*;
use guest_debug::arm64::{Pstate, Reg};
use guest_debug::{Entry, ResumeAction, VcpuDebugger, Wait};
use scripted::*;

/// Steps into a range that ends in a branch, of which the first instruction is executed and the vCPU is in the midst of the others.
/// The guest's own PSTATE is `own`.
fn within_a_range(own: u64) -> (Script, VcpuDebugger) {
    let script = Script::new(&[COUNT, COUNT, COUNT, branch(0x40)]);
    script.set(Reg::Pstate, own);
    script.session.attach().unwrap();
    script.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 16))]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    script.set(Reg::Pc, RAM + 4);
    debugger.on_debug_exit(&*script.vcpu, STEPPED).unwrap();
    script.enter(&mut debugger);
    assert!(!script.vcpu.config.lock().unwrap().single_step);
    (script, debugger)
}

/// An exception that returns to `elr`; `notice` is how it comes out.
fn a_fault_in_a_range(own: u64, elr: u64, notice: impl FnOnce(&Script, &mut VcpuDebugger)) {
    let (script, mut debugger) = within_a_range(own);
    script.set(Reg::ElrEl1, elr);
    script.set(Reg::SpsrEl1, script.get(Reg::Pstate));
    script.set(Reg::Pstate, Pstate::EL1H | Pstate::DAIF);
    script.set(Reg::Pc, VBAR + 0x200);
    notice(&script, &mut debugger);
    assert!(debugger.stop_requested(), "the handler is outside the range");
    assert_eq!(script.get(Reg::Pc), VBAR + 0x200);
    assert_eq!(script.get(Reg::SpsrEl1), own, "what the handler returns to, {elr:#x}");
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H | Pstate::DAIF, "{elr:#x}");
}

/// The instruction in the middle, the one behind the stretch where that does not branch, and what the branch leads to. With D
/// set by the guest itself, only where it returns to tells an exception.
#[test]
fn a_fault_in_a_range_is_noticed_at_the_vector() {
    for own in [Pstate::EL1H, Pstate::EL1H | Pstate::D] {
        for elr in [RAM + 8, RAM + 12, RAM + 16, RAM + 12 + 0x40] {
            a_fault_in_a_range(own, elr, |script, debugger| {
                debugger.on_debug_exit(&*script.vcpu, AT_BREAKPOINT).unwrap()
            });
        }
    }
}

#[test]
fn a_fault_in_a_range_is_noticed_when_the_vcpu_is_stopped() {
    a_fault_in_a_range(Pstate::EL1H, RAM + 8, |script, debugger| {
        script.session.interrupt();
        assert_eq!(debugger.wait(), Wait::Run);
        assert_eq!(debugger.before_run(&*script.vcpu).unwrap(), Entry::Again);
    });
}

/// Where a vCPU in the midst of a range stops for the client, and what the client reads.
fn stopped_in_a_range(pc: u64) -> (u64, Vec<String>) {
    let (script, mut debugger) = within_a_range(Pstate::EL1H);
    script.set(Reg::Pc, pc);
    assert_ne!(script.get(Reg::Pstate), Pstate::EL1H);
    script.session.interrupt();
    assert_eq!(debugger.wait(), Wait::Run);
    assert_eq!(debugger.before_run(&*script.vcpu).unwrap(), Entry::Again);
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H, "no mask is left behind");
    (script.get(Reg::Pc), script.session.take_messages().texts)
}

#[test]
fn a_range_that_is_cut_short_anywhere_leaves_no_mask() {
    for pc in [RAM + 4, RAM + 8, RAM + 12] {
        assert_eq!(stopped_in_a_range(pc), (pc, Vec::new()));
    }
}

#[test]
fn a_branch_that_becomes_a_nop_is_caught_behind_it() {
    let (script, mut debugger) = within_a_range(Pstate::EL1H);
    let armed = |at: u64| script.vcpu.config.lock().unwrap().hw.breakpoints.iter().any(|slot| slot.address == at);
    assert!(armed(RAM + 12 + 0x40) && armed(RAM + 16) && armed(VBAR + 0x200));
    script.set(Reg::Pc, RAM + 16);
    debugger.on_debug_exit(&*script.vcpu, AT_BREAKPOINT).unwrap();
    assert!(debugger.stop_requested(), "the range ends there");
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H);
}

#[test]
fn a_vcpu_that_has_run_past_a_stretch_is_told() {
    // Another vCPU has written a branch into it.
    let (pc, texts) = stopped_in_a_range(RAM + 0x800);
    assert_eq!(pc, RAM + 0x800);
    assert!(matches!(&*texts, [text] if text.contains("changed while it was stepped through")), "{texts:?}");
}

#[test]
fn a_stretch_is_over_at_its_end_and_nowhere_before() {
    let (script, mut debugger) = within_a_range(Pstate::EL1H);
    // As after an access to a device in the middle, which the VMM has completed.
    script.set(Reg::Pc, RAM + 8);
    debugger.after_io(&*script.vcpu).unwrap();
    assert!(!debugger.stop_requested());
    script.set(Reg::Pc, RAM + 12 + 0x40);
    debugger.after_io(&*script.vcpu).unwrap();
    assert!(debugger.stop_requested());
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H);
}
