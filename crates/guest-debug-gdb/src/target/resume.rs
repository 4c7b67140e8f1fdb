//! `vCont`: continue, step, step inside a range, each per vCPU.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use crate::vm_thread::Tid as VcpuTid;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use guest_debug::ResumeAction;

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// Notes an action. The first one that names a vCPU counts, as the protocol says.
    fn act(&mut self, tid: Tid, action: ResumeAction) {
        if let Some(tid) = VcpuTid::from_gdbstub(tid)
            && self.client.actions.iter().all(|(vcpu, _)| *vcpu != tid.vcpu())
        {
            self.client.actions.push((tid.vcpu(), action));
        }
    }

    fn try_resume(&mut self) -> Result<(), VmError> {
        let mut actions = std::mem::take(&mut self.client.actions);
        // A thread that went away between two packets is no reason to keep the others.
        let threads: Vec<_> = self.threads()?.into_iter().map(|(vcpu, _)| vcpu).collect();
        actions.retain(|(vcpu, _)| threads.contains(vcpu));
        if self.client.others_stay {
            let named: Vec<_> = actions.iter().map(|(vcpu, _)| *vcpu).collect();
            let others = threads.into_iter().filter(|vcpu| !named.contains(vcpu));
            actions.extend(others.map(|vcpu| (vcpu, ResumeAction::Stay)));
            if named.is_empty() {
                return Err(VmError::Other("every vCPU was to stay stopped".to_owned()));
            }
        }
        self.vm.resume(actions)
    }
}

impl<A: GdbArch, V: DebugVm<A>> MultiThreadResume for GuestTarget<'_, A, V> {
    fn resume(&mut self) -> Result<(), VmError> {
        match self.try_resume() {
            Err(VmError::Gone) => Err(VmError::Gone),
            // gdbstub takes an error here for the end. The client hears of it as a stop instead.
            result => {
                self.client.resume_error = result.err();
                Ok(())
            }
        }
    }

    fn clear_resume_actions(&mut self) -> Result<(), VmError> {
        self.client.actions.clear();
        self.client.others_stay = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), VmError> {
        self.act(tid, ResumeAction::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl<A: GdbArch, V: DebugVm<A>> MultiThreadSingleStep for GuestTarget<'_, A, V> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), VmError> {
        self.act(tid, ResumeAction::Step);
        Ok(())
    }
}

impl<A: GdbArch, V: DebugVm<A>> MultiThreadRangeStepping for GuestTarget<'_, A, V> {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), VmError> {
        // The protocol wants one step at least, whatever the range.
        let action = if start < end { ResumeAction::StepRange(start..end) } else { ResumeAction::Step };
        self.act(tid, action);
        Ok(())
    }
}

impl<A: GdbArch, V: DebugVm<A>> MultiThreadSchedulerLocking for GuestTarget<'_, A, V> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), VmError> {
        self.client.others_stay = true;
        Ok(())
    }
}
