//! A PC that moves: by a snapshot and by a migration, with what the guest has in its registers and with a debugger's
//! breakpoints, armed before the move and hit after it.

use crate::support::{Ability, NOP, POWER_OFF, Running, Sink, V0, guest_code, linux};
use guest_debug::kvm::HostArch;
use guest_debug::x86_64::Reg;
use guest_debug::{Breakpoint, DebugVcpu as _, Gva, ResumeAction, StopReason, WatchKind};
use guest_debug_gdb::Stream;
use reference_vmm::config::{DebugLimits, DebugMode};
use reference_vmm::error::VmError;
use reference_vmm::kvm::{Machine, Receiver, Vm};
use reference_vmm::migration::{self, Connection};
use reference_vmm::operations::Operations as _;
use reference_vmm::pc::layout::{HIGH_RAM, ZERO_PAGE};
use reference_vmm::snapshot::{MEMORY_FILE, Snapshot};
use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use vmm_sys_util::tempdir::TempDir;

/// Where the payloads here keep what they tell and what they are told.
const DATA: u64 = 0x20_0000;
/// IA32_TSC, and the deadline that is counted by it.
const TIME: [u32; 2] = [0x10, 0x6e0];

/// A way to move a VM.
type Move = fn(&Running, DebugMode) -> Result<Running, VmError>;

const MOVES: [Move; 2] = [by_snapshot, by_migration];

fn by_snapshot(from: &Running, debug: DebugMode) -> Result<Running, VmError> {
    let directory = TempDir::new().unwrap();
    let name = directory.as_path().join("snapshot");
    from.vm.snapshot(&name, &mut drop)?;
    let printed = from.printed.clone();
    Ok(Running::run(restored(&Snapshot::open(&name)?, debug)?, printed))
}

fn restored(snapshot: &Snapshot<HostArch>, debug: DebugMode) -> Result<Vm, VmError> {
    let machine = Machine::like(&snapshot.state.machine, Box::<Sink>::default())?;
    snapshot.load_memory(machine.ram())?;
    Vm::restored(machine, &snapshot.state, debug, &DebugLimits::default())
}

fn by_migration(from: &Running, debug: DebugMode) -> Result<Running, VmError> {
    let (here, there) = UnixStream::pair().unwrap();
    let printed = Arc::<Mutex<Vec<u8>>>::default();
    let output: reference_vmm::serial::Output = Box::new(Sink(printed.clone()));
    let receiving = thread::spawn(move || {
        let connection = Connection::new(Stream::Unix(there)).unwrap();
        let receiver = Receiver { output: Mutex::new(Some(output)), debug, limits: DebugLimits::default() };
        migration::receive(&receiver, &connection, &mut drop)
    });
    let connection = Connection::new(Stream::Unix(here)).unwrap();
    let sent = migration::migrate(&*from.vm, &connection, &mut drop);
    drop(connection);
    // Why the destination gave up is what matters: the source finds its connection broken.
    let received = receiving.join().unwrap()?;
    let report = sent?;
    assert!(report.passes >= 1 && report.pages > 0 && from.vm.has_moved(), "{report}");
    Ok(Running::run(received, printed))
}

// A guest that waits has interrupts on, though none is for it: while they are off the CPU that Bochs emulates does not leave the
// guest for those of the host either, and nobody else there runs again.

// Fills its debug registers, says so at DATA, and waits for DATA+8. Then it stores what they are, and powers itself off.
guest_code!(
    has_debug_registers,
    "sti",
    "mov rbx, 0x200000",
    "mov rax, 0x11110",
    "mov dr0, rax",
    "mov rax, 0x22220",
    "mov dr1, rax",
    "mov rax, 0x33330",
    "mov dr2, rax",
    "mov rax, 0x44440",
    "mov dr3, rax",
    "mov rax, 0xffff4ff5",
    "mov dr6, rax",
    // L0 to L3 and LE: instructions at addresses that are never executed.
    "mov rax, 0x555",
    "mov dr7, rax",
    "mov qword ptr [rbx], 1",
    "2: cmp qword ptr [rbx + 8], 0",
    "je 2b",
    "mov rax, dr0",
    "mov [rbx + 16], rax",
    "mov rax, dr1",
    "mov [rbx + 24], rax",
    "mov rax, dr2",
    "mov [rbx + 32], rax",
    "mov rax, dr3",
    "mov [rbx + 40], rax",
    "mov rax, dr6",
    "mov [rbx + 48], rax",
    "mov rax, dr7",
    "mov [rbx + 56], rax",
    "mov qword ptr [rbx], 2",
    "mov dx, 0x604",
    "mov ax, 0x2000",
    "out dx, ax",
);

