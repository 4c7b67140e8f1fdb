//! The debugger: how a `guest-debug` session reaches this VMM's vCPUs, and how a vCPU's thread meets the session.

use super::machine::Machine;
use super::platform;
use super::vcpu::Vcpu;
use crate::config::{DebugLimits, DebugMode};
use crate::error::VmError;
use guest_debug::kvm::HostArch;
use guest_debug::state::GuestDebugState;
use guest_debug::{
    Arch, DebugCaps, DebugConfig, DebugSession, DebugVcpu, Entry, Restore, VcpuDebugger, VcpuError, VcpuId, VmHost,
    Wait,
};
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::VcpuFd;
use std::sync::Arc;

type Session = DebugSession<HostArch>;
type Reg = <HostArch as Arch>::Reg;

/// Makes the session of a VM. With `hold`, no vCPU executes an instruction before a client resumes it.
///
/// # Errors
///
/// [`VmError::Debug`], for a host whose KVM can't debug guests.
pub(super) fn session(machine: &Machine, hold: bool, limits: &DebugLimits) -> Result<Arc<Session>, VmError> {
    let session = Session::new(machine.cpus(), caps(machine, limits), Arc::new(machine.ram().clone()), hold)?;
    session.set_host(Box::new(Host(machine.vcpus().to_vec())))?;
    Ok(session)
}

/// Makes the session of a VM that was saved. Nothing is armed yet: call [`DebugSession::arm`] once memory and registers are
/// restored, or leave it to the first client that attaches, for a guest that is to wait for one.
///
/// # Errors
///
/// [`VmError::Debug`] with the field that is wrong, or with what this host lacks.
pub(super) fn restored_session(
    machine: &Machine,
    state: Option<Arc<GuestDebugState>>,
    debug: DebugMode,
    limits: &DebugLimits,
) -> Result<Option<Arc<Session>>, VmError> {
    let Some(state) = state else {
        return match debug {
            DebugMode::Off => Ok(None),
            mode => session(machine, mode == DebugMode::Hold, limits).map(Some),
        };
    };
    let restore = if debug == DebugMode::Off { Restore::Dormant } else { Restore::Arm };
    let ram = Arc::new(machine.ram().clone());
    let session = Session::from_state(state, machine.cpus(), caps(machine, limits), ram, restore)?;
    session.set_host(Box::new(Host(machine.vcpus().to_vec())))?;
    Ok(Some(session))
}

/// What this host can do for a debugger.
fn caps(machine: &Machine, limits: &DebugLimits) -> DebugCaps {
    let caps = machine.debug_caps();
    DebugCaps {
        hw_bps: limits.breakpoints.map_or(caps.hw_bps, |limit| limit.min(caps.hw_bps)),
        hw_wps: limits.watchpoints.map_or(caps.hw_wps, |limit| limit.min(caps.hw_wps)),
        ..caps
    }
}

/// The VMM, as the session sees it.
struct Host(Vec<Arc<Vcpu>>);

impl VmHost<HostArch> for Host {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<HostArch>>> {
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
impl DebugVcpu<HostArch> for Vcpu {
    fn set_guest_debug(&self, config: &DebugConfig<<HostArch as Arch>::Hw>) -> Result<(), VcpuError> {
        DebugVcpu::set_guest_debug(&*self.lock(), config)
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.lock().get_reg(reg, value)
    }

    fn get_u64s(&self, regs: &[Reg], values: &mut [u64]) -> Result<(), VcpuError> {
        self.lock().get_u64s(regs, values)
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        self.lock().set_reg(reg, value)
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        self.lock().reg_list()
    }

    fn inject(&self, exception: <HostArch as Arch>::Exception) -> Result<(), VcpuError> {
        self.lock().inject(exception)
    }
}

/// The debugger's part of a vCPU's thread; without a session it never wants anything.
#[derive(Debug)]
pub(super) struct Debugger(Option<VcpuDebugger<HostArch>>);

impl Debugger {
    pub(super) fn new(session: Option<&Arc<Session>>, vcpu: u32) -> Result<Self, VmError> {
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

    pub(super) fn on_debug_exit(&mut self, fd: &mut VcpuFd, exit: kvm_debug_exit_arch) -> Result<(), VmError> {
        let exit = platform::debug_exit(fd, exit);
        match &mut self.0 {
            Some(debugger) => Ok(debugger.on_debug_exit(fd, exit)?),
            None => Err(VmError::Debug("KVM_EXIT_DEBUG without a session".to_owned())),
        }
    }
}
