//! Single steps that execute exactly the guest's own instruction.
//!
//! KVM's step executes one instruction with whatever interrupts are pending, and the guest's timer has usually
//! fired while the debugger had it stopped, so a plain step ends in the interrupt handler. Here PSTATE.I and F
//! are set meanwhile, and afterwards they are made what the instruction itself would have left: it may have
//! written them (`MSR DAIFSet`), read them (`MRS x0, DAIF`) or saved them (an exception's SPSR_EL1).
//!
//! Three more things need care:
//!
//! * WFI and WFE would wait for an interrupt. They may complete at any time (Arm ARM, D1.7 "Mechanisms for
//!   entering a low-power state"), so under a step they do so at once.
//! * Returning from a debug exception clears the exclusive monitor, so that an LDXR/STXR loop that is stepped
//!   one by one never ends. The whole sequence is one step.
//! * KVM before Linux 6.2 arms the step again after an instruction that it emulates (`kvm_arm_setup_debug`
//!   in arch/arm64/kvm/debug.c), and so executes two; likewise after it has injected an exception. Breakpoints behind
//!   the instruction and at the vector catch it there.

use super::cruise::{self, Cruise};
use crate::arm64::insn::{self, Insn};
use crate::arm64::{BreakpointSlot, HwDebug, Pstate, Reg, SysReg};
use crate::session::SessionError;
use crate::session::control::Over;
use crate::session::runner::{Entry, Goal, Mode, VcpuDebugger};
use crate::{Breakpoint, DebugVcpu, Gva, StopReason, Unsupported};

/// What is masked while stepping: interrupts, and SError, which is as asynchronous.
pub(super) const MASK: u64 = Pstate::I | Pstate::F | Pstate::A;
/// `SCTLR_EL1.nTWI`: EL0 may execute WFI.
const SCTLR_NTWI: u64 = 1 << 16;
/// `SCTLR_EL1.nTWE`: EL0 may execute WFE.
const SCTLR_NTWE: u64 = 1 << 18;
/// Size of the vector table at VBAR_EL1, and of one entry.
const VECTORS: u64 = 0x800;
const VECTOR: u64 = 0x80;

/// A step that KVM has been programmed for, or several at once.
#[derive(Debug)]
pub(super) struct Flight {
    /// Where it began.
    pub(super) pc: u64,
    /// Its last instruction.
    last: u64,
    /// The only instruction, if it could be read.
    pub(super) insn: Option<Insn>,
    /// PSTATE before interrupts were masked.
    pstate: Pstate,
    /// Where it ends; empty for a single instruction, which ends everywhere else.
    ends: Vec<u64>,
}

impl Flight {
    pub(super) fn single(pc: u64, insn: Option<Insn>, pstate: Pstate) -> Self {
        Self { pc, last: pc, insn, pstate, ends: Vec::new() }
    }

    /// Consecutive instructions that are executed in one go.
    pub(super) fn stretch(pc: u64, last: u64, ends: Vec<u64>, pstate: Pstate) -> Self {
        Self { pc, last, insn: None, pstate, ends }
    }

