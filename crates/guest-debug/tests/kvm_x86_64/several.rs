//! Breakpoints that several vCPUs run into.

use super::hardware;
use crate::abilities::Ability::{Execute, Step};
use crate::abilities::has;
use crate::guest::{CODE, DATA, Debugged, Guest, NOP};
use guest_debug::x86_64::Reg;
use guest_debug::{DebugVcpu as _, Gva, ResumeAction, StopReason};

/// LOCK INC QWORD [RAX]
const COUNT_TOGETHER: &[u8] = &[0xf0, 0x48, 0xff, 0x00];

fn two(code: &[&[u8]]) -> Debugged {
    let guest = Guest::with_vcpus(2, code).unwrap();
    Debugged::with_caps(guest.caps, guest)
}

#[test]
fn two_vcpus_hit_one_breakpoint() {
    if !has(&[Execute]) {
        return;
    }
    let vm = two(&[COUNT_TOGETHER, NOP, COUNT_TOGETHER]);
    vm.insert(hardware(CODE + 4));
    vm.session.resume(&[]).unwrap();
    let first = vm.stop();
    // It stays: getting over the breakpoint takes a step, which not every host has that has these.
    vm.session.resume(&[(first.vcpu, ResumeAction::Stay)]).unwrap();
    let second = vm.stop();
    assert_eq!([first.reason, second.reason], [StopReason::HardwareBreakpoint(Gva(CODE + 4)); 2]);
    assert_ne!(first.vcpu, second.vcpu);
    assert_eq!(vm.word(DATA), 2, "neither is behind it");
    vm.session.remove(hardware(CODE + 4)).unwrap();
    vm.finish();
    assert_eq!(vm.word(DATA), 4);
}

#[test]
fn every_hit_of_two_vcpus_is_told_once() {
    const ROUNDS: u64 = 25;
    if !has(&[Execute, Step]) {
        return;
    }
    // DEC ECX; JNZ to the beginning.
    let vm = two(&[COUNT_TOGETHER, &[0xff, 0xc9], &[0x75, 0xf8]]);
    for vcpu in &vm.guest.vcpus {
        vcpu.set_u64(Reg::Rcx, ROUNDS).unwrap();
    }
    vm.insert(hardware(CODE));
    let mut hits = [0, 0];
    while hits != [ROUNDS; 2] {
        vm.session.resume(&[]).unwrap();
        let stop = vm.stop();
        assert_eq!(stop.reason, StopReason::HardwareBreakpoint(Gva(CODE)));
        let vcpu = stop.vcpu.0 as usize;
        hits[vcpu] += 1;
        let left = vm.guest.vcpus[vcpu].get_u64(Reg::Rcx).unwrap();
        assert_eq!(hits[vcpu], ROUNDS - left + 1, "the guest's count of {}", stop.vcpu);
    }
    vm.finish();
    assert_eq!(vm.word(DATA), 2 * ROUNDS);
}