#[test]
fn what_the_guest_has_in_its_debug_registers_moves() {
    for travel in MOVES {
        for debug in [DebugMode::Off, DebugMode::Run] {
            let Some(source) = Running::start(&[has_debug_registers()], 1, debug) else { return };
            if let Some(session) = source.vm.session() {
                // Those of a debugger are none of the guest's.
                session.insert(V0, Breakpoint::Hardware(Gva(0x9990))).unwrap();
                session.resume(&[]).unwrap();
            }
            source.wait_for(DATA, 1);
            let there = travel(&source, debug).unwrap();
            drop(source);
            there.write(DATA + 8, 1);
            there.wait_for(DATA, 2);
            let found: Vec<_> = (2..8).map(|index| there.read(DATA + 8 * index)).collect();
            assert_eq!(found, [0x11110, 0x22220, 0x33330, 0x44440, 0xffff_4ff5, 0x555]);
        }
    }
}

// Goes round 1: it waits for DATA, and clears it.
guest_code!(
    rounds,
    "sti",
    "mov rbx, 0x200000",
    "2: mov rax, [rbx]",
    "test rax, rax",
    "jz 2b",
    "nop",
    "nop",
    "mov qword ptr [rbx], 0",
    "inc r12",
    "jmp 2b",
);

const LOOP: u64 = HIGH_RAM + 8;
const FIRST_NOP: u64 = LOOP + 8;
const SECOND_NOP: u64 = FIRST_NOP + 1;
const BEHIND_STORE: u64 = SECOND_NOP + 8;

fn points() -> [(Ability, Breakpoint, StopReason, u64); 3] {
    let (kind, address) = (WatchKind::Write, Gva(DATA));
    let (hardware, software) = (Gva(FIRST_NOP), Gva(SECOND_NOP));
    [
        (Ability::Execute, Breakpoint::Hardware(hardware), StopReason::HardwareBreakpoint(hardware), FIRST_NOP),
        (Ability::Software, Breakpoint::Software(software), StopReason::SoftwareBreakpoint(software), SECOND_NOP),
        (
            Ability::Watch,
            Breakpoint::Watch { kind, address, length: 8 },
            StopReason::Watchpoint { kind, address },
            BEHIND_STORE,
        ),
    ]
}

/// A guest with two vCPUs of which one runs, with a client that has inserted this.
fn prepared(breakpoint: Breakpoint) -> Option<Running> {
    let source = Running::start(&[rounds()], 2, DebugMode::Run)?;
    source.vm.session().unwrap().insert(V0, breakpoint).unwrap();
    Some(source)
}

/// Whatever this host has: each kind of breakpoint by itself.
fn with_each_kind(test: impl Fn(Breakpoint, StopReason, u64)) {
    for (ability, breakpoint, reason, pc) in points() {
        if ability.is_there() {
            test(breakpoint, reason, pc);
        }
    }
}

#[test]
fn a_stop_is_told_again_after_the_move_and_the_guest_goes_on() {
    with_each_kind(|breakpoint, reason, pc| {
        for travel in MOVES {
            let Some(source) = prepared(breakpoint) else { return };
            source.write(DATA, 1);
            assert_eq!(source.go(&[]), reason);
            let there = travel(&source, DebugMode::Run).unwrap();
            drop(source);
            let session = there.vm.session().unwrap();
            session.attach().unwrap();
            assert_eq!((there.stop(), there.get(0, Reg::Rip)), (Some(reason), pc));
            assert_eq!(session.breakpoints().len(), 1);
            assert_eq!(there.vm.vcpus()[1].state().unwrap().mp_state, 1, "it waits for its INIT, as before");
            let rounds = there.get(0, Reg::R(12));
            // A watch is told behind its access; to get over a breakpoint takes a step.
            if !matches!(reason, StopReason::Watchpoint { .. }) && !Ability::Step.is_there() {
                continue;
            }
            // It is gone on from, and the next round hits it again.
            session.resume(&[]).unwrap();
            there.wait_for(DATA, 0);
            there.write(DATA, 1);
            assert_eq!((there.stop(), there.get(0, Reg::Rip)), (Some(reason), pc));
            assert_eq!(there.get(0, Reg::R(12)), rounds + 1);
        }
    });
}

