//! 8086 code: an instruction's address is CS base plus RIP.

use super::{hardware, software};
use crate::abilities::Ability::{Execute, Int3, RealModeInt, Step};
use crate::abilities::has;
use crate::guest::{CODE, Debugged, Guest, IF, INT_80, NOP, STACK, TF, handler};
use guest_debug::x86_64::Reg;
use guest_debug::{Gva, ResumeAction, StopReason};
use vm_memory::{Bytes, GuestAddress};

/// The code begins at offset 0x100 in it.
const SEGMENT: u16 = (CODE >> 4) as u16 - 0x10;
/// INC BX
const COUNT: &[u8] = &[0x43];

fn real_mode(code: &[&[u8]]) -> Debugged {
    let guest = Guest::new(code).unwrap();
    guest.enter_real_mode(SEGMENT);
    Debugged::with_caps(guest.caps, guest)
}

#[test]
fn steps_and_ranges() {
    if !has(&[Step]) {
        return;
    }
    // JMP to the next one.
    let vm = real_mode(&[NOP, COUNT, &[0xeb, 0], COUNT, COUNT, NOP]);
    assert_eq!([vm.step(), vm.step(), vm.step()], [0x101, 0x102, 0x104]);
    assert_eq!(vm.get(Reg::Eflags) & (TF | IF), IF);
    vm.session.resume(&[(super::V0, ResumeAction::StepRange(0x104..0x106))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (0x106, 3));
    vm.finish();
}

#[test]
fn a_breakpoint_is_hit_whatever_the_segment() {
    if !has(&[Execute]) {
        return;
    }
    for segment in [SEGMENT, (CODE >> 4) as u16] {
        let guest = Guest::new(&[COUNT, COUNT, NOP]).unwrap();
        guest.enter_real_mode(segment);
        let vm = Debugged::with_caps(guest.caps, guest);
        vm.insert(hardware(CODE + 1));
        assert_eq!(vm.go(), StopReason::HardwareBreakpoint(Gva(CODE + 1)));
        let linear = (u64::from(segment) << 4) + vm.get(Reg::Rip);
        assert_eq!((linear, vm.get(Reg::Rbx)), (CODE + 1, 1));
        vm.session.remove(hardware(CODE + 1)).unwrap();
        vm.finish();
        assert_eq!(vm.get(Reg::Rbx), 2);
    }
}

#[test]
fn a_breakpoint_is_got_over() {
    if !has(&[Execute, Step]) {
        return;
    }
    // JMP to the beginning.
    let vm = real_mode(&[COUNT, NOP, &[0xeb, 0xfc]]);
    vm.insert(hardware(CODE));
    for count in 0..4 {
        assert_eq!(vm.go(), StopReason::HardwareBreakpoint(Gva(CODE)));
        assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (0x100, count));
    }
}

#[test]
fn a_software_breakpoint() {
    if !has(&[Int3]) {
        return;
    }
    let vm = real_mode(&[COUNT, COUNT, NOP]);
    vm.insert(software(CODE + 1));
    assert_eq!(vm.go(), StopReason::SoftwareBreakpoint(Gva(CODE + 1)));
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (0x101, 1));
    vm.session.remove(software(CODE + 1)).unwrap();
    vm.finish();
    assert_eq!(vm.get(Reg::Rbx), 2);
}

#[test]
fn a_step_ends_where_int_goes() {
    if !has(&[Step, Execute, RealModeInt]) {
        return;
    }
    let vm = real_mode(&[INT_80]);
    vm.step();
    let (cs, ip) = (vm.get(Reg::Cs), vm.get(Reg::Rip));
    assert_eq!((cs << 4) + ip, handler(0x80));
    let saved: [u16; 3] = vm.guest.ram.read_obj(GuestAddress(STACK - 6)).unwrap();
    assert_eq!([saved[0], saved[1]], [0x102, SEGMENT]);
    assert_eq!(u64::from(saved[2]) & (TF | IF), IF);
}