    pub(super) fn is_single(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether a step exit at `pc` can be this step's. Linux 6.2 and later may deliver one that an earlier step was
    /// owed (`DBG_SS_ACTIVE_PENDING`), before any instruction; only a branch, or a vector that faults, stays in place.
    pub(super) fn can_end_at(
        &self,
        pc: u64,
        vbar: impl FnOnce() -> Result<u64, SessionError>,
    ) -> Result<bool, SessionError> {
        if !self.is_single() {
            return Ok(self.is_over_at(pc));
        }
        let stays = matches!(self.insn, None | Some(Insn::Branch(_) | Insn::Eret));
        Ok(pc != self.pc || stays || in_vectors(pc, vbar()?))
    }

    /// Whether an exception that has led to `pc` can have been taken in it, or where it goes, if it returns to `elr`.
    fn is_behind(&self, pc: u64, elr: u64) -> bool {
        let branches = match self.insn {
            Some(Insn::Branch(branch)) => branch.target(self.pc) == Some(elr),
            _ => elr != pc && self.ends.contains(&elr),
        };
        branches || self.covers(elr)
    }

    /// Whether a vCPU at `pc` is among its instructions or right behind them.
    fn covers(&self, pc: u64) -> bool {
        pc.wrapping_sub(self.pc) <= self.last.wrapping_add(4).wrapping_sub(self.pc)
    }

    /// Whether a vCPU that left the guest at `pc` has executed what was asked for.
    pub(super) fn is_over_at(&self, pc: u64) -> bool {
        if self.is_single() { pc != self.pc } else { self.ends.contains(&pc) }
    }
}

impl VcpuDebugger {
    /// Programs the vCPU for one step.
    pub(super) fn begin(&mut self, vcpu: &dyn DebugVcpu) -> Result<Entry, SessionError> {
        if let Some(entry) = self.cruise_on(vcpu)? {
            return Ok(entry);
        }
        let Mode::Step { over, .. } = &self.mode else { return Ok(Entry::Again) };
        let mut over = over.clone();
        let pc = self.get(vcpu, Reg::Pc)?;
        if over == Over::Nothing && self.plan.has_breakpoint(pc) {
            if self.judge(vcpu, Breakpoint::Hardware(Gva(pc))) {
                self.stop(StopReason::HardwareBreakpoint(Gva(pc)));
                return Ok(Entry::Again);
            }
            over = Over::Breakpoint;
        }
        let pstate = Pstate(self.get(vcpu, Reg::Pstate)?);
        if pstate.is_aarch32() {
            self.stop(StopReason::Unsupported(Unsupported::AArch32));
            return Ok(Entry::Again);
        }
        let word = self.session.fetch_insn(self.id, vcpu, pc).ok();
        let insn = word.map(insn::decode);
        // A breakpoint that was inserted there since has to be hit.
        let planted = !self.session.software().is_empty()
            && self
                .session
                .translate_by(self.id, vcpu, Gva(pc))
                .is_ok_and(|gpa| self.session.software().is_planted(gpa));
        if !planted && self.completes_at_once(vcpu, insn, pstate)? {
            self.set(vcpu, Reg::Pc, pc.wrapping_add(4))?;
            self.set(vcpu, Reg::Pstate, pstate.without(Pstate::BTYPE).0)?;
            self.step_done(vcpu, pc.wrapping_add(4))?;
            return Ok(Entry::Again);
        }
        let sequence = match insn {
            Some(Insn::LoadExclusive) => self.exclusive(vcpu, pc, pstate)?,
            _ => None,
        };
        let mut hw = HwDebug::none();
        match over {
            Over::Nothing | Over::Breakpoint => hw.watchpoints.clone_from(&self.plan.hw.watchpoints),
            Over::Watches(told) => hw.watchpoints = self.plan.watch_slots_but(&told),
            Over::AllWatches => {}
        }
        let vector = self.fault_vector(vcpu, pstate)?;
        let (flight, stops) = match (sequence, insn) {
            (Some((last, ends)), _) => (Flight::stretch(pc, last, ends.clone(), pstate), ends),
            (None, Some(Insn::Branch(branch))) => {
                let stops = [Some(pc.wrapping_add(4)), Some(vector), branch.target(pc)];
                (Flight::single(pc, insn, pstate), stops.into_iter().flatten().collect())
            }
            (None, _) => (Flight::single(pc, insn, pstate), vec![pc.wrapping_add(4), vector]),
        };
        // An address that no instruction can have is never reached either, and here it would stop the step itself.
        let slots = stops.into_iter().filter(|&stop| stop != pc).filter_map(|stop| BreakpointSlot::new(stop).ok());
        hw.breakpoints.extend(slots.take(self.session.caps.hw_bps));
        self.apply(vcpu, true, flight.is_single(), &hw)?;
        if !pstate.contains(MASK) {
            self.set(vcpu, Reg::Pstate, pstate.with(MASK).0)?;
        }
        if matches!(self.mode, Mode::Step { goal: Goal::Leave(_), .. })
            && word.is_some_and(insn::is_plain)
            && self.session.caps.hw_bps >= cruise::SLOTS
        {
            self.motion.cruise = Some(Cruise::new(pstate, vector, pc));
        }
        self.motion.flight = Some(flight);
        Ok(Entry::Run)
    }

