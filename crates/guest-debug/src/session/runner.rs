//! The debugger's part of a vCPU's thread: what is armed before the guest runs, and what comes out of it.

use super::control::{Ended, Order, Over, Parked, Release};
use super::cruise::Cruise;
use super::judge::Passing;
use super::software::BRK_IMM;
use super::step::Flight;
use super::table::{Plan, Watch};
use super::{DebugSession, SessionError};
use crate::arm64::exception::{self, Features};
use crate::arm64::syndrome::{self, DebugEvent, Syndrome};
use crate::arm64::{HwDebug, Pstate, Reg, SysReg, insn, watch};
use crate::{
    Breakpoint, DebugConfig, DebugExit, DebugVcpu, Gva, ResumeAction, StopEvent, StopReason, Unsupported, VcpuError,
    VcpuId,
};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// DCZID_EL0 with the largest block that there can be, 2 KiB, for a vCPU that does not say.
const DCZID_LARGEST: u64 = 9;

/// What [`VcpuDebugger::wait`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The vCPU may run.
    Run,
    /// The session was closed; the thread should end.
    Closed,
    /// The VMM wants the thread, as it told [`VcpuDebugger::wait_unless`]. The vCPU is still stopped.
    Attention,
}

/// What [`VcpuDebugger::before_run`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// KVM is programmed: enter the guest.
    Run,
    /// Do not enter the guest: go back to [`VcpuDebugger::wait`].
    Again,
}

/// What the vCPU is doing.
#[derive(Debug)]
pub(super) enum Mode {
    /// It runs, with everything armed.
    Free,
    /// It executes single instructions.
    Step {
        goal: Goal,
        /// What the first instruction is not to hit.
        over: Over,
    },
}

/// What the steps are for.
#[derive(Debug, Clone)]
pub(super) enum Goal {
    /// One instruction, and the client is told.
    Report,
    /// Instructions until the program counter leaves the range, and the client is told.
    Leave(Range<u64>),
    /// One instruction, and the session is told.
    Quiet,
    /// One instruction, and the vCPU runs on.
    Run,
}

/// The debugger's part of a vCPU's thread. One per thread; see [`DebugSession::vcpu_thread`].
///
/// The thread's loop calls [`Self::wait`] with no lock held, then [`Self::before_run`], enters the guest if that
/// says so, and hands debug exits to [`Self::on_debug_exit`]. After an exit whose instruction is completed by
/// the next entry (MMIO), [`Self::needs_io_completion`] says whether that entry must return at once.
#[derive(Debug)]
pub struct VcpuDebugger {
    pub(super) session: Arc<DebugSession>,
    pub(super) id: VcpuId,
    pub(super) plan: Arc<Plan>,
    pub(super) mode: Mode,
    pub(super) flight: Option<Flight>,
    pub(super) cruise: Option<Cruise>,
    /// Hits whose instruction is on its way.
    pub(super) passing: Vec<Passing>,
    /// The planted instruction that is out for this vCPU's step, while all others wait.
    pub(super) alone: Option<GuestAddress>,
    /// KVM has been told of the whole plan, and of nothing else since.
    armed: bool,
    /// What KVM was told last; `None` when that is not known.
    applied: Option<DebugConfig>,
    features: Option<Features>,
    online: bool,
    /// The thread left [`Self::wait_unless`] for the VMM, and the vCPU is stopped.
    attending: bool,
    /// The client was told where the vCPU is, and it has executed nothing since.
    told: bool,
}

impl Drop for VcpuDebugger {
    fn drop(&mut self) {
        // Nobody is left to tell if the instruction can't be planted.
        let _ = self.not_passed();
        if let Ok(slot) = self.session.slot(self.id) {
            slot.go_offline();
        }
    }
}

impl VcpuDebugger {
    pub(super) fn new(session: Arc<DebugSession>, id: VcpuId) -> Self {
        let (plan, mode) = (Arc::default(), Mode::Free);
        Self {
            session,
            id,
            plan,
            mode,
            flight: None,
            cruise: None,
            passing: Vec::new(),
            alone: None,
            armed: false,
            applied: None,
            features: None,
            online: false,
            attending: false,
            told: false,
        }
    }

