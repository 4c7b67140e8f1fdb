//! What costs nothing, or no more than it has to: counted, so that a loss shows whatever the machine does.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use fake::{COUNT, NOP, RAM, Vm, branch};
use guest_debug::arm64::{Pstate, Reg, SysReg};
use guest_debug::{
    Breakpoint, DebugCaps, DebugConfig, DebugSession, DebugVcpu, Entry, GuestRam, Gva, RamError, ResumeAction,
    SessionError, StopEvent, StopReason, VcpuError, VcpuId, VcpuState, VmHost, Wait,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vm_memory::GuestAddress;

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };

#[test]
fn a_vcpu_that_runs_freely_costs_nothing() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(VcpuId(0), Breakpoint::Hardware(Gva(RAM + 0x1000))).unwrap();
    let vcpu = &vm.vcpus[0];
    vm.session.resume(&[]).unwrap();
    while vcpu.entries.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let calls = || [&vcpu.config_calls, &vcpu.register_reads, &vcpu.entries].map(|count| count.load(Ordering::Relaxed));
    let before = calls();
    assert_eq!(before[2], 1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(calls(), before, "nobody asks a running vCPU for anything, and it stays in the guest");
    vm.session.interrupt();
    assert_eq!(vm.stop().reason, StopReason::Interrupt);
    assert!(vm.get(0, Reg::X(1)) > 0);
}

/// Steps vCPU 0 until `done` says so, which hears whether vCPU 1 was let go meanwhile: it has to be kicked then. Answers whether
/// it did.
fn step_until(vm: &Vm, steps: usize, mut done: impl FnMut(bool) -> bool) -> bool {
    let kicks = || vm.vcpus[1].kicks.load(Ordering::Relaxed);
    (0..steps).any(|_| {
        let before = kicks();
        vm.session.resume(&[(VcpuId(0), ResumeAction::Step)]).unwrap();
        assert_eq!(vm.stop(), StopEvent { vcpu: VcpuId(0), reason: StopReason::Step });
        done(kicks() > before)
    })
}

#[test]
fn a_step_behind_another_one_lets_no_other_vcpu_go() {
    let vm = Vm::new(2, &[NOP, COUNT, NOP, branch(-8)]).start();
    // On a busy machine some steps take so long that the other one goes.
    let mut alone = 0;
    let many = step_until(&vm, 2000, |went| {
        alone = if went { 0 } else { alone + 1 };
        alone == 20
    });
    assert!(many, "vCPU 1 goes with each step of vCPU 0");
}

#[test]
fn a_script_that_steps_one_vcpu_lets_the_others_get_on() {
    let vm = Vm::new(2, &[NOP, COUNT, NOP, branch(-8)]).start();
    let (mut count, mut times) = (0, 0);
    let often = step_until(&vm, 1_000_000, |_| {
        let now = vm.get(1, Reg::X(1));
        times += usize::from(now > count);
        count = now;
        times == 10
    });
    assert!(often, "vCPU 1 has got on {times} times");
}

/// vCPUs that leave the guest only when every one of them was kicked.
struct Crowd {
    kicks: Mutex<Vec<usize>>,
    kicked: Condvar,
}

impl Crowd {
    /// Answers the kicks so far, and lets every vCPU leave.
    fn release(&self) -> Vec<usize> {
        let mut kicks = self.kicks.lock().unwrap();
        let released = vec![1; kicks.len()];
        self.kicked.notify_all();
        std::mem::replace(&mut kicks, released)
    }

    /// Inside the guest.
    fn run(&self, number: usize) {
        let everybody = |kicks: &Vec<usize>| kicks.iter().all(|kicks| *kicks > 0);
        let kicks = self.kicks.lock().unwrap();
        let (kicks, waited) =
            self.kicked.wait_timeout_while(kicks, Duration::from_secs(10), |k| !everybody(k)).unwrap();
        assert!(!waited.timed_out(), "vCPU {number} was waited for before all were kicked: {kicks:?}");
    }
}

/// Has registers enough to be stopped.
struct Member;

impl DebugVcpu for Member {
    fn set_guest_debug(&self, _: &DebugConfig) -> Result<(), VcpuError> {
        Ok(())
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let number = if reg == Reg::Pstate { Pstate::EL1H } else { RAM };
        value.copy_from_slice(&number.to_le_bytes()[..value.len()]);
        Ok(())
    }
}

struct CrowdHost(Arc<Crowd>);

