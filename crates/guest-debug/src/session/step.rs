//! What a step was for. How it is made is the architecture's.

use super::SessionError;
use super::control::{Ended, Over};
use super::runner::{Goal, Mode, VcpuDebugger};
use crate::arch::Arch;
use crate::{Breakpoint, DebugVcpu, Gva, StopReason};

impl<A: Arch> VcpuDebugger<A> {
    /// One step is done, at `pc`: on to what it was for.
    pub(super) fn step_done(&mut self, vcpu: &dyn DebugVcpu<A>, pc: u64) -> Result<(), SessionError> {
        self.moves()?;
        self.passed()?;
        // Most steps of a range are followed by another one.
        if let Mode::Step { goal: Goal::Leave(range), over: Over::Nothing } = &self.mode
            && range.contains(&pc)
            && !self.plan.has_breakpoint(pc)
        {
            return Ok(());
        }
        let Mode::Step { goal, .. } = std::mem::replace(&mut self.mode, Mode::Free) else { return Ok(()) };
        match goal {
            Goal::Report => self.stop(StopReason::Step),
            Goal::Leave(range) => {
                let hit = self.plan.has_breakpoint(pc);
                if range.contains(&pc) && !hit {
                    self.mode = Mode::Step { goal: Goal::Leave(range), over: Over::Nothing };
                    return Ok(());
                }
                A::end_range(self, vcpu)?;
                let stops = hit && self.judge(vcpu, Breakpoint::Hardware(Gva(pc)));
                if hit && !stops && range.contains(&pc) {
                    self.mode = Mode::Step { goal: Goal::Leave(range), over: Over::Breakpoint };
                } else {
                    self.stop(if stops { StopReason::HardwareBreakpoint(Gva(pc)) } else { StopReason::Step });
                }
            }
            Goal::Quiet => self.session.slot(self.id)?.finish(Ended::Stepped),
            Goal::Run => {}
        }
        Ok(())
    }
}