    /// Blocks while the debugger keeps this vCPU stopped. The caller must hold no lock on the vCPU, since the
    /// client reads registers meanwhile.
    pub fn wait(&mut self) -> Wait {
        self.wait_unless(&|| false)
    }

    /// The same, for a VMM whose vCPU threads have other duties while they are stopped, such as its own pause or the end
    /// of a vCPU: [`Wait::Attention`] as soon as the vCPU is stopped and `attention` answers true. The thread must come
    /// back here then, and not enter the guest.
    ///
    /// `attention` must be quick and wait for nothing. Whoever makes it true calls [`DebugSession::wake`] afterwards.
    pub fn wait_unless(&mut self, attention: &dyn Fn() -> bool) -> Wait {
        let attended = std::mem::take(&mut self.attending);
        // A step that was cut short, or not begun, is undone in `before_run`, which has the vCPU, before the thread parks.
        let passing = !self.passing.is_empty() || self.alone.is_some();
        let busy = self.flight.is_some() || self.cruise.is_some() || passing || !self.stop_requested();
        if self.online && !attended && busy {
            return Wait::Run;
        }
        self.online = true;
        let release = match self.session.slot(self.id).map(|slot| slot.park(attention)) {
            Ok(Parked::Released(release)) => release,
            Ok(Parked::Attention) => {
                self.attending = true;
                return Wait::Attention;
            }
            Ok(Parked::Closed) | Err(_) => return Wait::Closed,
        };
        let Release { order, plan, told } = release;
        self.told = told;
        if self.session.slot(self.id).is_ok_and(|slot| slot.take_reset()) {
            self.forget();
        }
        // What it was to get over first is behind it once it has moved.
        let order = match order {
            Order::Go { action, .. } if !told => Order::Go { action, over: Over::Nothing },
            order => order,
        };
        self.mode = match order {
            Order::Go { action: ResumeAction::Step, over } => step(Goal::Report, over),
            Order::Go { action: ResumeAction::StepRange(range), over } => step(Goal::Leave(range), over),
            Order::Go { action: ResumeAction::Continue, over: Over::Nothing } => Mode::Free,
            Order::Go { action: ResumeAction::Continue, over } => step(Goal::Run, over),
            Order::StepQuietly(over) => step(Goal::Quiet, over),
            Order::Stay | Order::Go { action: ResumeAction::Stay, .. } => Mode::Free,
        };
        self.armed = false;
        self.plan = plan;
        Wait::Run
    }

    /// Whether the thread must come back to [`Self::wait`] soon. Takes no lock.
    pub fn stop_requested(&self) -> bool {
        self.session.slot(self.id).is_ok_and(|slot| slot.stop_requested())
    }

    /// Programs the vCPU for what it is to do next, if anything changed.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`] when the hypervisor refuses. The vCPU must not run then.
    pub fn before_run(&mut self, vcpu: &dyn DebugVcpu) -> Result<Entry, SessionError> {
        if self.session.slot(self.id)?.take_reset() {
            self.after_reset()?;
        }
        if self.stop_requested() {
            self.settle(vcpu)?;
            return Ok(Entry::Again);
        }
        if matches!(self.mode, Mode::Step { .. }) {
            if self.flight.is_none() {
                return self.begin(vcpu);
            }
            return Ok(Entry::Run);
        }
        if !self.armed {
            let plan = self.plan.clone();
            self.apply(vcpu, plan.attached, false, &plan.hw)?;
            self.armed = true;
        }
        self.moves()?;
        Ok(Entry::Run)
    }

    /// The vCPU was reset under its thread. A step that was under way is over, at the guest's first instruction.
    fn after_reset(&mut self) -> Result<(), SessionError> {
        self.forget();
        match std::mem::replace(&mut self.mode, Mode::Free) {
            Mode::Step { goal: Goal::Report | Goal::Leave(_), .. } => self.stop(StopReason::Step),
            Mode::Step { goal: Goal::Quiet, .. } => self.session.slot(self.id)?.finish(Ended::Unfinished),
            Mode::Step { goal: Goal::Run, .. } | Mode::Free => {}
        }
        Ok(())
    }

