//! What once broke in the session, each by its own test.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "shared by tests, each of which uses a part")]
mod fake;
#[allow(dead_code, reason = "shared by tests, each of which uses a part")]
mod scripted;

use fake::*;
use guest_debug::arm64::{Pstate, Reg, SysReg};
use guest_debug::{Breakpoint, Entry, Gva, ResumeAction, StopReason, VcpuDebugger, VcpuId, VcpuState, Wait};
use scripted::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// What a resume may take: far less than the session's patience with a vCPU that does not stop.
const SOON: Duration = Duration::from_secs(8);

// ---- stops

#[test]
fn a_breakpoint_that_was_not_told_counts_for_a_step_as_well() {
    for (breakpoint, reason) in [
        (software(RAM), StopReason::SoftwareBreakpoint(Gva(RAM))),
        (hardware(RAM), StopReason::HardwareBreakpoint(Gva(RAM))),
    ] {
        let vm = Vm::new(1, &[COUNT, COUNT, branch(0)]).start();
        vm.session.insert(V0, breakpoint).unwrap();
        for (expected, pc) in [(reason, RAM), (StopReason::Step, RAM + 4)] {
            vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
            assert_eq!((vm.stop().reason, vm.pc(0)), (expected, pc), "{breakpoint:?}");
        }
    }
}

/// vCPUs count and pass a breakpoint; the client continues, steps and interrupts at random. Whoever has counted once
/// more than was told stands at the breakpoint.
fn told_as_often_as_counted(breakpoint: Breakpoint) {
    const VCPUS: u32 = 3;
    let place = RAM + 4;
    let vm = Vm::new(VCPUS, &[COUNT, NOP, NOP, branch(-12)]).start();
    vm.session.insert(V0, breakpoint).unwrap();
    let mut told = [0; VCPUS as usize];
    let mut random = 1u64;
    for round in 0..3000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (one, choice) = (VcpuId((random >> 33) as u32 % VCPUS), random >> 41 & 7);
        let action = if choice == 3 { ResumeAction::StepRange(RAM..RAM + 16) } else { ResumeAction::Step };
        let actions: Vec<_> = match choice {
            2 => (0..VCPUS)
                .map(VcpuId)
                .map(|id| (id, if id == one { action.clone() } else { ResumeAction::Stay }))
                .collect(),
            3 | 4 => vec![(one, action)],
            _ => Vec::new(),
        };
        vm.session.resume(&actions).unwrap();
        if choice == 5 {
            vm.session.interrupt();
        }
        let stop = vm.stop();
        let hit = match stop.reason {
            StopReason::Step => vm.pc(stop.vcpu.0) == place,
            reason => reason != StopReason::Interrupt,
        };
        told[stop.vcpu.0 as usize] += u64::from(hit);
        for (vcpu, told) in (0..).zip(&told) {
            let (counted, pc) = (vm.get(vcpu, Reg::X(1)), vm.pc(vcpu));
            let lost = format!("round {round}: vCPU {vcpu} at {pc:#x} counted {counted}, told {told}; {stop:?}");
            assert!(counted == *told || counted == told + 1 && pc == place, "{lost}");
            assert_eq!(vm.get(vcpu, Reg::Pstate), Pstate::EL1H, "no mask is left behind");
        }
    }
}

#[test]
fn hardware_hits_are_told_as_often_as_counted() {
    told_as_often_as_counted(hardware(RAM + 4));
}

#[test]
fn software_hits_are_told_as_often_as_counted() {
    told_as_often_as_counted(software(RAM + 4));
}

// ---- reset

#[test]
fn a_step_asked_for_after_a_reset_is_a_step() {
    let vm = Vm::new(1, &[COUNT, COUNT, COUNT, branch(-4)]).start();
    vm.session.before_reset().unwrap();
    vm.set(0, Reg::Pc, RAM);
    vm.session.after_reset().unwrap();
    vm.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    // So that the test ends even when the vCPU was let loose.
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Step);
    assert_eq!(vm.pc(0), RAM + 4);
}