impl VmHost for CrowdHost {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(Arc::new(Member))
    }

    fn kick(&self, id: VcpuId) {
        self.0.kicks.lock().unwrap()[id.0 as usize] += 1;
        self.0.kicked.notify_all();
    }
}

#[test]
fn stopping_64_vcpus_is_64_kicks_and_no_round_trips() {
    const VCPUS: u32 = 64;
    let session = DebugSession::new(VCPUS, CAPS, Arc::new(Counted::default()), false).unwrap();
    let count = VCPUS as usize;
    let crowd = Arc::new(Crowd { kicks: Mutex::new(vec![0; count]), kicked: Condvar::new() });
    session.set_host(Box::new(CrowdHost(crowd.clone()))).unwrap();
    std::thread::scope(|scope| {
        for number in 0..VCPUS {
            let (mut debugger, crowd) = (session.vcpu_thread(VcpuId(number)).unwrap(), crowd.clone());
            scope.spawn(move || {
                while debugger.wait() == Wait::Run {
                    if debugger.before_run(&Member).unwrap() == Entry::Run {
                        crowd.run(number as usize);
                    }
                }
            });
        }
        let _end = End(&session, &crowd);
        // A client that comes stops all of them, and so does its Ctrl-C.
        for interrupt in [false, true] {
            while session.vcpu_states().iter().any(|state| *state != VcpuState::Running) {
                std::thread::yield_now();
            }
            let stopped = if interrupt { stop_by_interrupt(&session) } else { session.attach() };
            let kicks = crowd.release();
            stopped.unwrap();
            assert_eq!(kicks, vec![1; count]);
            assert_eq!(session.vcpu_states(), vec![VcpuState::Stopped; count]);
            crowd.kicks.lock().unwrap().fill(0);
            session.resume(&[]).unwrap();
        }
    });
}

/// Lets every thread go, also when an assertion fails.
struct End<'a>(&'a DebugSession, &'a Crowd);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.1.release();
        self.0.close();
    }
}

fn stop_by_interrupt(session: &DebugSession) -> Result<(), SessionError> {
    session.interrupt();
    let stop = session.take_stop()?;
    assert_eq!(stop.map(|stop| stop.reason), Some(StopReason::Interrupt));
    Ok(())
}

/// Memory that reads as zeros and counts.
#[derive(Clone, Default)]
struct Counted(Arc<[AtomicUsize; 2]>);

impl Counted {
    fn take(&self) -> [usize; 2] {
        [0, 1].map(|index: usize| self.0[index].swap(0, Ordering::Relaxed))
    }
}

impl GuestRam for Counted {
    fn read(&self, _: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        self.0[0].fetch_add(1, Ordering::Relaxed);
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: GuestAddress, _: &[u8]) -> Result<(), RamError> {
        self.0[1].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The MMU is off.
struct Flat(Arc<AtomicUsize>);

impl DebugVcpu for Flat {
    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        // 40-bit physical addresses.
        let number: u64 = if reg == Reg::Sys(SysReg::ID_AA64MMFR0_EL1) { 2 } else { 0 };
        value.copy_from_slice(&number.to_le_bytes()[..value.len()]);
        Ok(())
    }
}

struct FlatHost(Arc<AtomicUsize>);

impl VmHost for FlatHost {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(Arc::new(Flat(self.0.clone())))
    }

    fn kick(&self, _: VcpuId) {}
}

#[test]
fn the_ten_thousandth_breakpoint_costs_what_the_first_did() {
    let (ram, registers) = (Counted::default(), Arc::new(AtomicUsize::new(0)));
    let session = DebugSession::new(1, CAPS, Arc::new(ram.clone()), true).unwrap();
    session.set_host(Box::new(FlatHost(registers.clone()))).unwrap();
    session.attach().unwrap();
    let cost = || (ram.take(), registers.swap(0, Ordering::Relaxed));
    let place = |number: u64| Breakpoint::Software(Gva(RAM + number * 64));
    cost();
    let mut inserted = Vec::new();
    for number in 0..10_000 {
        session.insert(VcpuId(0), place(number)).unwrap();
        inserted.push(cost());
    }
    let first = inserted[0];
    assert_eq!(first.0, [1, 1], "the instruction is read, and a BRK written");
    assert!(inserted.iter().all(|cost| *cost == first), "{first:?}, and then something else");
    for number in [0, 5000, 9999] {
        session.remove(place(number)).unwrap();
        assert_eq!(cost(), ([1, 0], 0), "it is looked for where it is");
    }
}
