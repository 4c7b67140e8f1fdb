//! One vCPU and the loop of its thread.

use super::debug::Debugger;
use super::kvm_error;
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick::Thread;
use crate::mmio::MmioBus;
use crate::state::{MachineState, VCPU_FEATURE_WORDS};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

// Registers for KVM_GET_ONE_REG: core registers by their offset in struct kvm_regs, in units of 4 bytes.
const CORE: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64;
const REG_X0: u64 = CORE;
const REG_PC: u64 = CORE | 64;
/// KVM_REG_ARM64_SVE_VLS (kernel: arch/arm64/include/uapi/asm/kvm.h).
pub(super) const REG_SVE_VLS: u64 = 0x6060_0000_0015_ffff;
const REG_MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | 3 << 14 | 5;
/// MPIDR_EL1: Aff3, and Aff2 to Aff0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// What every vCPU of a VM is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuFeatures {
    /// As KVM_ARM_VCPU_INIT takes them.
    words: [u32; VCPU_FEATURE_WORDS],
    /// Vector lengths of SVE; all that the host has where it is none.
    sve_vls: Option<Vec<u8>>,
}

impl VcpuFeatures {
    /// Everything that KVM offers.
    pub fn of_host(vm: &VmFd) -> Self {
        let pauth = vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric);
        let offered = [
            (KVM_ARM_VCPU_PSCI_0_2, true),
            (KVM_ARM_VCPU_SVE, vm.check_extension(Cap::ArmSve)),
            // KVM takes these two together only.
            (KVM_ARM_VCPU_PTRAUTH_ADDRESS, pauth),
            (KVM_ARM_VCPU_PTRAUTH_GENERIC, pauth),
        ];
        let mut words = [0; VCPU_FEATURE_WORDS];
        words[0] = offered.iter().fold(0, |word, (feature, wanted)| word | u32::from(*wanted) << feature);
        Self { words, sve_vls: None }
    }

    /// Those that a saved VM had.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] when this host does not offer one of them.
    pub fn saved(machine: &MachineState, vm: &VmFd) -> Result<Self, VmError> {
        let offered = Self::of_host(vm).words;
        let words: Vec<u32> = machine.vcpu_features.clone();
        let bad = || VmError::State {
            field: "machine.vcpu_features".to_owned(),
            value: format!("{:#x?}", machine.vcpu_features),
            acceptable: format!("at most what KVM offers here, {offered:#x?}"),
        };
        let words: [u32; VCPU_FEATURE_WORDS] = words.try_into().map_err(|_| bad())?;
        if words.iter().zip(offered).any(|(wanted, offered)| wanted & !offered != 0) {
            return Err(bad());
        }
        Ok(Self { words, sve_vls: machine.sve_vls.clone() })
    }

    fn has(&self, feature: u32) -> bool {
        self.words[0] >> feature & 1 != 0
    }

    /// The features, without the one that differs from vCPU to vCPU.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    /// Its thread holds the lock while it is inside the guest, and lets go before it waits for anything.
    fd: Mutex<VcpuFd>,
    thread: Thread,
    init: kvm_vcpu_init,
    mpidr: u64,
}

impl Vcpu {
    /// Makes a vCPU. All but the first wait to be powered on through PSCI.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] with the KVM call that failed.
    pub fn new(vm: &VmFd, index: u32, features: &VcpuFeatures) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index.into()).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(kvm_error("KVM_ARM_PREFERRED_TARGET"))?;
        init.features = features.words;
        init.features[0] |= u32::from(index != 0) << KVM_ARM_VCPU_POWER_OFF;
        fd.vcpu_init(&init).map_err(kvm_error("KVM_ARM_VCPU_INIT"))?;
        if features.has(KVM_ARM_VCPU_SVE) {
            if let Some(vls) = &features.sve_vls {
                fd.set_one_reg(REG_SVE_VLS, vls).map_err(kvm_error("KVM_SET_ONE_REG (SVE vector lengths)"))?;
            }
            fd.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).map_err(kvm_error("KVM_ARM_VCPU_FINALIZE (SVE)"))?;
        }
        let mut mpidr = [0; 8];
        fd.get_one_reg(REG_MPIDR_EL1, &mut mpidr).map_err(kvm_error("KVM_GET_ONE_REG (MPIDR_EL1)"))?;
        let mpidr = u64::from_le_bytes(mpidr) & MPIDR_AFFINITY;
        Ok(Self { index, fd: Mutex::new(fd), thread: Thread::default(), init, mpidr })
    }

    /// Its index, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Affinity fields of its MPIDR_EL1.
    pub fn mpidr(&self) -> u64 {
        self.mpidr
    }

    /// The vCPU's file descriptor; blocks while the vCPU is inside the guest.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the vCPU leave the guest soon.
    pub fn kick(&self) {
        self.thread.kick();
    }

    /// All registers as after power-on.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn reset(&self) -> Result<(), VmError> {
        self.lock().vcpu_init(&self.init).map_err(kvm_error("KVM_ARM_VCPU_INIT"))
    }

    /// Sets where the vCPU starts, and its first argument.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn set_entry(&self, pc: u64, x0: u64) -> Result<(), VmError> {
        let fd = self.lock();
        for (register, value) in [(REG_PC, pc), (REG_X0, x0)] {
            fd.set_one_reg(register, &value.to_le_bytes()).map_err(kvm_error("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    /// The body of the vCPU's thread; returns when the VM ends.
    #[expect(unsafe_code, reason = "binds a flag in the mapped kvm_run")]
    pub(super) fn run(&self, control: &Control, bus: &MmioBus, debugger: Debugger) {
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
    bus: &'a MmioBus,
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
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.read(address, data);
                self.io_pending = true;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.write(address, data);
                self.io_pending = true;
            }
            Ok(VcpuExit::Debug(exit)) => self.debugger.on_debug_exit(fd, exit)?,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => self.control.request(Request::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => self.control.request(Request::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => return Err(VmError::GuestCrash),
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(self.failure(format!("KVM_RUN ended with {exit:?}, which is not handled"))),
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
