//! Sessions of x86_64 guests on KVM itself. Each test says what it needs of KVM, and is skipped where that is missing.

#![cfg(all(target_arch = "x86_64", target_os = "linux", feature = "kvm"))]
#![expect(clippy::unwrap_used, reason = "tests")]

mod abilities;
mod guest;
mod real_mode;
mod several;

use abilities::Ability::{BlockInterrupts, Data, Execute, Float, Int, Int3, PageFault, Step, StepSti, Syscall};
use abilities::STEPS;
use abilities::{can, has};
use guest::*;
use guest_debug::x86_64::slot::Condition;
use guest_debug::x86_64::stop::{Cause, Stop, decode};
use guest_debug::x86_64::{HwDebug, Reg, Slot, VaBits};
use guest_debug::{Breakpoint, DebugConfig, DebugVcpu as _, Gva, ResumeAction, StopReason, WatchKind};
use vm_memory::{Bytes, GuestAddress};

const PUSHFQ: &[u8] = &[0x9c];
const POPFQ: &[u8] = &[0x9d];
const CLI: &[u8] = &[0xfa];
const HLT: &[u8] = &[0xf4];
/// MOV WORD [R13 + 0xf0], 0x1ff: the APIC is on. Then MOV DWORD [R13 + 0x300], 0x40000 | IRQ: an interrupt to itself.
const SELF_INTERRUPT: &[u8] =
    &[0x41, 0xc7, 0x85, 0xf0, 0, 0, 0, 0xff, 0x01, 0, 0, 0x41, 0xc7, 0x85, 0, 3, 0, 0, IRQ, 0, 4, 0];

fn hardware(address: u64) -> Breakpoint {
    Breakpoint::Hardware(Gva(address))
}

fn software(address: u64) -> Breakpoint {
    Breakpoint::Software(Gva(address))
}

fn watch(kind: WatchKind, address: u64, length: u64) -> Breakpoint {
    Breakpoint::Watch { kind, address: Gva(address), length }
}

// -- steps

#[test]
fn each_instruction_is_one_step() {
    if !has(&[Step]) {
        return;
    }
    // XOR EAX, EAX; CPUID; MOV ECX, 0x10; RDMSR; INC RBX; JMP to the next one.
    let code: [&[u8]; 6] = [&[0x31, 0xc0], &[0x0f, 0xa2], &[0xb9, 0x10, 0, 0, 0], &[0x0f, 0x32], COUNT, &[0xeb, 0]];
    let vm = Debugged::new(&code).unwrap();
    let mut at = CODE;
    for insn in code {
        at += insn.len() as u64;
        assert_eq!(vm.step(), at, "behind {insn:x?}");
    }
    assert_eq!(vm.get(Reg::Eflags) & (TF | IF), IF);
    vm.finish();
}

#[test]
fn no_step_enters_a_pending_interrupt() {
    if !has(&[Step]) {
        return;
    }
    let guest = || Guest::new(&[CLI, SELF_INTERRUPT, STI, NOP, COUNT, NOP, NOP]).unwrap();
    // As KVM has it, and as it is without KVM_GUESTDBG_BLOCKIRQ.
    for flags in [guest().caps.control_flags, 0] {
        let guest = guest();
        let vm = Debugged::with_caps(guest_debug::DebugCaps { control_flags: flags, ..guest.caps }, guest);
        let mut at = CODE;
        let lengths: &[u64] = if can(StepSti) { &[1, 11, 11, 1, 1, 3, 1] } else { &[1, 11, 11, 2, 3, 1] };
        for length in lengths {
            at += length;
            assert_eq!(vm.step(), at, "with flags {flags:#x}");
        }
        assert_eq!((vm.get(Reg::R(14)), vm.get(Reg::Eflags) & IF), (0, IF));
        vm.finish();
        assert_eq!(vm.get(Reg::R(14)), 1, "it comes when the guest runs");
    }
}

#[test]
fn kvm_holds_interrupts_back_by_itself() {
    if !has(&[Step, BlockInterrupts]) {
        return;
    }
    let guest = Guest::new(&[CLI, SELF_INTERRUPT, STI, NOP, NOP]).unwrap();
    let step = |block_interrupts| {
        let config = DebugConfig { enabled: true, single_step: true, block_interrupts, hw: HwDebug::default() };
        let before = guest.vcpu.get_u64(Reg::Rip).unwrap();
        let attempt = || {
            guest.vcpu.set_guest_debug(&config).unwrap();
            guest.run().unwrap().pc
        };
        (0..STEPS).map(|_| attempt()).find(|pc| *pc != before).expect("no step executes")
    };
    let places: &[u64] = if can(StepSti) { &[1, 12, 23, 24, 25] } else { &[1, 12, 23, 25] };
    for place in places {
        assert_eq!(step(true), CODE + place);
    }
    assert_ne!(step(false), CODE + 26, "without the flag the interrupt comes first");
}