#[test]
fn a_watch_hit_from_before_a_reset_is_not_told_after_it() {
    let vm = Vm::new(2, &[STR_X1_X0, branch(0)]).start();
    for vcpu in 0..2 {
        vm.set(vcpu, Reg::X(0), RAM + 0x4000);
    }
    vm.session.insert(V0, write_watch(RAM + 0x4000, 8)).unwrap();
    // Both hit: one is told, the other one's hit is queued and not fetched.
    vm.session.resume(&[]).unwrap();
    let told = vm.stop().vcpu;
    vm.session.resume(&[(told, ResumeAction::Stay)]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    // Now the VMM resets the guest, and both vCPUs are somewhere harmless.
    vm.session.before_reset().unwrap();
    for vcpu in 0..2 {
        vm.set(vcpu, Reg::Pc, RAM + 4);
    }
    vm.session.after_reset().unwrap();
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Interrupt, "no vCPU is at an access any more");
}

#[test]
fn a_breakpoint_inserted_again_after_a_reboot_into_other_code_is_planted() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.before_reset().unwrap();
    vm.load(RAM + 8, &[COUNT]);
    vm.session.after_reset().unwrap();
    assert_eq!(vm.word(RAM + 8), COUNT, "another program's now");
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    assert_ne!(vm.word(RAM + 8), COUNT, "the client has asked for it in this program");
    assert!(vm.session.breakpoints()[0].armed);
    vm.session.detach().unwrap();
    assert_eq!(vm.word(RAM + 8), COUNT);
}

// ---- software breakpoints

#[test]
fn an_instruction_that_the_guest_wrote_over_a_breakpoint_reads_as_it_is() {
    let vm = Vm::new(1, &[NOP, branch(0)]).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    // A kprobe of the guest's: its BRK has a byte in common with ours.
    vm.load(RAM, &[BRK_7]);
    assert_eq!(vm.session.read_memory(V0, Gva(RAM), 4).unwrap(), BRK_7.to_le_bytes());
}

#[test]
fn a_write_beside_what_the_guest_wrote_over_a_breakpoint_does_not_plant_half_of_it() {
    let vm = Vm::new(1, &[branch(0)]).start();
    let place = RAM + 0x100;
    vm.load(place, &[NOP]);
    vm.session.insert(V0, software(place)).unwrap();
    vm.load(place, &[COUNT]);
    let mut expected = COUNT.to_le_bytes();
    expected[..2].copy_from_slice(&[0x42, 0x04]);
    vm.session.write_memory(V0, Gva(place), &expected[..2]).unwrap();
    assert_eq!(vm.session.read_memory(V0, Gva(place), 4).unwrap(), expected, "what the client reads");
    vm.session.detach().unwrap();
    assert_eq!(vm.word(place).to_le_bytes(), expected, "what stays in guest memory");
}

#[test]
fn a_brk_of_the_guests_own_in_place_of_ours_is_the_guests() {
    let vm = Vm::new(1, &[NOP, branch(0)]).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    vm.session.insert(V0, hardware(VBAR + 0x200)).unwrap();
    vm.load(RAM, &[BRK_7]);
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(VBAR + 0x200)));
    assert_eq!(vm.get(0, Reg::ElrEl1), RAM);
}

#[test]
fn a_hardware_breakpoint_behind_a_software_one_counts_in_a_range_of_steps() {
    let vm = Vm::new(1, &[COUNT, COUNT, COUNT, COUNT, branch(0)]).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    vm.session.insert(V0, hardware(RAM + 4)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM)));
    vm.session.resume(&[(V0, ResumeAction::StepRange(RAM..RAM + 12))]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::HardwareBreakpoint(Gva(RAM + 4)));
    assert_eq!(vm.pc(0), RAM + 4);
}

// ---- watchpoints