    /// What was known of the vCPU's registers is void.
    fn forget(&mut self) {
        self.armed = false;
        self.applied = None;
        self.flight = None;
        self.cruise = None;
        self.told = false;
        self.forget_alone();
    }

    /// Whether the instruction behind an MMIO exit must be completed before the thread goes on: enter the guest
    /// with `immediate_exit` set, then call [`Self::after_io`].
    pub fn needs_io_completion(&self) -> bool {
        self.flight.is_some() || self.stop_requested()
    }

    /// Call after the entry that [`Self::needs_io_completion`] asked for.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`].
    pub fn after_io(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        if let Some(flight) = &self.flight {
            let pc = self.get(vcpu, Reg::Pc)?;
            if flight.is_over_at(pc) {
                self.land(vcpu, pc)?;
            }
        }
        Ok(())
    }

    /// Decodes a debug exit and acts on it: the VM stops, or the guest gets the exception, or nothing happened
    /// that anybody asked for.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`] when the hypervisor refuses, [`SessionError::Exception`].
    pub fn on_debug_exit(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        match syndrome::decode(exit.syndrome) {
            DebugEvent::SoftwareStep { .. } => {
                // Without a step of ours it is a leftover of one that was undone.
                if let Some(pc) = self.quick_landing() {
                    return self.step_done(vcpu, pc);
                }
                let Some(flight) = &self.flight else { return Ok(()) };
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

    fn on_breakpoint(&mut self, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        let pc = self.get(vcpu, Reg::Pc)?;
        if let Some(flight) = &self.flight {
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
        let word = self.session.fetch(self.id, vcpu, pc).ok();
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

    /// Whether a BRK of the session's kind at `pc` is the session's. The guest may have moved its page since it was
    /// planted, or be about to.
    fn is_ours(&self, vcpu: &dyn DebugVcpu, pc: Gva) -> bool {
        match self.session.translate_by(self.id, vcpu, pc) {
            Ok(gpa) => self.session.software().is_planted(gpa) || self.session.software_mut().adopt(pc, gpa),
            Err(_) => self.session.software().has_name(pc),
        }
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
        let stepped = self.flight.is_some();
        self.unwind(vcpu)?;
        let features = match self.features {
            Some(features) => features,
            None => *self.features.insert(Self::read_features(vcpu)),
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

    /// The vCPU executes something: wherever it comes to next, the client does not know yet.
    pub(super) fn moves(&mut self) -> Result<(), SessionError> {
        if std::mem::take(&mut self.told) {
            self.session.slot(self.id)?.set_told(None);
        }
        Ok(())
    }

    /// Stops the VM here.
    pub(super) fn stop(&mut self, reason: StopReason) {
        self.mode = Mode::Free;
        // It fails where guest memory is gone, and the stop is the way to tell.
        let _ = self.not_passed();
        self.session.report(StopEvent { vcpu: self.id, reason });
    }

    /// Tells KVM, unless it knows.
    pub(super) fn apply(
        &mut self,
        vcpu: &dyn DebugVcpu,
        enabled: bool,
        single_step: bool,
        hw: &HwDebug,
    ) -> Result<(), SessionError> {
        self.armed = false;
        let known = self.applied.as_ref();
        if known.is_some_and(|c| c.enabled == enabled && c.single_step == single_step && c.hw == *hw) {
            return Ok(());
        }
        let config = DebugConfig { enabled, single_step, hw: hw.clone() };
        self.applied = None;
        vcpu.set_guest_debug(&config).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })?;
        self.applied = Some(config);
        Ok(())
    }

    pub(super) fn get(&self, vcpu: &dyn DebugVcpu, reg: Reg) -> Result<u64, SessionError> {
        vcpu.get_u64(reg).map_err(|source: VcpuError| SessionError::Vcpu { vcpu: self.id, source })
    }

    pub(super) fn set(&self, vcpu: &dyn DebugVcpu, reg: Reg, value: u64) -> Result<(), SessionError> {
        vcpu.set_u64(reg, value).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })
    }
}

fn step(goal: Goal, over: Over) -> Mode {
    Mode::Step { goal, over }
}