#[test]
fn flags_are_the_guests_own_under_steps() {
    if !has(&[Step]) {
        return;
    }
    let guest = || Guest::new(&[PUSHFQ, CLI, POPFQ, CLI, PUSHFQ, STI, NOP, POPFQ]).unwrap();
    for flags in [guest().caps.control_flags, 0] {
        let guest = guest();
        let vm = Debugged::with_caps(guest_debug::DebugCaps { control_flags: flags, ..guest.caps }, guest);
        let wanted: &[bool] = if can(StepSti) {
            &[true, false, true, false, false, true, true, false]
        } else {
            &[true, false, true, false, false, true, false]
        };
        for wanted in wanted {
            let pc = vm.step();
            assert_eq!(vm.get(Reg::Eflags) & IF != 0, *wanted, "at {pc:#x}, with flags {flags:#x}");
        }
        assert_eq!(vm.word(STACK - 8) & (TF | IF), 0, "what the last PUSHFQ saved");
        vm.set(Reg::Rip, CODE);
        vm.set(Reg::Eflags, ON);
        vm.step();
        assert_eq!(vm.word(STACK - 8) & (TF | IF), IF, "what the first one saves");
    }
}

#[test]
fn a_step_over_hlt_does_not_wait() {
    if !has(&[Step]) {
        return;
    }
    let vm = Debugged::new(&[HLT, NOP, NOP]).unwrap();
    assert_eq!((vm.step(), vm.step()), (CODE + 1, CODE + 2));
}

#[test]
fn mov_ss_takes_the_next_instruction_along() {
    if !has(&[Step]) {
        return;
    }
    // MOV EAX, 0x10; MOV SS, EAX; NOP; NOP
    let vm = Debugged::new(&[&[0xb8, 0x10, 0, 0, 0], &[0x8e, 0xd0], NOP, NOP]).unwrap();
    assert_eq!(vm.step(), CODE + 5);
    let next = vm.step();
    assert!([CODE + 7, CODE + 8].contains(&next), "{next:#x}");
    vm.finish();
}

#[test]
fn a_step_ends_where_syscall_goes() {
    if !has(&[Step, Execute, Syscall]) {
        return;
    }
    let vm = Debugged::new(&[SYSCALL]).unwrap();
    assert_eq!(vm.step(), ENTRY);
    assert_eq!(vm.get(Reg::R(11)) & (TF | IF), IF);
    assert_eq!(vm.get(Reg::Eflags) & IF, 0);
}

#[test]
fn a_step_ends_where_int_goes() {
    if !has(&[Step, Execute, Int]) {
        return;
    }
    let vm = Debugged::new(&[INT_80]).unwrap();
    assert_eq!(vm.step(), handler(0x80));
    assert_eq!(vm.word(vm.get(Reg::Rsp) + 16) & (TF | IF), IF);
}

#[test]
fn a_step_ends_where_a_page_fault_goes() {
    if !has(&[Step, Execute, PageFault]) {
        return;
    }
    let vm = Debugged::new(&[STORE]).unwrap();
    vm.set(Reg::Rax, UNMAPPED);
    assert_eq!(vm.step(), handler(14));
    assert_eq!(vm.word(vm.get(Reg::Rsp) + 24) & (TF | IF), IF);
}

#[test]
fn a_range_of_steps() {
    if !has(&[Step]) {
        return;
    }
    let vm = Debugged::new(&[COUNT, COUNT, NOP, COUNT]).unwrap();
    vm.session.resume(&[(V0, ResumeAction::StepRange(CODE..CODE + 7))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (CODE + 7, 2));
}

#[test]
fn a_range_computes_what_the_guest_does() {
    const ROUNDS: u64 = 100;
    if !has(&[Step]) {
        return;
    }
    // JMP over a function that increments RBX; MOV ECX, 100; PUSH RCX; CALL it; POP RCX; DEC ECX; JNZ to PUSH.
    let code: [&[u8]; 9] = [
        &[0xeb, 0x04],
        COUNT,
        &[0xc3],
        &[0xb9, ROUNDS as u8, 0, 0, 0],
        &[0x51],
        &[0xe8, 0xf1, 0xff, 0xff, 0xff],
        &[0x59],
        &[0xff, 0xc9],
        &[0x75, 0xf5],
    ];
    let end = CODE + code.concat().len() as u64;
    let vm = Debugged::new(&[&code.concat(), NOP]).unwrap();
    vm.session.resume(&[(V0, ResumeAction::StepRange(CODE..end))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx), vm.get(Reg::Rsp)), (end, ROUNDS, STACK));
    assert_eq!(vm.get(Reg::Eflags) & (TF | IF), IF);
    vm.finish();
}