#[test]
fn what_a_debugger_armed_hits_after_the_move_while_the_guest_runs() {
    with_each_kind(|breakpoint, reason, pc| {
        for travel in MOVES {
            let Some(source) = prepared(breakpoint) else { return };
            source.vm.session().unwrap().resume(&[]).unwrap();
            let there = travel(&source, DebugMode::Run).unwrap();
            drop(source);
            // Nobody is attached, and what was inserted is in force.
            there.write(DATA, 1);
            while there.vm.session().unwrap().vcpu_states()[0] != guest_debug::VcpuState::Stopped {
                assert!(!there.has_ended());
                thread::yield_now();
            }
            there.vm.session().unwrap().attach().unwrap();
            assert_eq!((there.stop(), there.get(0, Reg::Rip)), (Some(reason), pc));
        }
    });
}

#[test]
fn what_a_debugger_armed_in_a_stopped_guest_hits_after_the_move() {
    with_each_kind(|breakpoint, reason, pc| {
        for travel in MOVES {
            let Some(source) = prepared(breakpoint) else { return };
            let there = travel(&source, DebugMode::Run).unwrap();
            drop(source);
            there.vm.session().unwrap().attach().unwrap();
            there.write(DATA, 1);
            assert_eq!((there.go(&[]), there.get(0, Reg::Rip)), (reason, pc));
        }
    });
}

#[test]
fn a_step_goes_on_after_the_move() {
    if !Ability::Step.is_there() {
        return;
    }
    for travel in MOVES {
        let Some(source) = Running::start(&[rounds()], 1, DebugMode::Run) else { return };
        let session = source.vm.session().unwrap();
        session.resume(&[]).unwrap();
        source.write(DATA, 1);
        source.wait_for(DATA, 0);
        session.interrupt();
        assert_eq!(source.stop(), Some(StopReason::Interrupt));
        // A range that it can't leave before DATA is set.
        session.resume(&[(V0, ResumeAction::StepRange(LOOP..FIRST_NOP))]).unwrap();
        let there = travel(&source, DebugMode::Run).unwrap();
        drop(source);
        there.write(DATA, 1);
        while there.vm.session().unwrap().vcpu_states()[0] != guest_debug::VcpuState::Stopped {
            assert!(!there.has_ended());
            thread::yield_now();
        }
        there.vm.session().unwrap().attach().unwrap();
        assert_eq!((there.stop(), there.get(0, Reg::Rip)), (Some(StopReason::Step), FIRST_NOP));
        assert_eq!(there.get(0, Reg::Eflags) & 0x100, 0, "no TF of the debugger's");
    }
}

#[test]
fn memory_that_is_saved_has_no_breakpoint_of_ours() {
    let Some(source) = prepared(Breakpoint::Software(Gva(SECOND_NOP))) else { return };
    let bytes = |vm: &Running| vm.read(FIRST_NOP).to_le_bytes()[..2].to_vec();
    assert_eq!(bytes(&source), [0x90, 0xcc]);
    let directory = TempDir::new().unwrap();
    let name = directory.as_path().join("snapshot");
    source.vm.snapshot(&name, &mut drop).unwrap();
    assert_eq!(bytes(&source), [0x90, 0xcc], "the source goes on with it");
    let memory = fs::read(name.join(MEMORY_FILE)).unwrap();
    let code = rounds();
    assert!(memory[HIGH_RAM as usize..][..code.len()] == *code);
    for (travel, debug, second) in [
        (by_snapshot as Move, DebugMode::Off, 0x90),
        (by_snapshot, DebugMode::Run, 0xcc),
        (by_migration, DebugMode::Run, 0xcc),
    ] {
        let there = travel(&source, debug).unwrap();
        assert_eq!(bytes(&there), [0x90, second]);
        if debug == DebugMode::Run {
            let session = there.vm.session().unwrap();
            session.attach().unwrap();
            let removed = session.remove(Breakpoint::Software(Gva(SECOND_NOP))).unwrap();
            assert_eq!((removed, bytes(&there)), (guest_debug::Removed::Restored, vec![0x90, 0x90]));
        }
    }
}