#[test]
fn a_watch_that_was_told_does_not_keep_its_vcpu_from_going_on() {
    let vm = Vm::new(1, &[COUNT, STR_X1_X0, branch(-8)]).start();
    vm.set(0, Reg::X(0), RAM + 0x4000);
    vm.session.insert(V0, write_watch(RAM + 0x4000, 8)).unwrap();
    for round in 1..=3 {
        vm.session.resume(&[]).unwrap();
        assert!(matches!(vm.stop().reason, StopReason::Watchpoint { .. }));
        assert_eq!(vm.get(0, Reg::X(1)), round, "each store is told once");
    }
}

// ---- memory

#[test]
fn a_huge_length_does_not_allocate_more_than_there_is() {
    let script = Script::new(&[branch(0)]);
    script.session.attach().unwrap();
    let data = script.session.read_memory(V0, Gva(RAM), 256 << 20).unwrap();
    assert_eq!(data.len(), 1 << 20);
    let longest = script.ram.longest.load(Ordering::Relaxed);
    assert!(longest <= 2 << 20, "a buffer of {longest} bytes for 1 MiB of RAM");
}

#[test]
fn memory_does_not_wrap_at_the_end_of_the_address_space() {
    let vm = Vm::new(1, &[branch(0)]).start();
    // One table per level, its first and last entries used: the first page of the lower and the last of the upper half.
    for (level, next) in [(0x10000, 0x11003), (0x11000, 0x12003)] {
        for entry in [0, 511] {
            vm.ram.write_obj(RAM + next, GuestAddress(RAM + level + entry * 8)).unwrap();
        }
    }
    vm.ram.write_obj(RAM + 0x6000 + 0x703, GuestAddress(RAM + 0x12000)).unwrap();
    vm.ram.write_obj(RAM + 0x5000 + 0x703, GuestAddress(RAM + 0x12000 + 511 * 8)).unwrap();
    for (reg, value) in [
        (SysReg::TCR_EL1, 25 | 25 << 16 | 0b10 << 30 | 2 << 32),
        (SysReg::TTBR0_EL1, RAM + 0x10000),
        (SysReg::TTBR1_EL1, RAM + 0x10000),
        (SysReg::SCTLR_EL1, 1),
    ] {
        vm.set(0, Reg::Sys(reg), value);
    }
    assert_eq!(vm.session.translate(V0, Gva(0)).unwrap(), GuestAddress(RAM + 0x6000));
    assert_eq!(vm.session.translate(V0, Gva(u64::MAX)).unwrap(), GuestAddress(RAM + 0x5fff));
    assert_eq!(vm.session.read_memory(V0, Gva(u64::MAX - 1), 8).unwrap().len(), 2);
    assert!(vm.session.write_memory(V0, Gva(u64::MAX - 1), &[0xaa; 8]).is_err());
    assert_eq!((vm.word(RAM + 0x5ffc), vm.word(RAM + 0x6000)), (0, 0));
}

#[test]
fn physical_addresses_at_the_end_of_the_address_space_are_errors() {
    let vm = Vm::new(1, &[branch(0)]).start();
    vm.session.insert(V0, software(RAM)).unwrap();
    for address in [u64::MAX, u64::MAX - 3, u64::MAX - 4096, 0, RAM - 1] {
        assert!(vm.session.read_physical(GuestAddress(address), 16).is_err());
        assert!(vm.session.write_physical(GuestAddress(address), &[0; 16]).is_err());
    }
}

// ---- steps, on a vCPU whose every exit the test writes

#[test]
fn a_step_exit_left_over_from_an_earlier_step_executes_nothing() {
    // Linux 6.2 and later remember a step that executed but whose exception a kick forestalled
    // (DBG_SS_ACTIVE_PENDING), and deliver it at the next entry with single-step, before any instruction.
    let script = Script::new(&[NOP, NOP]);
    script.session.attach().unwrap();
    script.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    debugger.on_debug_exit(&*script.vcpu, STEPPED).unwrap();
    assert!(!debugger.stop_requested(), "nothing has executed: the step is still under way");
    script.enter(&mut debugger);
    script.set(Reg::Pc, RAM + 4);
    debugger.on_debug_exit(&*script.vcpu, STEPPED).unwrap();
    assert!(debugger.stop_requested());
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H);
}

