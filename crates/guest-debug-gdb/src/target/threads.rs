//! Base operations: threads, and what is done to one of them.

use super::{GuestTarget, refuse, vcpu};
use crate::arch::RegisterBlock;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use crate::vm_thread::Tid as VcpuTid;
use gdbstub::common::Tid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::SingleRegisterAccessOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use guest_debug::{VcpuId, VcpuState};

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// vCPUs that a client can look at: those that are not offline, and one at least.
    pub(crate) fn threads(&self) -> Result<Vec<(VcpuId, VcpuState)>, VmError> {
        let states = self.vm.vcpu_states()?;
        let current = (self.current(), states.get(self.current().0 as usize).copied().unwrap_or(VcpuState::Offline));
        let online = (0..).map(VcpuId).zip(states).filter(|(_, state)| *state != VcpuState::Offline);
        let online: Vec<_> = online.collect();
        Ok(if online.is_empty() { vec![current] } else { online })
    }

    /// `vCPU 0: stopped, EL1h DAIF (0x3c5)`, as far as it is known.
    pub(super) fn describe_vcpu(&self, vcpu: VcpuId) -> String {
        let states = self.vm.vcpu_states().unwrap_or_default();
        match states.get(vcpu.0 as usize) {
            None => format!("{vcpu}: there is no such vCPU"),
            Some(state) => self.describe_state(vcpu, *state),
        }
    }

    /// The same for a vCPU in this state.
    pub(super) fn describe_state(&self, vcpu: VcpuId, state: VcpuState) -> String {
        match state {
            VcpuState::Offline => format!("{vcpu}: offline"),
            VcpuState::Running => format!("{vcpu}: running"),
            VcpuState::Stopped => {
                let values = self.values(vcpu, A::STATE.to_vec()).unwrap_or_default();
                match A::state(&values) {
                    Some(state) => format!("{vcpu}: stopped, {state}"),
                    None => format!("{vcpu}: stopped"),
                }
            }
        }
    }
}

impl<A: GdbArch, V: DebugVm<A>> MultiThreadBase for GuestTarget<'_, A, V> {
    fn read_registers(&mut self, regs: &mut RegisterBlock, tid: Tid) -> TargetResult<(), Self> {
        *regs = self.read_block(vcpu(tid)?).map_err(refuse)?;
        Ok(())
    }

    fn write_registers(&mut self, regs: &RegisterBlock, tid: Tid) -> TargetResult<(), Self> {
        let written = self.write_block(vcpu(tid)?, regs);
        written.map_err(|error| self.refuse_aloud(error))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start_addr: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        self.read_memory(vcpu(tid)?, start_addr, data).map_err(refuse)
    }

    fn write_addrs(&mut self, start_addr: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        self.write_memory(vcpu(tid)?, start_addr, data).map_err(refuse)
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), VmError> {
        for (vcpu, _) in self.threads()? {
            thread_is_active(VcpuTid::of(vcpu).to_gdbstub());
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl<A: GdbArch, V: DebugVm<A>> ThreadExtraInfo for GuestTarget<'_, A, V> {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, VmError> {
        let text = match VcpuTid::from_gdbstub(tid) {
            Some(tid) => self.describe_vcpu(tid.vcpu()),
            None => String::new(),
        };
        let length = text.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), text.as_bytes().get(..length)) {
            to.copy_from_slice(from);
        }
        Ok(length)
    }
}
