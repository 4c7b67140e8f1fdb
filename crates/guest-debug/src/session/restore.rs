//! Restoring: a state is checked, fitted to this host, and in force before the first instruction.

use super::control::{Order, Told};
use super::queue::Pending;
use super::rules;
use super::software::{SavedSoftware, SoftwareBreakpoints};
use super::table::{Tables, Watch};
use super::{DebugSession, SessionError};
use crate::arch::Arch;
use crate::state::{self, GuestDebugState, StateError, StopState, ToldState, VcpuMode};
use crate::{DebugCaps, GuestRam, Gva, ResumeAction, VcpuId};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What becomes of a session that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// It goes on, with a client or before one attaches. No vCPU executes anything before [`DebugSession::arm`].
    Arm,
    /// The guest runs as if nobody debugged it: nothing is armed and nothing planted. The state is kept for the next save,
    /// and for a client that attaches.
    Dormant,
}

/// The checked state of a session that is not in force.
#[derive(Debug)]
pub(super) struct Restored {
    /// All but the software breakpoints.
    pub(super) beside: GuestDebugState,
    pub(super) software: SavedSoftware,
}

impl Restored {
    pub(super) fn new(state: Arc<GuestDebugState>, vcpus: usize) -> Result<Self, StateError> {
        if state.vcpus.len() != vcpus {
            return Err(StateError::VcpuCount { found: state.vcpus.len(), expected: vcpus });
        }
        let mut beside = Arc::unwrap_or_clone(state);
        let software = Arc::new(std::mem::take(&mut beside.software));
        Ok(Self { beside, software })
    }

    /// All of it.
    pub(super) fn state(&self) -> GuestDebugState {
        GuestDebugState { software: self.software.to_vec(), ..self.beside.clone() }
    }
}

impl<A: Arch> DebugSession<A> {
    /// A session from the state of one that was saved. Nothing of it is believed unchecked, and guest memory is not
    /// touched yet. Its VM has `vcpus` vCPUs. A state that is handed over is not copied, a borrowed one is.
    ///
    /// # Errors
    ///
    /// [`SessionError::State`] with the field that is wrong, or what the host lacks: for [`Restore::Arm`] as
    /// [`state::fits`], for [`Restore::Dormant`] as [`state::check`]. [`SessionError::NoVcpus`], [`SessionError::Event`].
    pub fn from_state(
        state: impl Into<Arc<GuestDebugState>>,
        vcpus: u32,
        caps: DebugCaps,
        ram: Arc<dyn GuestRam>,
        restore: Restore,
    ) -> Result<Arc<Self>, SessionError> {
        let state = state.into();
        match restore {
            Restore::Arm => drop(state::fits_as::<A>(&state, &caps)?),
            Restore::Dormant => state::check_as::<A>(&state)?,
        }
        let restored = Restored::new(state, vcpus as usize)?;
        let tables = Tables { restored: Some(Arc::new(restored)), ..Tables::default() };
        Self::with_tables(vcpus, caps, ram, restore == Restore::Arm, tables)
    }

    /// Puts a restored session in force. Call once the vCPUs' registers and guest memory are restored and
    /// [`Self::set_host`] was called. Software breakpoints are planted where memory holds the instruction that was saved,
    /// and every vCPU's thread gets what it was doing; before it has, it waits.
    ///
    /// Where the host has too few breakpoint slots, software breakpoints stand in for hardware breakpoints on pages that
    /// a vCPU maps now; their addresses are the answer. To clients they are hardware breakpoints. Does nothing in a
    /// session that is in force.
    ///
    /// # Errors
    ///
    /// [`SessionError::State`] when the session does not fit the host, [`SessionError::Ram`], [`SessionError::Host`],
    /// [`SessionError::NotStopped`] for a dormant session whose guest runs; a client that attaches arms that one.
    /// Nothing runs or is planted then.
    pub fn arm(&self) -> Result<Vec<Gva>, SessionError> {
        let mut tables = self.thawed()?;
        if tables.early.take().is_some() {
            tables.ahead = None;
            return Ok(Vec::new());
        }
        self.arm_now(&mut tables)
    }

    pub(super) fn arm_now(&self, tables: &mut Tables) -> Result<Vec<Gva>, SessionError> {
        let Some(restored) = tables.restored.clone() else { return Ok(Vec::new()) };
        if self.host.get().is_none() {
            return Err(SessionError::Host);
        }
        self.all_stopped()?;
        self.take_over(tables)?;
        let plan = Arc::new(tables.plan::<A>());
        for ((id, slot), vcpu) in self.slots().zip(&restored.beside.vcpus) {
            let action = match vcpu.mode {
                VcpuMode::Stopped => ResumeAction::Stay,
                VcpuMode::Running => ResumeAction::Continue,
                VcpuMode::Stepping => ResumeAction::Step,
                VcpuMode::SteppingRange(range) => ResumeAction::StepRange(range.start..range.end),
            };
            let order = match action {
                ResumeAction::Stay => Order::Stay,
                action => Order::Go { action, over: self.over(&plan, id) },
            };
            slot.release(order, plan.clone());
        }
        self.stop_if_pending();
        Ok(tables.stand_ins.keys().copied().collect())
    }

