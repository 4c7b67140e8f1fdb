//! What comes out of an x86_64 guest: hits, and exceptions that are the guest's own.

use crate::arch::X86_64;
use crate::session::control::Over;
use crate::session::runner::{Goal, Mode, VcpuDebugger, step};
use crate::session::table::Watch;
use crate::session::{Debugged, SessionError};
use crate::x86_64::stop::{self, Cause, DebugExitArch, Exception, Stop};
use crate::x86_64::{HwDebug, Slot};
use crate::{Breakpoint, DebugVcpu, Gva, StopReason};

type Vcpu<'a> = &'a dyn DebugVcpu<X86_64>;

impl VcpuDebugger<X86_64> {
    /// Decodes a debug exit and acts on it.
    pub(super) fn decode(&mut self, vcpu: Vcpu<'_>, exit: DebugExitArch) -> Result<(), SessionError> {
        let armed = self.hw().cloned().unwrap_or_default();
        // KVM does not always say what was armed.
        let dr7 = if armed == HwDebug::default() { exit.dr7 } else { armed.to_registers()[7] };
        match stop::decode(&DebugExitArch { dr7, ..exit }) {
            Stop::Int3 { address } => self.on_int3(vcpu, Gva(address)),
            Stop::Debug { causes, .. } => self.on_debug(vcpu, exit, &armed, &causes),
            // KVM hands no other exception out.
            Stop::Other { .. } => Ok(()),
        }
    }

    fn on_debug(
        &mut self,
        vcpu: Vcpu<'_>,
        exit: DebugExitArch,
        armed: &HwDebug,
        causes: &[Cause],
    ) -> Result<(), SessionError> {
        let pc = exit.pc;
        let matched = causes.iter().filter_map(|cause| match cause {
            Cause::Watch { slot, .. } => armed.slots.get(usize::from(*slot)).copied().flatten(),
            _ => None,
        });
        let matched: Vec<Slot> = matched.collect();
        let breakpoint = causes.iter().any(|cause| matches!(cause, Cause::Breakpoint { .. }));
        if let [Cause::Step] = causes
            && self.again(vcpu, pc)?
        {
            return Ok(());
        }
        if let Some(flight) = &self.motion.flight {
            if causes.contains(&Cause::Step)
                || breakpoint && flight.ends_at(pc)
                || !matched.is_empty() && pc != flight.pc()
            {
                return self.landed(vcpu, pc, &matched);
            }
            if matched.is_empty() {
                return self.reflect(vcpu, exit);
            }
            // A repeated string instruction has more to do, and the step is not over.
            self.unwind(vcpu)?;
            if !self.watched(vcpu, &matched) {
                let goal = self.goal();
                self.mode = step(goal, Over::Breakpoint);
            }
            return Ok(());
        }
        if !matched.is_empty() {
            self.moves()?;
            if !self.watched(vcpu, &matched) {
                self.passed()?;
            }
            return Ok(());
        }
        if breakpoint && self.plan.has_breakpoint(pc) {
            if self.judge(vcpu, Breakpoint::Hardware(Gva(pc))) {
                self.stop(StopReason::HardwareBreakpoint(Gva(pc)));
            } else {
                self.mode = step(Goal::Run, Over::Breakpoint);
            }
            return Ok(());
        }
        self.reflect(vcpu, exit)
    }

    /// A step is over. What its instruction accessed is told before that the step is done.
    fn landed(&mut self, vcpu: Vcpu<'_>, pc: u64, matched: &[Slot]) -> Result<(), SessionError> {
        let known = self.land(vcpu, pc)?;
        if !matched.is_empty() {
            self.moves()?;
            // What was passed at the instruction counts, whatever comes of its access.
            self.passed()?;
            if self.watched(vcpu, matched) {
                return Ok(());
            }
        }
        self.step_done(vcpu, pc)?;
        if matches!(self.mode, Mode::Step { over: Over::Nothing, .. }) {
            self.motion.known = known;
        }
        Ok(())
    }

    /// The slots of watches have matched, and the access has happened. Answers whether that stops the VM.
    fn watched(&mut self, vcpu: Vcpu<'_>, matched: &[Slot]) -> bool {
        let plan = self.plan.clone();
        for Watch { address, length, kind } in plan.watches.iter().copied() {
            let slots = X86_64::watch_slots(kind, address.0, length).unwrap_or_default();
            // DR6 has the slot, and nothing says which byte of it.
            let Some(slot) = slots.iter().find(|slot| matched.contains(slot)) else { continue };
            if self.judge(vcpu, Breakpoint::Watch { kind, address, length }) {
                self.stop(StopReason::Watchpoint { kind, address: Gva(slot.address()) });
                return true;
            }
        }
        false
    }

    fn on_int3(&mut self, vcpu: Vcpu<'_>, pc: Gva) -> Result<(), SessionError> {
        if !self.is_ours(vcpu, pc) {
            return self.give(vcpu, Exception::Breakpoint);
        }
        self.unwind(vcpu)?;
        let (breakpoint, reason) = if self.plan.stand_ins.contains(&pc) {
            (Breakpoint::Hardware(pc), StopReason::HardwareBreakpoint(pc))
        } else {
            (Breakpoint::Software(pc), StopReason::SoftwareBreakpoint(pc))
        };
        if self.judge(vcpu, breakpoint) {
            self.stop(reason);
            return Ok(());
        }
        self.pass_planted(vcpu, pc, reason)
    }

    /// Gives the guest a debug exception of its own. A step that is under way ends at its handler, or behind it.
    fn reflect(&mut self, vcpu: Vcpu<'_>, exit: DebugExitArch) -> Result<(), SessionError> {
        self.give(vcpu, Exception::Debug { dr6: exit.dr6 })
    }

    fn give(&mut self, vcpu: Vcpu<'_>, exception: Exception) -> Result<(), SessionError> {
        if let Some(flight) = &mut self.motion.flight {
            flight.goes_elsewhere();
        }
        vcpu.inject(exception).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })
    }
}