#[test]
fn every_register_comes_back_as_it_was() {
    let Some(source) = Running::start(&[NOP, POWER_OFF], 2, DebugMode::Hold) else { return };
    let vcpu = &source.vm.vcpus()[0];
    let values =
        [(Reg::R(15), 0x1234_5678_9abc_def0), (Reg::Cr2, 0x7000), (Reg::KGsBase, 0x1111), (Reg::Lstar, 0x2222)];
    values.iter().for_each(|(reg, value)| vcpu.set_u64(*reg, *value).unwrap());
    let list = vcpu.reg_list().unwrap();
    let vectors: Vec<_> = [Reg::Xmm(9), Reg::YmmH(9)].into_iter().filter(|reg| list.contains(reg)).collect();
    vectors.iter().for_each(|reg| vcpu.set_reg(*reg, &[0x5a; 16]).unwrap());
    let directory = TempDir::new().unwrap();
    let name = directory.as_path().join("snapshot");
    source.vm.snapshot(&name, &mut drop).unwrap();
    let snapshot = Snapshot::<HostArch>::open(&name).unwrap();
    // It does not run, so nothing but time can change.
    let there = restored(&snapshot, DebugMode::Hold).unwrap();
    for (vcpu, saved) in there.vcpus().iter().zip(&snapshot.state.vcpus) {
        let (mut now, mut saved) = (vcpu.state().unwrap(), saved.clone());
        for state in [&mut now, &mut saved] {
            state.msrs.retain(|msr| !TIME.contains(&msr.index));
        }
        assert_eq!(now.msrs, saved.msrs);
        assert!(now == saved, "{:?}\n{:?}\n{:?}", now.regs, now.sregs, now.events);
    }
    for (reg, value) in values {
        assert_eq!(there.vcpus()[0].get_u64(reg).unwrap(), value, "{reg}");
    }
    for reg in vectors {
        let mut bytes = [0; 16];
        there.vcpus()[0].get_reg(reg, &mut bytes).unwrap();
        assert_eq!(bytes, [0x5a; 16], "{reg}");
    }
    assert_eq!(there.machine_state(), &snapshot.state.machine);
    let (now, saved) = (there.state(None).unwrap(), &snapshot.state);
    assert_eq!((now.devices.pics, now.devices.ioapic), (saved.devices.pics, saved.devices.ioapic));
    assert_eq!(now.devices.pit, saved.devices.pit);
    assert!(now.devices.clock >= saved.devices.clock, "the guest's clock goes on from where it was");
    assert_eq!(now.serial, saved.serial);
}

#[test]
fn memory_above_the_devices_is_the_guests() {
    // As much as there is below them, and 1 MiB.
    let Some(vm) = Running::start_with(&[rounds()], |config| config.memory_mib = 3073) else { return };
    // `e820_entries` of the zero page, and the third of them: address, length, usable.
    assert_eq!(vm.read(ZERO_PAGE + 0x1e8) as u8, 3);
    let entry = ZERO_PAGE + 0x2d0 + 2 * 20;
    assert_eq!((vm.read(entry), vm.read(entry + 8), vm.read(entry + 16) as u32), (1 << 32, 1 << 20, 1));
    vm.vm.log_dirty_pages(true).unwrap();
    vm.write((1 << 32) + 0x8000, 0x5a5a);
    vm.write(DATA, 1);
    vm.wait_for(DATA, 0);
    let dirty = vm.vm.take_dirty_pages().unwrap();
    let page = |offset: u64| dirty[(offset / 4096 / 64) as usize] >> (offset / 4096 % 64) & 1 != 0;
    // The guest's write to the first slot, and the VMM's behind the end of it.
    assert!(page(DATA) && page((3072 << 20) + 0x8000) && !page((3072 << 20) + 0x9000));
}

#[test]
fn linux_moves_and_powers_off() {
    let Some(mut vm) = linux() else { return };
    // It powers itself off soon, so it is stopped while it is on its way.
    let session = vm.vm.session().unwrap();
    session.attach().unwrap();
    session.interrupt();
    assert_eq!(vm.stop(), Some(StopReason::Interrupt));
    for travel in MOVES {
        vm = travel(&vm, DebugMode::Run).unwrap();
        let session = vm.vm.session().unwrap();
        session.attach().unwrap();
        assert_eq!(vm.stop(), Some(StopReason::Interrupt));
        let pc = Gva(vm.get(0, Reg::Rip));
        assert!(session.read_memory(V0, pc, 16).is_ok(), "its own page tables lead to its code");
    }
    assert_eq!(vm.end().0, Ok(()), "it goes on, and powers off");
}