    /// Whether the session was restored and is not in force: [`Restore::Dormant`], or [`Self::arm`] not called yet.
    pub fn is_dormant(&self) -> bool {
        self.tables().restored.is_some()
    }

    /// Makes a restored state the session's own, every vCPU being stopped. On an error it is as if nothing had been
    /// tried.
    pub(super) fn take_over(&self, tables: &mut Tables) -> Result<(), SessionError> {
        let Some(restored) = tables.restored.clone() else {
            if !tables.armed {
                self.queue().clear();
            }
            return Ok(());
        };
        let state = &restored.beside;
        let mut software = std::mem::take(&mut *self.software_mut());
        let ahead = tables.ahead.take();
        if ahead.is_none() {
            software = SoftwareBreakpoints::from_state(&restored.software);
        }
        let planted = state::fits_host::<A>(state, &self.caps).map_err(SessionError::from).and_then(|_| {
            let stand_ins = self.stand_ins(state)?;
            let also_software: Vec<_> = stand_ins.iter().map(|(name, _)| (*name, software.has_name(*name))).collect();
            match ahead {
                Some(ahead) => ahead.plant_rest(&mut software, &*self.ram)?,
                None => software.plant_all(&*self.ram)?,
            }
            self.plant_stand_ins(&mut software, &stand_ins)?;
            Ok(also_software)
        });
        let also_software = planted.inspect_err(|_| {
            // The error that began it is the one to tell.
            let _ = software.lift_all(&*self.ram);
        })?;
        *self.software_mut() = software;
        for ((_, slot), vcpu) in self.slots().zip(&state.vcpus) {
            let told = vcpu.told.as_ref();
            let watches = |told: &ToldState| told.watches.iter().copied().map(Gva).collect();
            slot.set_told(told.map(|told| Told { pc: told.pc, watches: watches(told) }));
        }
        let holds = |stop: &&StopState| self.pc(VcpuId(stop.vcpu)).is_none_or(|pc| pc == stop.pc);
        let stops = |list: &[StopState]| list.iter().filter(holds).map(Pending::from).collect();
        let reported = state.reported.filter(|stop| holds(&stop));
        self.queue().restore(reported, stops(&state.pending), stops(&state.put_aside));
        *tables = Tables {
            attached: false,
            armed: state.attached,
            held: state.held,
            restored: None,
            ahead: None,
            early: None,
            hardware: state.hardware.iter().copied().map(Gva).collect(),
            stand_ins: also_software.into_iter().collect(),
            watches: state
                .watches
                .iter()
                .map(|watch| Watch { address: Gva(watch.address), length: watch.length, kind: watch.kind })
                .collect(),
            rules: Arc::new(rules::from_state(&state.rules)),
            selected: state.selected_vcpu.map(VcpuId),
            all_went: None,
        };
        Ok(())
    }

    fn plant_stand_ins(
        &self,
        software: &mut SoftwareBreakpoints<A>,
        stand_ins: &[(Gva, GuestAddress)],
    ) -> Result<(), SessionError> {
        for &(name, gpa) in stand_ins {
            software.insert(name, gpa, &*self.ram)?;
        }
        Ok(())
    }

    /// The hardware breakpoints that find no slot here, and where software breakpoints can stand in for them.
    fn stand_ins(&self, state: &GuestDebugState) -> Result<Vec<(Gva, GuestAddress)>, SessionError> {
        let surplus = state::fits_host::<A>(state, &self.caps)?.as_software;
        if surplus == 0 {
            return Ok(Vec::new());
        }
        let place = |address: Gva| {
            let mapped = |(id, _)| {
                let gpa = self.translate(id, address).ok()?;
                self.fetch_code(gpa).is_ok().then_some(gpa)
            };
            Some((address, self.slots().find_map(mapped)?))
        };
        let mut candidates: Vec<_> = state.hardware.iter().copied().map(Gva).filter_map(place).collect();
        if candidates.len() < surplus {
            let needed = state.hardware.len() - candidates.len();
            return Err(StateError::BreakpointSlots { needed, available: self.caps.hw_bps }.into());
        }
        // A vCPU gets over a breakpoint that its client was told of with less ado if that is in a slot.
        let told = |name: &Gva| state.vcpus.iter().any(|vcpu| vcpu.told.as_ref().is_some_and(|told| told.pc == name.0));
        candidates.sort_by_key(|(name, _)| told(name));
        candidates.truncate(surplus);
        Ok(candidates)
    }
}
