//! The PC on KVM: what it boots, how it ends, a debug session in it, and how it moves.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![expect(unsafe_code, reason = "guest_code! assembles")]

mod moving;
mod refused;
mod support;

use guest_debug::x86_64::Reg;
use guest_debug::{Breakpoint, DebugVcpu as _, Gva, ResumeAction, StopReason, VcpuId};
use reference_vmm::config::DebugMode;
use reference_vmm::pc::layout::{HIGH_RAM, STACK, ZERO_PAGE};
use std::time::{Duration, Instant};
use support::{
    Ability, NOP, POWER_OFF, Running, V0, guest_code, linux, nothing_is_left_of_a_step_over_a_port, skipped,
};

/// INC RBX
const COUNT: &[u8] = &[0x48, 0xff, 0xc3];
/// JMP to itself
const SPIN: &[u8] = &[0xeb, 0xfe];
/// MOV DX, 0x3f8; MOV AL, '!'; OUT DX, AL
const PRINT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
/// MOV AL, 0xfe; OUT 0x64, AL
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// LIDT of nothing and UD2: a triple fault. UD2 alone does it, there is no handler.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// INC QWORD [0x20_0000], which a reset leaves alone; CMP QWORD [0x20_0000], 3; JAE over the next four bytes.
const THREE_TIMES: &[u8] =
    &[0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0, 0x48, 0x83, 0x3c, 0x25, 0, 0, 0x20, 0, 3, 0x73, 0x04];

#[test]
fn a_flat_payload_prints_and_powers_off() {
    let Some(vm) = Running::start(&[PRINT, POWER_OFF], 1, DebugMode::Off) else { return };
    assert_eq!(vm.end(), (Ok(()), "!".to_owned()));
}

#[test]
fn a_reset_boots_again() {
    for reset in [&[RESET][..], &[TRIPLE_FAULT, NOP, NOP]] {
        let Some(vm) = Running::start(&[&[PRINT, THREE_TIMES], reset, &[POWER_OFF]].concat(), 1, DebugMode::Off) else {
            return;
        };
        assert_eq!(vm.end(), (Ok(()), "!!!".to_owned()));
    }
}

// Resets the machine the first time, says so the second time, and spins, with interrupts on (see moving.rs).
guest_code!(
    resets_once,
    "mov rbx, 0x200000",
    "cmp qword ptr [rbx], 0",
    "jne 2f",
    "mov qword ptr [rbx], 1",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: sti",
    "mov qword ptr [rbx + 8], 1",
    "3: jmp 3b",
);

#[test]
fn a_reset_leaves_nothing_in_registers() {
    let Some(vm) = Running::start(&[resets_once()], 1, DebugMode::Hold) else { return };
    let vcpu = &vm.vm.vcpus()[0];
    let list = vcpu.reg_list().unwrap();
    let vectors: Vec<_> = [Reg::Xmm(9), Reg::YmmH(9)].into_iter().filter(|reg| list.contains(reg)).collect();
    vectors.iter().for_each(|reg| vcpu.set_reg(*reg, &[0x5a; 16]).unwrap());
    let integers = [Reg::KGsBase, Reg::Lstar, Reg::Cr2, Reg::R(15)];
    integers.iter().for_each(|reg| vcpu.set_u64(*reg, 0x1111).unwrap());
    let session = vm.vm.session().unwrap();
    session.resume(&[]).unwrap();
    vm.wait_for(0x20_0008, 1);
    session.interrupt();
    assert_eq!(vm.stop(), Some(StopReason::Interrupt));
    for reg in vectors {
        let mut bytes = [1; 16];
        vcpu.get_reg(reg, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 16], "{reg}");
    }
    for reg in integers {
        assert_eq!(vcpu.get_u64(reg).unwrap(), 0, "{reg}");
    }
}