    /// The step was cut short by somebody who wants the vCPU stopped: it counts if it executed, and leaves no
    /// trace if it did not.
    pub(super) fn settle(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        if let Some(flight) = &self.motion.flight {
            let pc = self.get(vcpu, Reg::Pc)?;
            if flight.is_over_at(pc) {
                self.land(vcpu, pc)?;
            } else {
                self.unwind(vcpu)?;
            }
        }
        self.end_cruise(vcpu)
    }

    /// Forgets a step that did not execute, and gives PSTATE back.
    pub(super) fn unwind(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        let Some(flight) = self.motion.flight.take() else { return Ok(()) };
        self.motion.cruise = None;
        if !flight.is_single() {
            let pc = self.get(vcpu, Reg::Pc)?;
            if !flight.covers(pc) && !flight.is_over_at(pc) {
                let (id, start) = (self.id, Gva(flight.pc));
                self.session.say(format!(
                    "{id}: the code at {start} changed while it was stepped through, so the vCPU has run on; its interrupt mask may not be the guest's own\n"
                ));
            }
        }
        self.restore_mask(vcpu, flight.pstate)
    }

    /// Makes PSTATE what it would be without the debugger, if no instruction since `before` was one for it.
    pub(super) fn restore_mask(&self, vcpu: &dyn DebugVcpu, before: Pstate) -> Result<(), SessionError> {
        let now = Pstate(self.get(vcpu, Reg::Pstate)?);
        self.write_pstate(vcpu, now, now.with_bits_of(before, MASK | Pstate::SS))
    }

    /// The step has executed and the vCPU is at `pc`: makes PSTATE what the instruction would have left.
    pub(super) fn land(&mut self, vcpu: &dyn DebugVcpu, pc: u64) -> Result<(), SessionError> {
        let Some(flight) = self.motion.flight.take() else { return Ok(()) };
        if self.cruise_lands(pc) {
            return self.step_done(vcpu, pc);
        }
        let now = Pstate(self.get(vcpu, Reg::Pstate)?);
        let before = flight.pstate;
        if self.took_exception(vcpu, &flight, pc, now)? {
            self.mend_exception(vcpu, before, now)?;
            return self.step_done(vcpu, pc);
        }
        let own = now.with_bits_of(before, Pstate::SS);
        let restored = own.with_bits_of(before, MASK);
        let after = match flight.insn {
            Some(Insn::MsrDaifSet(imm)) => restored.with(daif_imm(imm) & MASK),
            Some(Insn::MsrDaifClr(imm)) => restored.without(daif_imm(imm) & MASK),
            Some(Insn::MsrDaif { .. } | Insn::Eret) => own,
            Some(Insn::MrsDaif { rt }) => {
                if rt < 31 {
                    let read = Pstate(self.get(vcpu, Reg::X(rt))?);
                    self.set(vcpu, Reg::X(rt), read.with_bits_of(before, MASK).0)?;
                }
                restored
            }
            _ => restored,
        };
        self.write_pstate(vcpu, now, after)?;
        self.step_done(vcpu, pc)
    }

    /// An exception was taken with our mask set. The handler runs masked anyway; what it returns to must be as it was.
    pub(super) fn mend_exception(&self, vcpu: &dyn DebugVcpu, before: Pstate, now: Pstate) -> Result<(), SessionError> {
        let spsr = Pstate(self.get(vcpu, Reg::SpsrEl1)?);
        self.set(vcpu, Reg::SpsrEl1, spsr.with_bits_of(before, MASK | Pstate::SS).0)?;
        self.write_pstate(vcpu, now, now.without(Pstate::SS))
    }

    pub(super) fn write_pstate(&self, vcpu: &dyn DebugVcpu, now: Pstate, wanted: Pstate) -> Result<(), SessionError> {
        if now == wanted { Ok(()) } else { self.set(vcpu, Reg::Pstate, wanted.0) }
    }

