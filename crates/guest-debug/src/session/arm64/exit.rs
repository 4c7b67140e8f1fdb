//! What comes out of an arm64 guest: hits, exceptions that are the guest's own, and AArch32.

use super::BRK_IMM;
use crate::arm64::exception::{self, Features};
use crate::arm64::syndrome::{self, DebugEvent, Syndrome};
use crate::arm64::{Pstate, Reg, SysReg, insn, watch};
use crate::session::SessionError;
use crate::session::control::Over;
use crate::session::runner::{Goal, Mode, VcpuDebugger, step};
use crate::session::table::Watch;
use crate::{Breakpoint, DebugExit, DebugVcpu, Gva, StopReason, Unsupported};

/// DCZID_EL0 with the largest block that there can be, 2 KiB, for a vCPU that does not say.
const DCZID_LARGEST: u64 = 9;

impl VcpuDebugger {
    /// Decodes a debug exit and acts on it.
    pub(super) fn decode(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        match syndrome::decode(exit.syndrome) {
            DebugEvent::SoftwareStep { .. } => {
                // Without a step of ours it is a leftover of one that was undone.
                let Some(flight) = &self.motion.flight else { return Ok(()) };
                let pc = self.get(vcpu, Reg::Pc)?;
                let vbar = || self.get(vcpu, Reg::Sys(SysReg::VBAR_EL1));
                if flight.can_end_at(pc, vbar)? { self.land(vcpu, pc) } else { Ok(()) }
            }
            DebugEvent::HardwareBreakpoint => self.on_breakpoint(vcpu, exit),
            DebugEvent::Watchpoint { write, .. } => self.on_watchpoint(vcpu, exit, write),
            DebugEvent::Brk { imm16 } => self.on_brk(vcpu, exit, imm16),
            DebugEvent::Bkpt32 | DebugEvent::VectorCatch32 => self.on_aarch32(vcpu, exit),
            DebugEvent::Other { .. } => self.reflect(vcpu, exit, false),
        }
    }

    /// A device access is completed.
    pub(super) fn after_access(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        if let Some(flight) = &self.motion.flight {
            let pc = self.get(vcpu, Reg::Pc)?;
            if flight.is_over_at(pc) {
                self.land(vcpu, pc)?;
            }
        }
        Ok(())
    }

    fn on_breakpoint(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        let pc = self.get(vcpu, Reg::Pc)?;
        if let Some(flight) = &self.motion.flight {
            // While stepping, only the ends of the step are armed.
            return if flight.is_over_at(pc) { self.land(vcpu, pc) } else { self.reflect(vcpu, exit, false) };
        }
        if self.plan.has_breakpoint(pc) {
            if self.judge(vcpu, Breakpoint::Hardware(Gva(pc))) {
                self.stop(StopReason::HardwareBreakpoint(Gva(pc)));
            } else if !self.carry_out(vcpu, Gva(pc), false)? {
                self.mode = step(Goal::Run, Over::Breakpoint);
            }
            return Ok(());
        }
        self.reflect(vcpu, exit, false)
    }