#[test]
fn the_first_instruction_finds_what_linux_would() {
    let Some(vm) = Running::start(&[POWER_OFF], 1, DebugMode::Hold) else { return };
    let registers = [Reg::Rip, Reg::Rsi, Reg::Rsp, Reg::Eflags, Reg::Cs, Reg::Efer];
    let values = registers.map(|reg| vm.get(0, reg));
    assert_eq!(values, [HIGH_RAM, ZERO_PAGE, STACK, 2, 0x10, 0x500]);
    let session = vm.vm.session().unwrap();
    // `header` and `boot_flag` of the setup header, and a byte of the payload through the guest's own tables.
    assert_eq!(session.read_memory(V0, Gva(ZERO_PAGE + 0x202), 4).unwrap(), b"HdrS");
    assert_eq!(session.read_memory(V0, Gva(HIGH_RAM), 4).unwrap(), POWER_OFF[..4]);
    assert_eq!(vm.end().0, Ok(()));
}

#[test]
fn linux_boots_on_two_vcpus_is_stepped_and_powers_off() {
    let Some(vm) = linux() else { return };
    let session = vm.vm.session().unwrap();
    session.attach().unwrap();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let stop = vm.go(&[(V0, ResumeAction::Step), (VcpuId(1), ResumeAction::Stay)]);
        assert_eq!(stop, StopReason::Step);
        places.insert(vm.get(0, Reg::Rip));
    }
    // It may wait for the other one, in a loop of three instructions.
    assert!(places.len() > 1, "{places:x?}");
    let pc = Gva(vm.get(0, Reg::Rip));
    assert!(session.read_memory(V0, pc, 16).is_ok(), "its own page tables lead to its code");
    assert_eq!(vm.end().0, Ok(()), "it powers off");
}

#[test]
fn a_step_over_a_port_executes_it_once() {
    if !Ability::Step.is_there() {
        return;
    }
    let Some(vm) = Running::start(&[PRINT, NOP, POWER_OFF], 1, DebugMode::Hold) else { return };
    let step = || vm.go(&[(V0, ResumeAction::Step)]);
    assert_eq!((step(), vm.get(0, Reg::Rip)), (StopReason::Step, HIGH_RAM + 4));
    assert_eq!((step(), step()), (StopReason::Step, StopReason::Step));
    assert_eq!((vm.get(0, Reg::Rip), vm.printed.lock().unwrap().len()), (HIGH_RAM + 7, 1));
    if !nothing_is_left_of_a_step_over_a_port() {
        return skipped("such a step leaves a #DB pending here, which the guest gets when nobody steps it any more");
    }
    assert_eq!(vm.end(), (Ok(()), "!".to_owned()));
}

#[test]
fn a_breakpoint_stays_over_a_reset() {
    if !Ability::Execute.is_there() {
        return;
    }
    let Some(vm) = Running::start(&[PRINT, COUNT, RESET, SPIN], 1, DebugMode::Hold) else { return };
    let at = HIGH_RAM + PRINT.len() as u64;
    vm.vm.session().unwrap().insert(V0, Breakpoint::Hardware(Gva(at))).unwrap();
    for count in 1..4 {
        assert_eq!(vm.go(&[]), StopReason::HardwareBreakpoint(Gva(at)));
        assert_eq!((vm.get(0, Reg::Rbx), vm.printed.lock().unwrap().len()), (0, count));
    }
}

#[test]
fn a_client_stops_a_guest_that_runs() {
    let Some(vm) = Running::start(&[COUNT, &[0xeb, 0xfb]], 2, DebugMode::Run) else { return };
    let session = vm.vm.session().unwrap();
    session.resume(&[]).unwrap();
    session.interrupt();
    let deadline = Instant::now() + Duration::from_secs(30);
    while session.take_stop().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pc = vm.get(0, Reg::Rip);
    assert!((HIGH_RAM..HIGH_RAM + 5).contains(&pc), "{pc:#x}");
    // The second one waits for the first one's INIT and SIPI.
    assert_eq!(vm.get(1, Reg::Cr0) & 1, 0);
}