// -- breakpoints

#[test]
fn four_execution_breakpoints() {
    if !has(&[Execute]) {
        return;
    }
    let vm = Debugged::new(&[NOP, NOP, NOP, NOP, NOP]).unwrap();
    for n in 1..=4 {
        vm.insert(hardware(CODE + n));
    }
    for n in 1..=4 {
        // Getting over one takes a step, which not every host has that has these.
        assert_eq!(vm.go(), StopReason::HardwareBreakpoint(Gva(CODE + n)));
        assert_eq!(vm.get(Reg::Rip), CODE + n);
        vm.session.remove(hardware(CODE + n)).unwrap();
    }
    vm.finish();
}

#[test]
fn a_breakpoint_is_got_over() {
    if !has(&[Execute, Step]) {
        return;
    }
    // JMP to the beginning.
    let vm = Debugged::new(&[COUNT, NOP, &[0xeb, 0xfa]]).unwrap();
    vm.insert(hardware(CODE));
    for count in 0..4 {
        assert_eq!(vm.go(), StopReason::HardwareBreakpoint(Gva(CODE)));
        assert_eq!(vm.get(Reg::Rbx), count);
    }
}

#[test]
fn a_software_breakpoint() {
    if !has(&[Int3]) {
        return;
    }
    let vm = Debugged::new(&[COUNT, COUNT, NOP]).unwrap();
    vm.insert(software(CODE + 3));
    assert_eq!(vm.go(), StopReason::SoftwareBreakpoint(Gva(CODE + 3)));
    assert_eq!((vm.get(Reg::Rip), vm.get(Reg::Rbx)), (CODE + 3, 1));
    vm.session.remove(software(CODE + 3)).unwrap();
    vm.finish();
    assert_eq!(vm.get(Reg::Rbx), 2);
}

#[test]
fn a_software_breakpoint_is_got_over() {
    if !has(&[Int3, Step]) {
        return;
    }
    let vm = Debugged::new(&[COUNT, NOP, &[0xeb, 0xfa]]).unwrap();
    vm.insert(software(CODE));
    for count in 0..4 {
        assert_eq!(vm.go(), StopReason::SoftwareBreakpoint(Gva(CODE)));
        assert_eq!(vm.get(Reg::Rbx), count);
    }
}

#[test]
fn a_foreign_int3_goes_to_the_guest() {
    if !has(&[Int3]) {
        return;
    }
    let vm = Debugged::new(&[INT3, COUNT]).unwrap();
    vm.insert(software(CODE + 4));
    assert_eq!(vm.go(), StopReason::SoftwareBreakpoint(Gva(CODE + 4)));
    assert_eq!((vm.get(Reg::R(15)), vm.get(Reg::Rbx)), (1, 1), "its handler returned behind it");
}

// -- watches

#[test]
fn four_data_watches() {
    if !has(&[Data]) {
        return;
    }
    // MOV [RAX], BL; MOV [RAX + 0x10], BX; MOV [RAX + 0x20], EBX; MOV RCX, [RAX + 0x30]
    let code: [&[u8]; 4] = [&[0x88, 0x18], &[0x66, 0x89, 0x58, 0x10], &[0x89, 0x58, 0x20], &[0x48, 0x8b, 0x48, 0x30]];
    let vm = Debugged::new(&code).unwrap();
    let watches = [(WatchKind::Write, 1), (WatchKind::Write, 2), (WatchKind::Write, 4), (WatchKind::Access, 8)];
    for (n, (kind, length)) in (0..).zip(watches) {
        vm.insert(watch(kind, DATA + 0x10 * n, length));
    }
    let mut at = CODE;
    for (n, (insn, (kind, _))) in (0..).zip(code.iter().zip(watches)) {
        at += insn.len() as u64;
        assert_eq!(vm.go(), StopReason::Watchpoint { kind, address: Gva(DATA + 0x10 * n) });
        assert_eq!(vm.get(Reg::Rip), at, "behind the access");
    }
    vm.finish();
}

#[test]
fn a_watch_of_bytes_that_are_not_accessed() {
    if !has(&[Data]) {
        return;
    }
    let vm = Debugged::new(&[&[0x89, 0x18], NOP, &[0x88, 0x58, 0x07]]).unwrap();
    vm.insert(watch(WatchKind::Write, DATA + 4, 4));
    assert_eq!(vm.go(), StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA + 4) });
    assert_eq!(vm.get(Reg::Rip), CODE + 6, "the store of four bytes beside it is not told, that of its last byte is");
}