    /// Whether the instruction is one that waits, and may as well complete without waiting.
    fn completes_at_once(
        &self,
        vcpu: &dyn DebugVcpu,
        insn: Option<Insn>,
        pstate: Pstate,
    ) -> Result<bool, SessionError> {
        let allowed = match insn {
            Some(Insn::Wfi | Insn::Wfit { .. }) => SCTLR_NTWI,
            Some(Insn::Wfe | Insn::Wfet { .. }) => SCTLR_NTWE,
            _ => return Ok(false),
        };
        // A program that may not wait gets an exception from its kernel instead: that has to be executed.
        Ok(pstate.el() > 0 || self.get(vcpu, Reg::Sys(SysReg::SCTLR_EL1))? & allowed != 0)
    }

    /// The exclusive sequence at `pc`: its last instruction, and where it ends, which is behind it, at the targets of branches
    /// out of it, and at the vector that a fault inside would take. `None` where it can't be told or does not fit the slots.
    fn exclusive(
        &self,
        vcpu: &dyn DebugVcpu,
        pc: u64,
        pstate: Pstate,
    ) -> Result<Option<(u64, Vec<u64>)>, SessionError> {
        let word = |index: u64| self.session.fetch_insn(self.id, vcpu, pc.wrapping_add(index * 4)).ok();
        let words: Vec<u32> = (0..insn::MAX_INSTRUCTIONS as u64).map_while(word).collect();
        // One that spins may wait for a vCPU that the debugger has stopped, so it is stepped like any other loop.
        let Some(sequence) = insn::exclusive_sequence(pc, &words).filter(|sequence| !sequence.spins) else {
            return Ok(None);
        };
        let mut ends = vec![sequence.end, self.fault_vector(vcpu, pstate)?];
        ends.extend(sequence.exits);
        let inside = pc.wrapping_add(4)..sequence.end;
        ends.extend(self.plan.hw.breakpoints.iter().map(|slot| slot.address).filter(|at| inside.contains(at)));
        ends.sort_unstable();
        ends.dedup();
        let fits = ends.len() <= self.session.caps.hw_bps;
        Ok(fits.then(|| (sequence.end.wrapping_sub(4), ends)))
    }

    /// The vector that a synchronous exception would take.
    fn fault_vector(&self, vcpu: &dyn DebugVcpu, pstate: Pstate) -> Result<u64, SessionError> {
        let group = match (pstate.el(), pstate.sp_sel()) {
            (0, _) => 0x400,
            (_, true) => 0x200,
            (_, false) => 0,
        };
        Ok(self.get(vcpu, Reg::Sys(SysReg::VBAR_EL1))?.wrapping_add(group))
    }

    /// Whether the step ended in an exception of the guest's instead of behind its instruction.
    pub(super) fn took_exception(
        &self,
        vcpu: &dyn DebugVcpu,
        flight: &Flight,
        pc: u64,
        now: Pstate,
    ) -> Result<bool, SessionError> {
        if now.el() != 1 || !now.contains(Pstate::DAIF) {
            return Ok(false);
        }
        if !in_vectors(pc, self.get(vcpu, Reg::Sys(SysReg::VBAR_EL1))?) {
            return Ok(false);
        }
        let writes_mask = matches!(flight.insn, Some(Insn::MsrDaif { .. } | Insn::MsrDaifSet(_) | Insn::Eret));
        if !flight.pstate.contains(Pstate::D) && !writes_mask {
            // Nothing but an exception sets it.
            return Ok(true);
        }
        // Fetching where a branch leads to may fault; an SError that is pending is taken there as well.
        Ok(flight.is_behind(pc, self.get(vcpu, Reg::ElrEl1)?))
    }
}

/// Whether `pc` is at a vector of the table that `base` lies in, or at the instruction behind one, which KVM may have
/// executed after injecting an exception.
pub(super) fn in_vectors(pc: u64, base: u64) -> bool {
    pc.wrapping_sub(base & !(VECTORS - 1)) < VECTORS && pc % VECTOR <= 4
}

/// The immediate of `MSR DAIFSet` and `DAIFClr` in PSTATE's layout.
fn daif_imm(imm: u8) -> u64 {
    u64::from(imm & 0xf) << 6
}
