//! Getting over a planted instruction on the vCPU's own thread.
//!
//! While the original instruction is in place any other vCPU would run past it unseen, so the others wait for this one
//! instruction. They keep their orders meanwhile: a client that stops the VM, and a VMM that saves it, find them as ever, and
//! this vCPU parks only after it has let them go.

use super::runner::{Goal, Mode, VcpuDebugger};
use super::{DebugSession, Over, SessionError};
use crate::arch::Arch;
use crate::{DebugVcpu, Gva, StopReason, VcpuId};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is looked whether this vCPU is wanted itself.
const LOOK: Duration = Duration::from_millis(10);
/// How long the others may take. One that takes longer is busy in the VMM, perhaps with something for which this vCPU has
/// to leave the guest as well, such as a reset: so this one comes by again, and its thread looks about in between.
const PATIENCE: Duration = Duration::from_millis(500);

impl<A: Arch> VcpuDebugger<A> {
    /// Has the vCPU execute the instruction under the session's own at `pc`. If that can't be, the hit is reported.
    pub(super) fn pass_planted(
        &mut self,
        vcpu: &dyn DebugVcpu<A>,
        pc: Gva,
        reason: StopReason,
    ) -> Result<(), SessionError> {
        if self.carry_out(vcpu, pc, true)? {
            return Ok(());
        }
        let Ok(gpa) = self.session.translate_by(self.id, vcpu, pc) else {
            self.stop(reason);
            return Ok(());
        };
        // What waits for other vCPUs can't have them wait for this one.
        if self.session.fetch_code(gpa).is_ok_and(|code| A::may_wait(code.as_ref())) {
            let names = A::WAITS;
            self.session.say(format!("{pc}: a software breakpoint on {names} stops, whatever its condition is\n"));
            self.stop(reason);
            return Ok(());
        }
        if !self.session.begin_alone(self.id) {
            // The guest comes by once more.
            return self.not_passed();
        }
        self.alone = Some(gpa);
        self.session.software_mut().lift_one(gpa, &*self.session.ram)?;
        let goal = self.goal();
        self.mode = Mode::Step { goal, over: Over::Breakpoint };
        Ok(())
    }

    /// What the vCPU goes on with after an instruction that it gets over.
    pub(super) fn goal(&mut self) -> Goal {
        match std::mem::replace(&mut self.mode, Mode::Free) {
            Mode::Free => Goal::Run,
            Mode::Step { goal, .. } => goal,
        }
    }

    /// Plants again, and lets the others go on. Does nothing if they were not kept.
    pub(super) fn end_alone(&mut self) -> Result<(), SessionError> {
        let Some(gpa) = self.alone.take() else { return Ok(()) };
        let planted = self.session.software_mut().plant_one(gpa, &*self.session.ram);
        self.session.end_alone(self.id);
        Ok(planted?)
    }

    /// The same after a reset, which has loaded other memory and planted what belongs there.
    pub(super) fn forget_alone(&mut self) {
        self.passing.clear();
        if self.alone.take().is_some() {
            self.session.end_alone(self.id);
        }
    }
}

impl<A: Arch> DebugSession<A> {
    /// Has all others wait. Answers whether they do; not if somebody wants this vCPU to wait as well.
    fn begin_alone(&self, me: VcpuId) -> bool {
        if self.alone.swap(true, Ordering::AcqRel) {
            return false;
        }
        for (id, slot) in self.slots().filter(|(id, _)| *id != me) {
            if slot.pause()
                && let Some(host) = self.host.get()
            {
                host.kick(id);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for (_, slot) in self.slots().filter(|(id, _)| *id != me) {
            while !slot.wait_parked(LOOK) {
                let wanted = self.slot(me).is_ok_and(|slot| slot.stop_requested());
                if wanted || Instant::now() > deadline {
                    self.end_alone(me);
                    return false;
                }
            }
        }
        true
    }

    fn end_alone(&self, me: VcpuId) {
        for (_, slot) in self.slots().filter(|(id, _)| *id != me) {
            slot.unpause();
        }
        self.alone.store(false, Ordering::Release);
    }
}