#[test]
fn a_step_of_a_branch_to_itself_ends() {
    let script = Script::new(&[branch(0)]);
    script.session.attach().unwrap();
    script.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    debugger.on_debug_exit(&*script.vcpu, STEPPED).unwrap();
    assert!(debugger.stop_requested());
}

#[test]
fn a_breakpoint_inside_an_exclusive_sequence_stays_armed_while_the_sequence_is_stepped() {
    const LDXR_X0_X1: u32 = 0xc85f_7c20;
    const STXR_W2_X0_X1: u32 = 0xc802_7c20;
    let script = Script::new(&[LDXR_X0_X1, COUNT, STXR_W2_X0_X1, NOP]);
    script.session.attach().unwrap();
    script.session.insert(V0, hardware(RAM + 4)).unwrap();
    script.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    let config = script.vcpu.config.lock().unwrap().clone();
    let armed = config.single_step || config.hw.breakpoints.iter().any(|slot| slot.address == RAM + 4);
    assert!(armed, "the sequence would run over it: {config:x?}");
}

#[test]
fn an_exception_on_top_of_a_branch_leaves_no_mask_behind() {
    // The branch leads to where no instruction can be fetched: ELR is its target. Only that tells, as D was set before.
    const OWN: u64 = Pstate::EL1H | Pstate::D;
    let script = Script::new(&[branch(0x40)]);
    script.set(Reg::Pstate, OWN);
    script.session.attach().unwrap();
    script.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    script.set(Reg::SpsrEl1, script.get(Reg::Pstate));
    script.set(Reg::ElrEl1, RAM + 0x40);
    script.set(Reg::Pstate, Pstate::EL1H | Pstate::DAIF);
    script.set(Reg::Pc, VBAR + 0x200);
    debugger.on_debug_exit(&*script.vcpu, STEPPED).unwrap();
    assert_eq!(script.get(Reg::SpsrEl1), OWN, "what the handler returns to");
    assert_eq!(script.get(Reg::Pstate), Pstate::EL1H | Pstate::DAIF, "the handler runs masked");
}

