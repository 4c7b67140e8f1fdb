//! One vCPU and the loop of its thread.

use super::boot::EntryPoint;
use super::debug::Debugger;
use super::kvm_error;
use super::layout::{CODE, DATA, GDT, PML4, STACK};
use super::ports::Ports;
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick::Thread;
use kvm_bindings::{
    CpuId, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// CR0: PE, ET, PG.
const CR0: u64 = 1 | 1 << 4 | 1 << 31;
/// CR4: PAE.
const CR4: u64 = 1 << 5;
/// IA32_EFER: LME and LMA.
const EFER: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 2;

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    /// Its thread holds the lock while it is inside the guest, and lets go before it waits for anything.
    fd: Mutex<VcpuFd>,
    thread: Thread,
    new: Registers,
}

/// What a reset writes.
#[derive(Debug)]
struct Registers {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp: kvm_mp_state,
}

impl Registers {
    fn of(fd: &VcpuFd) -> Result<Self, VmError> {
        Ok(Self {
            regs: fd.get_regs().map_err(kvm_error("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?,
            fpu: fd.get_fpu().map_err(kvm_error("KVM_GET_FPU"))?,
            debug: fd.get_debug_regs().map_err(kvm_error("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(kvm_error("KVM_GET_LAPIC"))?,
            mp: fd.get_mp_state().map_err(kvm_error("KVM_GET_MP_STATE"))?,
        })
    }
}

impl Vcpu {
    /// Makes a vCPU. All but the first wait for the first one's INIT and SIPI.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] with the KVM call that failed.
    pub(super) fn new(vm: &VmFd, index: u32, mut cpuid: CpuId) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index.into()).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        for leaf in cpuid.as_mut_slice() {
            match leaf.function {
                // The initial APIC id, in bits 31:24.
                1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | index << 24,
                // The x2APIC id.
                0xb | 0x1f => leaf.edx = index,
                _ => {}
            }
        }
        fd.set_cpuid2(&cpuid).map_err(kvm_error("KVM_SET_CPUID2"))?;
        let new = Registers::of(&fd)?;
        Ok(Self { index, fd: Mutex::new(fd), thread: Thread::default(), new })
    }

    /// Its index, from 0; also its APIC id.
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

    /// Registers as after power-on. MSRs keep their values: a kernel writes those that it uses.
    pub(super) fn reset(&self) -> Result<(), VmError> {
        let (fd, new) = (self.lock(), &self.new);
        fd.set_vcpu_events(&kvm_vcpu_events::default()).map_err(kvm_error("KVM_SET_VCPU_EVENTS"))?;
        fd.set_regs(&new.regs).map_err(kvm_error("KVM_SET_REGS"))?;
        fd.set_sregs(&new.sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
        fd.set_fpu(&new.fpu).map_err(kvm_error("KVM_SET_FPU"))?;
        fd.set_debug_regs(&new.debug).map_err(kvm_error("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&new.lapic).map_err(kvm_error("KVM_SET_LAPIC"))?;
        fd.set_mp_state(new.mp).map_err(kvm_error("KVM_SET_MP_STATE"))
    }

    /// Sets where the vCPU starts: in 64-bit mode, every address its own, interrupts off.
    pub(super) fn set_entry(&self, entry: EntryPoint) -> Result<(), VmError> {
        let fd = self.lock();
        let mut sregs = fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        let flat = kvm_segment { limit: u32::MAX, s: 1, present: 1, g: 1, ..kvm_segment::default() };
        let data = kvm_segment { selector: DATA, type_: 3, db: 1, ..flat };
        sregs.cs = kvm_segment { selector: CODE, type_: 11, l: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x1f);
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
        fd.set_sregs(&sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
        let EntryPoint { rip, rsi } = entry;
        let regs = kvm_regs { rip, rsi, rsp: STACK, rbp: STACK, rflags: RFLAGS, ..kvm_regs::default() };
        fd.set_regs(&regs).map_err(kvm_error("KVM_SET_REGS"))
    }

    /// The body of the vCPU's thread; returns when the VM ends.
    #[expect(unsafe_code, reason = "binds a flag in the mapped kvm_run")]
    pub(super) fn run(&self, control: &Control, ports: &Ports, debugger: Debugger) {
        let _leave = Leave { control, vcpu: self.index };
        let flag = NonNull::from(&mut self.lock().get_kvm_run().immediate_exit);
        // SAFETY: the mapping lives as long as the VcpuFd in self, which the binding borrows.
        let _binding = unsafe { self.thread.bind(flag) };
        let mut runner = Runner { vcpu: self, control, ports, debugger, io_pending: false };
        if let Err(error) = runner.run() {
            control.request(Request::Fail(error));
        }
    }
}

/// What one vCPU's thread works with.
struct Runner<'a> {
    vcpu: &'a Vcpu,
    control: &'a Control,
    ports: &'a Ports,
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
            Ok(VcpuExit::IoIn(port, data)) => {
                self.ports.read(port, data);
                self.io_pending = true;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let request = self.ports.write(port, data);
                self.io_pending = true;
                request.into_iter().for_each(|request| self.control.request(request));
            }
            // A PC's kernel looks for devices that are not there.
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xff);
                self.io_pending = true;
            }
            Ok(VcpuExit::MmioWrite(..)) => self.io_pending = true,
            Ok(VcpuExit::Debug(exit)) => self.debugger.on_debug_exit(fd, exit)?,
            // A triple fault.
            Ok(VcpuExit::Shutdown) => self.control.request(Request::Reset),
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(self.failure(format!("KVM_RUN ended with {exit:?}, which is not handled"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {}
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
