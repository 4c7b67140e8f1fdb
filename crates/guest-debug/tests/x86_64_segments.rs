//! A session of a guest whose code segment has a base: pc is not RIP there.

#[allow(dead_code, reason = "shared with the other tests of x86_64")]
mod fake_x86;

use fake_x86::*;
use guest_debug::x86_64::Reg;
use guest_debug::{ResumeAction, StopReason, WatchKind};
use vm_memory::{Bytes, GuestAddress};

/// The base of a segment that begins 256 bytes below the code.
const BASE: u64 = RAM - 0x100;

/// A vCPU that counts in RBX in a loop, in real mode.
fn real_mode(caps: guest_debug::DebugCaps, code: &[&[u8]]) -> Vm {
    let vm = Vm::new(1, caps, code);
    vm.vcpus[0].enter_real_mode((BASE >> 4) as u16);
    vm
}

/// The same, in real mode and as 32-bit code.
fn each_mode(code: &[&[u8]]) -> [Vm; 2] {
    let protected = Vm::new(1, CAPS, code);
    protected.vcpus[0].enter_protected_mode(BASE);
    [real_mode(CAPS, code), protected]
}

#[test]
fn a_breakpoint_is_at_a_linear_address() {
    for at in [hardware(RAM + 1), software(RAM + 1)] {
        for vm in each_mode(&[NOP, COUNT, &jump(-4)]) {
            vm.insert(hardware(0x101));
            vm.insert(at);
            let reason = match at {
                guest_debug::Breakpoint::Hardware(at) => StopReason::HardwareBreakpoint(at),
                _ => StopReason::SoftwareBreakpoint(guest_debug::Gva(RAM + 1)),
            };
            for count in 0..3 {
                assert_eq!(vm.go(), reason, "at the offset 0x101 is none, and each hit is got over");
                assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (0x101, count));
            }
            let told = vm.session.state().unwrap().vcpus[0].told.clone().unwrap();
            assert_eq!(told.pc, RAM + 1);
        }
    }
}

#[test]
fn a_step_and_a_range_are_of_offsets() {
    for vm in each_mode(&[NOP, HLT, COUNT, COUNT, NOP, SPIN]) {
        assert_eq!((vm.step(), vm.step()), (0x101, 0x102), "HLT as well");
        vm.session.resume(&[(V0, ResumeAction::StepRange(0x102..0x108))]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::Step);
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (0x108, 2));
        vm.set(Reg::Rip, 0x102);
        vm.insert(hardware(RAM + 5));
        vm.session.resume(&[(V0, ResumeAction::StepRange(0x102..0x108))]).unwrap();
        assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(guest_debug::Gva(RAM + 5)), "or at a breakpoint");
    }
}

#[test]
fn a_watched_access_ends_a_step() {
    for vm in each_mode(&[STORE, NOP, SPIN]) {
        vm.insert(watch(WatchKind::Write, DATA, 2));
        vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
        assert!(matches!(vm.stop().reason, StopReason::Watchpoint { .. }));
        assert_eq!(vm.get(Reg::Rip), 0x103);
    }
}

#[test]
fn a_real_mode_step_leaves_nothing_of_itself_on_the_stack() {
    for caps in [CAPS, OLD] {
        let vm = real_mode(caps, &[PUSHFQ, INT_80, SPIN]);
        let saved = |at: u64| -> u16 { vm.ram.read_obj(GuestAddress(at)).unwrap() };
        vm.step();
        assert_eq!(u64::from(saved(STACK - 2)) & (TF | IF), IF);
        assert_eq!(vm.step() + (u64::from(SEGMENT) << 4), handler(0x80), "INT goes through the vector table");
        assert_eq!([6, 4, 2].map(|at| saved(STACK - 2 - at)), [0x103, (BASE >> 4) as u16, (2 | IF) as u16]);
        assert_eq!(vm.get(Reg::Eflags) & IF, 0);
    }
}