#[test]
fn general_detect() {
    // Where slots are half there, this is not.
    if !has(&[Execute, Data]) {
        return;
    }
    // MOV RAX, DR0
    let guest = Guest::new(&[NOP, &[0x0f, 0x21, 0xc0]]).unwrap();
    let slot = Slot::new(CODE + 0x100, Condition::Execute, VaBits::Bits48).unwrap();
    let hw = HwDebug { general_detect: true, ..HwDebug::new(&[slot]).unwrap() };
    guest.vcpu.set_guest_debug(&DebugConfig { enabled: true, hw, ..DebugConfig::disabled() }).unwrap();
    let exit = guest.run().expect("a debug exit");
    assert_eq!(exit.pc, CODE + 1);
    let Stop::Debug { causes, .. } = decode(&exit) else { panic!("{exit:x?}") };
    assert_eq!(causes, [Cause::GeneralDetect]);
}

// -- registers and memory

#[test]
fn every_register_is_read_and_written_back() {
    if !has(&[]) {
        return;
    }
    let guest = Guest::new(&[NOP]).unwrap();
    let list = guest.vcpu.reg_list().unwrap();
    assert!(list.len() > 65, "{}", list.len());
    for reg in list {
        let mut value = vec![0; reg.size()];
        guest.vcpu.get_reg(reg, &mut value).unwrap_or_else(|error| panic!("{reg}: {error}"));
        guest.vcpu.set_reg(reg, &value).unwrap_or_else(|error| panic!("{reg}: {error}"));
        let mut again = vec![0; reg.size()];
        guest.vcpu.get_reg(reg, &mut again).unwrap();
        assert_eq!(again, value, "{reg}");
    }
}

#[test]
fn mxcsr_is_read_and_written() {
    if !has(&[]) {
        return;
    }
    let guest = Guest::new(&[NOP]).unwrap();
    // Everything masked, as after reset; then with the precision exception noted.
    assert_eq!(guest.vcpu.get_u64(Reg::Mxcsr).unwrap(), 0x1f80);
    guest.vcpu.set_u64(Reg::Mxcsr, 0x1fa0).unwrap();
    assert_eq!(guest.vcpu.get_u64(Reg::Mxcsr).unwrap(), 0x1fa0);
    assert!(guest.vcpu.set_u64(Reg::Mxcsr, 0x1_1fa0).is_err(), "a bit that is reserved");
}

#[test]
fn registers_hold_what_is_written() {
    if !has(&[]) {
        return;
    }
    let guest = Guest::new(&[NOP]).unwrap();
    let list = guest.vcpu.reg_list().unwrap();
    let written = [Reg::Rax, Reg::R(8), Reg::R(15), Reg::Rsp, Reg::St(3), Reg::Xmm(15), Reg::YmmH(7), Reg::FsBase]
        .into_iter()
        .chain([Reg::GsBase, Reg::KGsBase, Reg::Cr2, Reg::Lstar])
        .filter(|reg| list.contains(reg));
    for (n, reg) in (1..).zip(written) {
        let value: Vec<u8> = (0..reg.size() as u8).map(|byte| if byte < 5 { byte + n } else { 0 }).collect();
        guest.vcpu.set_reg(reg, &value).unwrap_or_else(|error| panic!("{reg}: {error}"));
        let mut read = vec![0; reg.size()];
        guest.vcpu.get_reg(reg, &mut read).unwrap();
        assert_eq!(read, value, "{reg}");
    }
}

#[test]
fn what_the_guest_computes_is_in_its_registers() {
    if !has(&[Step, Float]) {
        return;
    }
    // MOVQ XMM3, RAX
    let vm = Debugged::new(&[FLD1, &[0x66, 0x48, 0x0f, 0x6e, 0xd8]]).unwrap();
    vm.step();
    vm.step();
    let read = |reg| vm.session.read_register(V0, reg).unwrap();
    assert_eq!(read(Reg::St(0)), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert_eq!(read(Reg::Ftag), 0x3fffu32.to_le_bytes());
    assert_eq!(read(Reg::Xmm(3))[..8], DATA.to_le_bytes());
}

#[test]
fn addresses_translate_as_kvm_does_it() {
    if !has(&[]) {
        return;
    }
    let vm = Debugged::new(&[NOP]).unwrap();
    // A page of 4 KiB somewhere: a table at 0x7000 behind the directory's entry 2.
    let write = |value: u64, at: u64| vm.guest.ram.write_obj(value, GuestAddress(at)).unwrap();
    write(0x7000 | 3, 0x3000 + 2 * 8);
    write(0x9000 | 3, 0x7000 + 5 * 8);
    for address in [CODE, 0x40_5123, 0x40_6000, 0xfee0_0000, 1 << 30, 0xffff_8000_0000_0000, 0x20_0000 - 1] {
        let kvm = vm.guest.vcpu.lock().translate_gva(address).unwrap();
        let expected = (kvm.valid != 0).then_some(kvm.physical_address);
        assert_eq!(vm.session.translate(V0, Gva(address)).ok().map(|at| at.0), expected, "{address:#x}");
    }
}
