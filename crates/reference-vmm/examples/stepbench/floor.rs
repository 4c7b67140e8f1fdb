//! KVM alone: no session, no decoding, nothing but KVM_RUN.

use crate::Error;
use crate::payload::{self, Payload};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, kvm_guest_debug};
use kvm_ioctls::{VcpuExit, VcpuFd};
use reference_vmm::config::DebugMode;
use reference_vmm::kvm::Vm;
use std::thread;
use std::time::{Duration, Instant};

/// A VM that nobody but this thread runs.
pub(crate) struct Bare(Vm);

impl Bare {
    pub(crate) fn new(payload: &Payload) -> Result<Self, Error> {
        Ok(Self(payload.vm(DebugMode::Off)?))
    }

    /// Steps once over the whole payload, on a thread of the vCPU's own while the caller sleeps, as in a VMM.
    pub(crate) fn round(&self) -> Result<Duration, Error> {
        let steps = |fd: &mut VcpuFd| {
            payload::rewind(fd)?;
            debug(fd, KVM_GUESTDBG_SINGLESTEP, None)?;
            let started = Instant::now();
            for _ in 0..payload::STEPS {
                run(fd)?;
            }
            let took = started.elapsed();
            payload::check_end(fd)?;
            Ok(took)
        };
        thread::scope(|scope| scope.spawn(|| self.with_vcpu(steps)).join().map_err(|_| "the vCPU's thread panicked")?)
    }

    /// Runs to a hardware breakpoint, and calls `then` at once.
    pub(crate) fn run_to<T>(&self, address: u64, then: impl FnOnce(&VcpuFd) -> Result<T, Error>) -> Result<T, Error> {
        self.with_vcpu(|fd| {
            payload::rewind(fd)?;
            debug(fd, KVM_GUESTDBG_USE_HW, Some(address))?;
            run(fd)?;
            then(fd)
        })
    }

    /// Passes a breakpoint so many times: out of the guest at the hit, and over the instruction without it.
    pub(crate) fn pass(&self, address: u64, hits: u64) -> Result<Duration, Error> {
        let pass = |fd: &mut VcpuFd| {
            payload::rewind(fd)?;
            let started = Instant::now();
            for _ in 0..hits {
                debug(fd, KVM_GUESTDBG_USE_HW, Some(address))?;
                run(fd)?;
                debug(fd, KVM_GUESTDBG_SINGLESTEP, None)?;
                run(fd)?;
            }
            Ok(started.elapsed())
        };
        thread::scope(|scope| scope.spawn(|| self.with_vcpu(pass)).join().map_err(|_| "the vCPU's thread panicked")?)
    }

    /// The vCPU, outside the guest.
    pub(crate) fn with_vcpu<T>(&self, body: impl FnOnce(&mut VcpuFd) -> Result<T, Error>) -> Result<T, Error> {
        let vcpu = self.0.vcpus().first().ok_or("the VM has no vCPU")?;
        body(&mut vcpu.lock())
    }
}

/// `breakpoint` goes to the first slot: enabled, at EL1 and EL0, all four bytes.
fn debug(fd: &VcpuFd, what: u32, breakpoint: Option<u64>) -> Result<(), Error> {
    let mut debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | what, ..Default::default() };
    if let Some(address) = breakpoint {
        debug.arch.dbg_bvr[0] = address;
        debug.arch.dbg_bcr[0] = 0b1111 << 5 | 0b11 << 1 | 1;
    }
    Ok(fd.set_guest_debug(&debug)?)
}

fn run(fd: &mut VcpuFd) -> Result<(), Error> {
    match fd.run()? {
        VcpuExit::Debug(_) => Ok(()),
        exit => Err(format!("KVM_RUN ended with {exit:?}").into()),
    }
}
