//! One vCPU and the loop of its thread.

use super::debug::Debugger;
use super::platform::{Bus, Parts};
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick::Thread;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    /// Its thread holds the lock while it is inside the guest, and lets go before it waits for anything.
    fd: Mutex<VcpuFd>,
    thread: Thread,
    /// What the architecture has beside it.
    pub(super) parts: Parts,
}

impl Vcpu {
    pub(super) fn with(index: u32, fd: VcpuFd, parts: Parts) -> Self {
        Self { index, fd: Mutex::new(fd), thread: Thread::default(), parts }
    }

    /// Its index, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The vCPU's file descriptor; blocks while the vCPU is inside the guest.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the vCPU leave the guest soon.
    pub fn kick(&self) {
        self.thread.kick();
    }

    /// The body of the vCPU's thread; returns when the VM ends.
    #[expect(unsafe_code, reason = "binds a flag in the mapped kvm_run")]
    pub(super) fn run(&self, control: &Control, bus: &Bus, debugger: Debugger) {
        let _leave = Leave { control, vcpu: self.index };
        let flag = NonNull::from(&mut self.lock().get_kvm_run().immediate_exit);
        // SAFETY: the mapping lives as long as the VcpuFd in self, which the binding borrows.
        let _binding = unsafe { self.thread.bind(flag) };
        let mut runner = Runner { vcpu: self, control, bus, debugger, io_pending: false };
        if let Err(error) = runner.run() {
            control.request(Request::Fail(error));
        }
    }
}

/// What one vCPU's thread works with.
struct Runner<'a> {
    vcpu: &'a Vcpu,
    control: &'a Control,
    bus: &'a Bus,
    debugger: Debugger,
    /// KVM completes the guest's device access at the next entry; until then registers are of the time before it.
    io_pending: bool,
}

impl Runner<'_> {
    fn run(&mut self) -> Result<(), VmError> {
        let mut inside = false;
        loop {
            if !inside || self.control.needs_attention() || self.debugger.stop_requested() {
                if self.io_pending {
                    self.complete_io(&mut self.vcpu.lock())?;
                }
                self.control.leave_guest(self.vcpu.index);
                if !self.debugger.wait() || !self.control.enter_guest(self.vcpu.index) {
                    return Ok(());
                }
                inside = true;
            }

            let mut fd = self.vcpu.lock();
            fd.set_kvm_immediate_exit(0);
            // The signal handler runs on this thread: clear first, look second, enter last (see kick.rs).
            compiler_fence(Ordering::SeqCst);
            if self.control.needs_attention() || !self.debugger.before_run(&fd)? {
                continue;
            }
            self.io_pending = false;
            self.enter(&mut fd)?;
            if self.io_pending && self.debugger.needs_io_completion() {
                self.complete_io(&mut fd)?;
            }
        }
    }

    /// Runs guest code until there is something to do.
    fn enter(&mut self, fd: &mut VcpuFd) -> Result<(), VmError> {
        match fd.run() {
            Ok(VcpuExit::Debug(exit)) => self.debugger.on_debug_exit(fd, exit)?,
            Ok(VcpuExit::Intr) => {}
            Ok(mut exit) => match self.bus.handle(&mut exit) {
                Some(Outcome { access, request }) => {
                    self.io_pending = access;
                    request.into_iter().for_each(|request| self.control.request(request));
                }
                None => return Err(self.failure(format!("KVM_RUN ended with {exit:?}, which is not handled"))),
            },
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {}
                libc::ENOSYS => {
                    let reason =
                        "the guest accessed a device with an instruction that KVM can't decode (KVM_RUN: ENOSYS)";
                    return Err(self.failure(reason.to_owned()));
                }
                _ => return Err(self.failure(format!("KVM_RUN failed: {error}"))),
            },
        }
        Ok(())
    }

    /// Ends the guest's device access: KVM finishes that instruction at the next KVM_RUN, and with `immediate_exit`
    /// set it executes no other one.
    fn complete_io(&mut self, fd: &mut VcpuFd) -> Result<(), VmError> {
        self.io_pending = false;
        fd.set_kvm_immediate_exit(1);
        match fd.run() {
            Err(error) if error.errno() == libc::EINTR => self.debugger.after_io(fd),
            // The access may have been the instruction of a step.
            Ok(VcpuExit::Debug(exit)) => self.debugger.on_debug_exit(fd, exit),
            Ok(exit) => Err(self.failure(format!("KVM_RUN ended with {exit:?} where only EINTR is possible"))),
            Err(error) => Err(self.failure(format!("KVM_RUN failed: {error}"))),
        }
    }

    fn failure(&self, reason: String) -> VmError {
        VmError::Vcpu { vcpu: self.vcpu.index, reason }
    }
}

/// What the guest's way out of KVM_RUN comes to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// It was the access of a device, which KVM completes at the next entry.
    access: bool,
    /// What the guest asks for with it.
    request: Option<Request>,
}

impl Outcome {
    /// A device has answered.
    pub(super) const ACCESS: Self = Self { access: true, request: None };

    /// A device has answered, and the guest may ask for something with it.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn access_for(request: Option<Request>) -> Self {
        Self { access: true, request }
    }
}

/// The guest asks for something without a device.
impl From<Request> for Outcome {
    fn from(request: Request) -> Self {
        Self { access: false, request: Some(request) }
    }
}

/// Tells the VM when a vCPU thread is gone, panicked or not.
struct Leave<'a> {
    control: &'a Control,
    vcpu: u32,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "its thread panicked".to_owned();
            self.control.request(Request::Fail(VmError::Vcpu { vcpu: self.vcpu, reason }));
        }
        self.control.leave_guest(self.vcpu);
    }
}