#[test]
fn a_planted_page_that_the_guest_has_copied_still_hits() {
    // The guest moves a page: it copies it, our BRK included, and maps the copy at the same address.
    const VA: u64 = 0x40_0000;
    let script = Script::new(&[]);
    let memory = &script.ram.ram;
    memory.write_obj(RAM + 0x11003, GuestAddress(RAM + 0x10000)).unwrap();
    memory.write_obj(RAM + 0x12003, GuestAddress(RAM + 0x11000 + 2 * 8)).unwrap();
    memory.write_obj(RAM + 0x5000 + 0x703, GuestAddress(RAM + 0x12000)).unwrap();
    memory.write_obj(NOP, GuestAddress(RAM + 0x5000)).unwrap();
    for (reg, value) in [
        (SysReg::TCR_EL1, 25 | 25 << 16 | 0b10 << 30 | 2 << 32),
        (SysReg::TTBR0_EL1, RAM + 0x10000),
        (SysReg::TTBR1_EL1, RAM + 0x10000),
        (SysReg::SCTLR_EL1, 1),
    ] {
        script.set(Reg::Sys(reg), value);
    }
    script.set(Reg::Pc, VA);
    script.session.attach().unwrap();
    script.session.insert(V0, software(VA)).unwrap();
    let planted: u32 = memory.read_obj(GuestAddress(RAM + 0x5000)).unwrap();
    assert_ne!(planted, NOP);
    script.session.resume(&[]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    memory.write_obj(planted, GuestAddress(RAM + 0x6000)).unwrap();
    memory.write_obj(RAM + 0x6000 + 0x703, GuestAddress(RAM + 0x12000)).unwrap();
    debugger.on_debug_exit(&*script.vcpu, OUR_BRK).unwrap();
    assert_eq!(script.get(Reg::Pc), VA, "the guest gets no exception for our BRK");
    assert!(debugger.stop_requested());
}

/// Hits a software breakpoint at [`RAM`], lets the client take it, and resumes on another thread. `instead` is what
/// happens when the vCPU is to execute the instruction below the breakpoint.
fn resume_over_a_software_breakpoint(instead: impl FnOnce(&Script, &mut VcpuDebugger) + Send) {
    let script = Script::new(&[NOP, NOP, branch(0)]);
    script.session.attach().unwrap();
    script.session.insert(V0, software(RAM)).unwrap();
    script.session.resume(&[]).unwrap();
    let mut debugger = script.session.vcpu_thread(V0).unwrap();
    script.enter(&mut debugger);
    debugger.on_debug_exit(&*script.vcpu, OUR_BRK).unwrap();
    let script = &script;
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(move || {
            assert_eq!(debugger.wait(), Wait::Run);
            instead(script, &mut debugger);
            // Whatever comes then: the vCPU runs, and leaves the guest when it is kicked.
            while debugger.wait() == Wait::Run {
                if debugger.before_run(&*script.vcpu).unwrap() == Entry::Run {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let stop = script.session.take_stop().unwrap().unwrap();
        assert_eq!(stop.reason, StopReason::SoftwareBreakpoint(Gva(RAM)));
        let began = Instant::now();
        let result = script.session.resume(&[]);
        let took = began.elapsed();
        let planted: u32 = script.ram.ram.read_obj(GuestAddress(RAM)).unwrap();
        script.session.close();
        vcpu.join().unwrap();
        assert!(result.is_ok(), "{:?}", result.err());
        assert!(took < SOON, "resume took {took:?}");
        assert_ne!(planted, NOP, "the breakpoint is there again");
    });
}

#[test]
fn a_reset_while_a_breakpoint_is_stepped_over_does_not_hang_resume() {
    // As with a breakpoint on the HVC of a PSCI SYSTEM_RESET.
    resume_over_a_software_breakpoint(|script, debugger| {
        assert_eq!(debugger.before_run(&*script.vcpu).unwrap(), Entry::Run);
        script.session.before_reset().unwrap();
        script.set(Reg::Pc, RAM + 4);
        script.set(Reg::Pstate, Pstate::EL1H | Pstate::DAIF);
        script.session.after_reset().unwrap();
    });
}

#[test]
fn an_instruction_that_waits_in_the_hypervisor_does_not_hang_resume() {
    // As with a breakpoint on the HVC of a PSCI CPU_OFF: KVM_RUN moves pc and blocks until a kick.
    resume_over_a_software_breakpoint(|script, debugger| {
        assert_eq!(debugger.before_run(&*script.vcpu).unwrap(), Entry::Run);
        script.set(Reg::Pc, RAM + 4);
        script.vcpu.kicked.store(false, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(25);
        while !script.vcpu.kicked.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn the_thread_of_a_stopped_vcpu_serves_its_vmm_and_stays_stopped() {
    let script = Script::new(&[NOP, NOP]);
    script.session.attach().unwrap();
    let (script, wanted) = (&script, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (attends, attended) = std::sync::mpsc::channel();
        let vcpu = scope.spawn(move || {
            let mut debugger = script.session.vcpu_thread(V0).unwrap();
            assert_eq!(debugger.wait_unless(&|| wanted.load(Ordering::SeqCst)), Wait::Attention);
            attends.send(()).unwrap();
            // Back from whatever the VMM wanted, it does what it was told meanwhile.
            script.enter(&mut debugger);
            assert!(script.vcpu.config.lock().unwrap().single_step);
        });
        while script.session.vcpu_states() != [VcpuState::Stopped] {
            std::thread::yield_now();
        }
        wanted.store(true, Ordering::SeqCst);
        script.session.wake(V0).unwrap();
        attended.recv_timeout(SOON).unwrap();
        assert_eq!(script.session.vcpu_states(), [VcpuState::Stopped], "the VMM has the thread, nobody the vCPU");
        script.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
        vcpu.join().unwrap();
    });
}
