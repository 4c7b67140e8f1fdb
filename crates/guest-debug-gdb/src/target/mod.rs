//! The VM as gdbstub sees it, one file per protocol extension.

mod breakpoints;
mod lldb;
mod memory;
mod monitor;
mod registers;
mod resume;
mod rules;
mod search;
mod thread_list;
mod threads;

use crate::arch::GuestArch;
use crate::description::{Description, GdbArch, Values};
use crate::vm::{DebugVm, VmError};
use crate::vm_thread::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::host_info::HostInfoOps;
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::process_info::ProcessInfoOps;
use gdbstub::target::ext::target_description_xml_override::TargetDescriptionXmlOverrideOps;
use gdbstub::target::{Target, TargetError};
use guest_debug::{Breakpoint, ResumeAction, StopReason, VcpuId, VcpuState};
use std::collections::HashSet;

/// What a client set up and relies on, beside gdbstub's own state.
#[derive(Debug, Default)]
pub(crate) struct ClientState {
    /// `monitor phys on`: addresses of memory packets are guest-physical.
    pub physical: bool,
    /// The vCPU of the current thread; `monitor` commands mean it.
    pub current: Option<VcpuId>,
    /// Actions of the `vCont` packet that is being read.
    pub actions: Vec<(VcpuId, ResumeAction)>,
    /// Whether that packet leaves unnamed vCPUs stopped.
    pub others_stay: bool,
    /// Why the last resume failed, until the client is told.
    pub resume_error: Option<VmError>,
    /// Why a breakpoint or a register's value was refused, until the client is told.
    pub refusal: Option<String>,
    /// The same for `monitor breakpoints`, until one is inserted.
    pub last_refusal: Option<String>,
    /// Everything that it has ever inserted.
    pub inserted: HashSet<Breakpoint>,
    /// Breakpoints with conditions or commands that came with their packet, from this client or the one before it.
    pub ruled: HashSet<Breakpoint>,
    /// Those whose conditions or message the user has set with `monitor`; packets without any leave them alone.
    pub by_hand: HashSet<Breakpoint>,
}

impl ClientState {
    /// Whether the client knows of the breakpoint behind a stop. It does not know those of a client before it.
    pub(crate) fn knows(&self, reason: StopReason) -> bool {
        match reason {
            StopReason::HardwareBreakpoint(at) => self.inserted.contains(&Breakpoint::Hardware(at)),
            StopReason::SoftwareBreakpoint(at) => self.inserted.contains(&Breakpoint::Software(at)),
            StopReason::Watchpoint { kind: hit, address: at } => self.inserted.iter().any(|breakpoint| {
                matches!(breakpoint, Breakpoint::Watch { kind, address, length }
                    if *kind == hit && at.0.wrapping_sub(address.0) < *length)
            }),
            StopReason::Step | StopReason::Interrupt | StopReason::Unsupported(_) => true,
        }
    }
}

/// A VM with a client attached.
#[derive(Debug)]
pub(crate) struct GuestTarget<'v, A: GdbArch, V> {
    pub vm: &'v V,
    pub description: Description<A>,
    pub client: ClientState,
}

impl<'v, A: GdbArch, V: DebugVm<A>> GuestTarget<'v, A, V> {
    /// Describes a VM that is attached and stopped.
    pub(crate) fn new(vm: &'v V) -> Result<Self, VmError> {
        let states = vm.vcpu_states()?;
        // vCPUs are alike; the first one that can be asked speaks for all.
        let vcpu = states.iter().position(|state| *state == VcpuState::Stopped).unwrap_or(0);
        let vcpu = VcpuId(u32::try_from(vcpu).unwrap_or(0));
        let regs = match vm.registers(vcpu) {
            // A hypervisor that can't list its registers has these at least.
            Err(VmError::Unsupported(_)) => A::least(),
            regs => regs?,
        };
        let values = vm.read_registers(vcpu, regs.clone())?;
        // A register that is listed and can't be read would end every listing of its group with an error.
        let readable: Vec<A::Reg> =
            regs.iter().zip(&values).filter(|(_, value)| value.is_some()).map(|(reg, _)| *reg).collect();
        let identity: Values<A> = regs
            .iter()
            .zip(values)
            .filter_map(|(reg, value)| Some((*reg, value?)))
            .filter(|(reg, _)| A::IDENTITY.contains(reg))
            .collect();
        let ruled = vm.rules()?.into_iter().map(|info| info.breakpoint).collect();
        let client = ClientState { current: Some(vcpu), ruled, ..ClientState::default() };
        Ok(Self { vm, description: A::describe(&readable, &identity), client })
    }

    /// The vCPU of the current thread.
    pub(crate) fn current(&self) -> VcpuId {
        self.client.current.unwrap_or(VcpuId(0))
    }

    /// An error for the client, with its text: for what gdb shows the text of.
    fn refuse_aloud(&mut self, error: VmError) -> TargetError<VmError> {
        self.client.refusal = Some(error.to_string());
        refuse(error)
    }

    /// Reads vCPU registers by name; those that can't be read are missing.
    pub(crate) fn values(&self, vcpu: VcpuId, mut regs: Vec<A::Reg>) -> Result<Values<A>, VmError> {
        if regs.is_empty() {
            return Ok(Values::<A>::new());
        }
        regs.sort_unstable();
        regs.dedup();
        let values = self.vm.read_registers(vcpu, regs.clone())?;
        Ok(regs.into_iter().zip(values).filter_map(|(reg, value)| Some((reg, value?))).collect())
    }
}

impl<A: GdbArch, V: DebugVm<A>> Target for GuestTarget<'_, A, V> {
    type Arch = GuestArch;
    type Error = VmError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(&mut self) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn support_host_info(&mut self) -> Option<HostInfoOps<'_, Self>> {
        Some(self)
    }

    fn support_process_info(&mut self) -> Option<ProcessInfoOps<'_, Self>> {
        Some(self)
    }

    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }
}

/// An error for the client; only a VM that is gone ends the session.
fn refuse(error: VmError) -> TargetError<VmError> {
    match error {
        VmError::Gone => TargetError::Fatal(error),
        error => {
            log::debug!("answered with error {}: {error}", error.errno());
            TargetError::Errno(error.errno())
        }
    }
}

/// The vCPU of a thread.
fn vcpu(tid: gdbstub::common::Tid) -> Result<VcpuId, TargetError<VmError>> {
    // The gate lets no greater number through.
    Tid::from_gdbstub(tid).map(Tid::vcpu).ok_or(TargetError::Errno(3))
}