    fn on_watchpoint(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit, write: bool) -> Result<(), SessionError> {
        if self.plan.hw.watchpoints.is_empty() {
            return self.reflect(vcpu, exit, true);
        }
        let pc = self.get(vcpu, Reg::Pc)?;
        self.unwind(vcpu)?;
        let word = self.session.fetch_insn(self.id, vcpu, pc).ok();
        let dczid = vcpu.get_u64(Reg::Sys(SysReg::DCZID_EL0)).unwrap_or(DCZID_LARGEST);
        let access = word.and_then(insn::access).map(|access| access.with_block_of(dczid));
        let far = if Syndrome(exit.syndrome).far_not_valid() { None } else { Some(exit.far) };
        let told = match &self.mode {
            Mode::Step { over: Over::Watches(told), .. } => told.as_slice(),
            _ => &[],
        };
        let told = told.to_vec();
        let armed = self.plan.watches.iter().filter(|watch| !told.iter().any(|address| watch.covers(*address)));
        let hits = armed.filter_map(|asked| {
            let (first, length) = (asked.address.0, asked.length);
            // Without an address, any watch of that kind may be the one.
            let at = far.unwrap_or(first);
            let address = watch::matches(asked.kind, first, length, at, Some(write), access)?;
            Some((address.abs_diff(at), *asked, Gva(address)))
        });
        let mut hits: Vec<_> = hits.collect();
        hits.sort_by_key(|(distance, ..)| *distance);
        let mut passed = Vec::new();
        for (_, Watch { kind, address: first, length }, address) in hits {
            if self.judge(vcpu, Breakpoint::Watch { kind, address: first, length }) {
                self.stop(StopReason::Watchpoint { kind, address });
                return Ok(());
            }
            passed.push(address);
        }
        // The slots are ours, so the guest must not see it; nobody asked for it, so the client must not either.
        let over = if passed.is_empty() { Over::AllWatches } else { Over::Watches([told, passed].concat()) };
        let goal = self.goal();
        self.mode = Mode::Step { goal, over };
        Ok(())
    }

    fn on_brk(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit, imm16: u16) -> Result<(), SessionError> {
        let pc = Gva(self.get(vcpu, Reg::Pc)?);
        if imm16 == BRK_IMM && self.is_ours(vcpu, pc) {
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
            return self.pass_planted(vcpu, pc, reason);
        }
        self.reflect(vcpu, exit, false)
    }

    /// BKPT and vector catch come from AArch32 code. At EL0 that is a program under a 64-bit kernel, which gets
    /// its exception; a 32-bit kernel is not supported.
    fn on_aarch32(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        let pstate = Pstate(self.get(vcpu, Reg::Pstate)?);
        if pstate.el() == 0 {
            return self.reflect(vcpu, exit, false);
        }
        self.unwind(vcpu)?;
        self.stop(StopReason::Unsupported(Unsupported::AArch32));
        Ok(())
    }

    /// Gives the exception to the guest, as if it had been taken to EL1. Under a step that was the step: the
    /// next instruction is the handler's first.
    fn reflect(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit, with_far: bool) -> Result<(), SessionError> {
        let stepped = self.motion.flight.is_some();
        self.unwind(vcpu)?;
        let features = match self.motion.features {
            Some(features) => features,
            None => *self.motion.features.insert(Self::read_features(vcpu)),
        };
        // KVM may leave its own single-step bit behind.
        let pstate = Pstate(self.get(vcpu, Reg::Pstate)?).without(Pstate::SS);
        let pc = self.get(vcpu, Reg::Pc)?;
        let vbar = self.get(vcpu, Reg::Sys(SysReg::VBAR_EL1))?;
        let sctlr = self.get(vcpu, Reg::Sys(SysReg::SCTLR_EL1))?;
        let esr = exception::reflect_esr(exit.syndrome, pstate);
        let far = with_far.then_some(exit.far);
        let entry = exception::take_to_el1(pstate, pc, vbar, sctlr, esr, far, features)?;
        if let Some(far) = entry.far {
            self.set(vcpu, Reg::Sys(SysReg::FAR_EL1), far)?;
        }
        self.set(vcpu, Reg::Sys(SysReg::ESR_EL1), entry.esr)?;
        self.set(vcpu, Reg::ElrEl1, entry.elr)?;
        self.set(vcpu, Reg::SpsrEl1, entry.spsr)?;
        self.set(vcpu, Reg::Pstate, entry.pstate.0)?;
        self.set(vcpu, Reg::Pc, entry.pc)?;
        if stepped { self.step_done(vcpu, entry.pc) } else { Ok(()) }
    }

    fn read_features(vcpu: &dyn DebugVcpu) -> Features {
        // A register that the vCPU does not have describes no feature.
        let id = |reg| vcpu.get_u64(Reg::Sys(reg)).unwrap_or(0);
        Features::new(id(SysReg::ID_AA64PFR1_EL1), id(SysReg::ID_AA64MMFR1_EL1), id(SysReg::ID_AA64DFR1_EL1))
    }
}
