//! The same steps through a debug session in reference-vmm.

use crate::Error;
use crate::payload::{self, BASE, Payload, STEPS};
use guest_debug::arm64::Reg;
use guest_debug::{
    Breakpoint, DebugConfig, DebugExit, DebugSession, DebugVcpu, Entry, HitRule, ResumeAction, StopReason, VcpuError,
    VcpuId, VmHost, Wait,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use reference_vmm::config::DebugMode;
use reference_vmm::control::Request;
use reference_vmm::kvm::{Vcpu, Vm};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const BOOT: VcpuId = VcpuId(0);
/// Longest that a round may take on the slowest machine.
const TIMEOUT_MS: i32 = 60_000;

/// A client of a running VM's session.
pub(crate) struct Stepper<'a> {
    session: &'a DebugSession,
    vcpu: &'a Vcpu,
    epoll: Epoll,
}

/// Runs a VM and steps through it.
pub(crate) fn with_stepper(
    payload: &Payload,
    body: impl FnOnce(&Stepper<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let vm = payload.vm(DebugMode::Hold)?;
    with_running(&vm, || {
        let session = vm.session().ok_or("the VM has no session")?;
        session.attach()?;
        body(&Stepper::new(session, vm.vcpus().first().ok_or("the VM has no vCPU")?)?)
    })
}

/// Runs a VM as long as `body` does.
pub(crate) fn with_running(vm: &Vm, body: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    thread::scope(|scope| {
        let running = scope.spawn(|| vm.run());
        let result = body();
        vm.control().request(Request::Quit);
        running.join().map_err(|_| "the VM panicked")??;
        result
    })
}

impl<'a> Stepper<'a> {
    fn new(session: &'a DebugSession, vcpu: &'a Vcpu) -> Result<Self, Error> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, session.stop_fd().as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        Ok(Self { session, vcpu, epoll })
    }

    /// Steps once over the whole payload.
    pub(crate) fn round(&self) -> Result<Duration, Error> {
        payload::rewind(self.vcpu)?;
        let range = BASE..BASE + 4 * STEPS;
        let started = Instant::now();
        self.session.resume(&[(BOOT, ResumeAction::StepRange(range))])?;
        let reason = self.stop()?;
        let took = started.elapsed();
        if reason != StopReason::Step {
            return Err(format!("stopped for {reason:?}").into());
        }
        payload::check_end(self.vcpu)?;
        Ok(took)
    }

    /// Waits for the next stop.
    fn stop(&self) -> Result<StopReason, Error> {
        loop {
            if let Some(stop) = self.session.take_stop()? {
                return Ok(stop.reason);
            }
            if self.epoll.wait(TIMEOUT_MS, &mut [EpollEvent::default()])? == 0 {
                return Err("no stop".into());
            }
        }
    }

    pub(crate) fn insert(&self, breakpoint: Breakpoint) -> Result<(), Error> {
        Ok(self.session.insert(BOOT, breakpoint)?)
    }

    /// Runs from the start, with a register that the guest counts in at 0, to a hit that counts.
    pub(crate) fn run_to_hit(&self, breakpoint: Breakpoint, rule: HitRule, counter: u8) -> Result<Duration, Error> {
        payload::rewind(self.vcpu)?;
        self.vcpu.set_u64(Reg::X(counter), 0)?;
        self.session.set_rule(breakpoint, rule)?;
        let started = Instant::now();
        self.session.resume(&[])?;
        let reason = self.stop()?;
        let took = started.elapsed();
        match reason {
            StopReason::HardwareBreakpoint(_) | StopReason::SoftwareBreakpoint(_) => Ok(took),
            reason => Err(format!("stopped for {reason:?}").into()),
        }
    }
}

/// What the session asks of the hypervisor beside KVM_RUN.
pub(crate) struct Calls {
    pub(crate) gets: f64,
    pub(crate) sets: f64,
    pub(crate) configs: f64,
}

/// Counts over a round.
pub(crate) fn calls_per_step(payload: &Payload) -> Result<Calls, Error> {
    let vm = payload.vm(DebugMode::Off)?;
    let vcpu = vm.vcpus().first().ok_or("the VM has no vCPU")?;
    let caps = guest_debug::DebugCaps { guest_debug: true, hw_bps: 2, hw_wps: 2, ..Default::default() };
    let session = DebugSession::new(1, caps, Arc::new(vm.ram().clone()), true)?;
    session.set_host(Box::new(Host(vcpu.clone())))?;
    let counters = Counters::default();
    thread::scope(|scope| {
        let running = scope.spawn(|| run(&session, vcpu, &counters));
        let result = session.attach().map_err(Error::from).and_then(|()| {
            let stepper = Stepper::new(&session, vcpu)?;
            stepper.round()
        });
        session.close();
        running.join().map_err(|_| "the vCPU's thread panicked")??;
        result
    })?;
    let per_step = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64 / STEPS as f64;
    Ok(Calls { gets: per_step(&counters.gets), sets: per_step(&counters.sets), configs: per_step(&counters.configs) })
}

struct Host(Arc<Vcpu>);

impl VmHost for Host {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(self.0.clone())
    }

    // It stops by itself, at the end of the steps.
    fn kick(&self, _: VcpuId) {}
}

/// A vCPU's loop with nothing in it but the session.
fn run(session: &Arc<DebugSession>, vcpu: &Vcpu, counters: &Counters) -> Result<(), Error> {
    let mut debugger = session.vcpu_thread(BOOT)?;
    while debugger.wait() == Wait::Run {
        let mut fd = vcpu.lock();
        if debugger.before_run(&Counted { fd: &fd, counters })? == Entry::Again {
            continue;
        }
        let exit = match fd.run()? {
            VcpuExit::Debug(exit) => exit,
            exit => return Err(format!("KVM_RUN ended with {exit:?}").into()),
        };
        let exit = DebugExit::from_kvm(exit, fd.get_kvm_run().flags);
        debugger.on_debug_exit(&Counted { fd: &fd, counters }, exit)?;
    }
    Ok(())
}

#[derive(Default)]
struct Counters {
    gets: AtomicU64,
    sets: AtomicU64,
    configs: AtomicU64,
}

/// A vCPU that counts the calls.
struct Counted<'a> {
    fd: &'a VcpuFd,
    counters: &'a Counters,
}

impl DebugVcpu for Counted<'_> {
    fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
        self.counters.configs.fetch_add(1, Ordering::Relaxed);
        DebugVcpu::set_guest_debug(self.fd, config)
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        self.fd.get_reg(reg, value)
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        self.counters.sets.fetch_add(1, Ordering::Relaxed);
        self.fd.set_reg(reg, value)
    }
}
