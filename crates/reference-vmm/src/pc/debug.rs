//! The debugger: how a `guest-debug` session reaches this VMM's vCPUs, and how a vCPU's thread meets the session.

use super::machine::Machine;
use super::vcpu::Vcpu;
use crate::config::DebugLimits;
use crate::error::VmError;
use guest_debug::x86_64::stop::Exception;
use guest_debug::x86_64::{HwDebug, Reg};
use guest_debug::{
    DebugCaps, DebugConfig, DebugSession, DebugVcpu, Entry, VcpuDebugger, VcpuError, VcpuId, VmHost, Wait, X86_64,
};
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::VcpuFd;
use std::sync::Arc;

/// Makes the session of a VM. With `hold`, no vCPU executes an instruction before a client resumes it.
///
/// # Errors
///
/// [`VmError::Debug`], for a host whose KVM can't debug guests.
pub(super) fn session(
    machine: &Machine,
    hold: bool,
    limits: &DebugLimits,
) -> Result<Arc<DebugSession<X86_64>>, VmError> {
    let caps = machine.debug_caps();
    let caps = DebugCaps {
        hw_bps: limits.breakpoints.map_or(caps.hw_bps, |limit| limit.min(caps.hw_bps)),
        hw_wps: limits.watchpoints.map_or(caps.hw_wps, |limit| limit.min(caps.hw_wps)),
        ..caps
    };
    let cpus = u32::try_from(machine.vcpus().len()).unwrap_or(u32::MAX);
    let session = DebugSession::new(cpus, caps, Arc::new(machine.ram().clone()), hold)?;
    session.set_host(Box::new(Host(machine.vcpus().to_vec())))?;
    Ok(session)
}

/// The VMM, as the session sees it.
struct Host(Vec<Arc<Vcpu>>);

impl VmHost<X86_64> for Host {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<X86_64>>> {
        let vcpu = self.0.get(id.0 as usize)?;
        Some(vcpu.clone())
    }

    fn kick(&self, id: VcpuId) {
        if let Some(vcpu) = self.0.get(id.0 as usize) {
            vcpu.kick();
        }
    }
}

/// For threads other than the vCPU's own. The lock is free: the session asks for stopped vCPUs only.
impl DebugVcpu<X86_64> for Vcpu {
    fn set_guest_debug(&self, config: &DebugConfig<HwDebug>) -> Result<(), VcpuError> {
        DebugVcpu::set_guest_debug(&*self.lock(), config)
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.lock().get_reg(reg, value)
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        self.lock().set_reg(reg, value)
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        self.lock().reg_list()
    }

    fn inject(&self, exception: Exception) -> Result<(), VcpuError> {
        self.lock().inject(exception)
    }
}

/// The debugger's part of a vCPU's thread; without a session it never wants anything.
#[derive(Debug)]
pub(super) struct Debugger(Option<VcpuDebugger<X86_64>>);

impl Debugger {
    pub(super) fn new(session: Option<&Arc<DebugSession<X86_64>>>, vcpu: u32) -> Result<Self, VmError> {
        Ok(Self(session.map(|session| session.vcpu_thread(VcpuId(vcpu))).transpose()?))
    }

    /// Blocks while the debugger keeps this vCPU stopped; answers false at the session's end. The caller holds no
    /// lock and is outside the guest.
    pub(super) fn wait(&mut self) -> bool {
        self.0.as_mut().is_none_or(|debugger| debugger.wait() == Wait::Run)
    }

    /// Whether the thread must come back to [`Debugger::wait`].
    pub(super) fn stop_requested(&self) -> bool {
        self.0.as_ref().is_some_and(VcpuDebugger::stop_requested)
    }

    /// Arms KVM for what comes next; answers whether the guest may be entered.
    pub(super) fn before_run(&mut self, fd: &VcpuFd) -> Result<bool, VmError> {
        match &mut self.0 {
            Some(debugger) => Ok(debugger.before_run(fd)? == Entry::Run),
            None => Ok(true),
        }
    }

    /// Whether a device access must be completed at once.
    pub(super) fn needs_io_completion(&self) -> bool {
        self.0.as_ref().is_some_and(VcpuDebugger::needs_io_completion)
    }

    pub(super) fn after_io(&mut self, fd: &VcpuFd) -> Result<(), VmError> {
        self.0.as_mut().map_or(Ok(()), |debugger| Ok(debugger.after_io(fd)?))
    }

    pub(super) fn on_debug_exit(&mut self, fd: &VcpuFd, exit: kvm_debug_exit_arch) -> Result<(), VmError> {
        match &mut self.0 {
            Some(debugger) => Ok(debugger.on_debug_exit(fd, exit.into())?),
            None => Err(VmError::Debug("KVM_EXIT_DEBUG without a session".to_owned())),
        }
    }
}
