//! The debugger's part of a vCPU's thread: what is armed before the guest runs, and what comes out of it.

use super::control::{Ended, Order, Over, Parked, Release};
use super::judge::Passing;
use super::table::Plan;
use super::{DebugSession, SessionError};
use crate::arch::{Arch, Arm64};
use crate::{DebugConfig, DebugVcpu, Gva, ResumeAction, StopEvent, StopReason, VcpuError, VcpuId};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

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
pub struct VcpuDebugger<A: Arch = Arm64> {
    pub(super) session: Arc<DebugSession<A>>,
    pub(super) id: VcpuId,
    pub(super) plan: Arc<Plan<A>>,
    pub(super) mode: Mode,
    /// What is specific to the guest's architecture.
    pub(super) motion: A::Motion,
    /// Hits whose instruction is on its way.
    pub(super) passing: Vec<Passing>,
    /// The planted instruction that is out for this vCPU's step, while all others wait.
    pub(super) alone: Option<GuestAddress>,
    /// KVM has been told of the whole plan, and of nothing else since.
    armed: bool,
    /// What KVM was told last; `None` when that is not known.
    applied: Option<DebugConfig<A::Hw>>,
    online: bool,
    /// The thread left [`Self::wait_unless`] for the VMM, and the vCPU is stopped.
    attending: bool,
    /// The client was told where the vCPU is, and it has executed nothing since.
    told: bool,
}

impl<A: Arch> Drop for VcpuDebugger<A> {
    fn drop(&mut self) {
        // Nobody is left to tell if the instruction can't be planted.
        let _ = self.not_passed();
        if let Ok(slot) = self.session.slot(self.id) {
            slot.go_offline();
        }
    }
}

impl<A: Arch> VcpuDebugger<A> {
    pub(super) fn new(session: Arc<DebugSession<A>>, id: VcpuId) -> Self {
        let (plan, mode) = (Arc::default(), Mode::Free);
        Self {
            session,
            id,
            plan,
            mode,
            motion: A::Motion::default(),
            passing: Vec::new(),
            alone: None,
            armed: false,
            applied: None,
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
        let busy = A::is_moving(&self.motion) || passing || !self.stop_requested();
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
    pub fn before_run(&mut self, vcpu: &dyn DebugVcpu<A>) -> Result<Entry, SessionError> {
        if self.session.slot(self.id)?.take_reset() {
            self.after_reset()?;
        }
        if self.stop_requested() {
            A::settle(self, vcpu)?;
            self.not_passed()?;
            return Ok(Entry::Again);
        }
        if matches!(self.mode, Mode::Step { .. }) {
            return if A::is_stepping(&self.motion) { Ok(Entry::Run) } else { A::begin(self, vcpu) };
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
        A::forget(&mut self.motion);
        self.told = false;
        self.forget_alone();
    }

    /// Whether the instruction behind an MMIO exit must be completed before the thread goes on: enter the guest
    /// with `immediate_exit` set, then call [`Self::after_io`].
    pub fn needs_io_completion(&self) -> bool {
        A::is_stepping(&self.motion) || self.stop_requested()
    }

    /// Call after the entry that [`Self::needs_io_completion`] asked for.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`].
    pub fn after_io(&mut self, vcpu: &dyn DebugVcpu<A>) -> Result<(), SessionError> {
        A::after_io(self, vcpu)
    }

    /// Decodes a debug exit and acts on it: the VM stops, or the guest gets the exception, or nothing happened
    /// that anybody asked for.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`] when the hypervisor refuses, [`SessionError::Exception`].
    pub fn on_debug_exit(&mut self, vcpu: &dyn DebugVcpu<A>, exit: A::Exit) -> Result<(), SessionError> {
        A::on_debug_exit(self, vcpu, exit)
    }

    /// Whether a breakpoint instruction of the session's kind at `pc` is the session's. The guest may have moved its page since it was
    /// planted, or be about to.
    pub(super) fn is_ours(&self, vcpu: &dyn DebugVcpu<A>, pc: Gva) -> bool {
        match self.session.translate_by(self.id, vcpu, pc) {
            Ok(gpa) => self.session.software().is_planted(gpa) || self.session.software_mut().adopt(pc, gpa),
            Err(_) => self.session.software().has_name(pc),
        }
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
        vcpu: &dyn DebugVcpu<A>,
        enabled: bool,
        single_step: bool,
        hw: &A::Hw,
    ) -> Result<(), SessionError> {
        self.armed = false;
        let known = self.applied.as_ref();
        let again = single_step && A::STEP_ENDS;
        if known.is_some_and(|c| !again && c.enabled == enabled && c.single_step == single_step && c.hw == *hw) {
            return Ok(());
        }
        let block_interrupts = single_step && A::blocks_interrupts(&self.session.caps);
        let config = DebugConfig { enabled, single_step, block_interrupts, hw: hw.clone() };
        self.applied = None;
        vcpu.set_guest_debug(&config).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })?;
        self.applied = Some(config);
        Ok(())
    }

    /// The debug registers that KVM was told of last.
    pub(super) fn hw(&self) -> Option<&A::Hw> {
        self.applied.as_ref().map(|config| &config.hw)
    }

    pub(super) fn get(&self, vcpu: &dyn DebugVcpu<A>, reg: A::Reg) -> Result<u64, SessionError> {
        vcpu.get_u64(reg).map_err(|source: VcpuError| SessionError::Vcpu { vcpu: self.id, source })
    }

    pub(super) fn set(&self, vcpu: &dyn DebugVcpu<A>, reg: A::Reg, value: u64) -> Result<(), SessionError> {
        vcpu.set_u64(reg, value).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })
    }
}

pub(super) fn step(goal: Goal, over: Over) -> Mode {
    Mode::Step { goal, over }
}
