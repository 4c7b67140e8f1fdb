//! Saving: the session stands still, guest memory is the guest's own, and the state says what was going on.

use super::control::Order;
use super::queue::Pending;
use super::rules;
use super::software::SavedSoftware;
use super::table::Tables;
use super::{DebugSession, STOP_TIMEOUT, SessionError};
use crate::arch::Arch;
use crate::state::{
    GuestDebugState, STATE_VERSION, StateUpdate, StepRange, StopState, ToldState, VcpuDebugState, VcpuMode, WatchState,
};
use crate::{Gva, ResumeAction, VcpuId};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A session's state, and what tells later whether the session still has it.
#[derive(Debug, Clone)]
pub struct SavedState {
    state: Arc<GuestDebugState>,
    software: SavedSoftware,
    stand_ins: BTreeMap<Gva, bool>,
}

impl SavedState {
    /// The state.
    pub fn state(&self) -> &Arc<GuestDebugState> {
        &self.state
    }
}

impl<A: Arch> DebugSession<A> {
    /// Stops every vCPU and takes the session's breakpoints out of guest memory, so that the VM can be saved: registers
    /// and memory are the guest's own until [`Self::thaw`]. A step that is under way either executes or leaves no trace,
    /// and a range of steps halts between two instructions.
    ///
    /// Meanwhile a client can look at everything; it can't change registers or memory, nor let anything run. The vCPUs' threads must reach
    /// [`super::VcpuDebugger::wait`], so a VMM that parks them elsewhere for a pause of its own does so afterwards.
    ///
    /// # Errors
    ///
    /// [`SessionError::Frozen`], [`SessionError::Stuck`], [`SessionError::Ram`] when an original instruction can't be put
    /// back. The guest goes on then.
    pub fn freeze(&self) -> Result<(), SessionError> {
        self.freeze_and(|| Ok(self.software_mut().lift_all(&*self.ram)?))
    }

    /// The same, with the session's breakpoints left in guest memory, for a VMM that takes all that it saves or sends of
    /// memory from [`Self::read_guest`]. Nothing is written, so a migration has no page to send again for it.
    ///
    /// # Errors
    ///
    /// [`SessionError::Frozen`], [`SessionError::Stuck`]. The guest goes on then.
    pub fn freeze_planted(&self) -> Result<(), SessionError> {
        self.freeze_and(|| Ok(()))
    }

    fn freeze_and(&self, lift: impl FnOnce() -> Result<(), SessionError>) -> Result<(), SessionError> {
        let tables = self.thawed()?;
        let frozen = self.freeze_vcpus().and_then(|()| {
            self.frozen.store(true, Ordering::Release);
            lift()
        });
        if frozen.is_err() {
            // That the VM can't be saved says more than that a breakpoint is lost.
            let _ = self.go_on(&tables);
        }
        frozen
    }

    /// Ends what [`Self::freeze`] began: breakpoints are planted again and every vCPU goes on with what it was doing. A
    /// stop that happened meanwhile is the client's to fetch; [`Self::stop_fd`] is readable for an attached client even if
    /// there is none. Does nothing in a session that is not frozen.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when guest memory can't be written; the guest goes on all the same.
    pub fn thaw(&self) -> Result<(), SessionError> {
        let tables = self.tables();
        if self.is_frozen() { self.go_on(&tables) } else { Ok(()) }
    }

    /// Whether the session is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Waits until the session is not frozen. Answers whether it is not, when the time is over or the session is closed.
    pub fn wait_thawed(&self, timeout: Duration) -> bool {
        self.wait_until(timeout, |_| !self.is_frozen() || self.closed.load(Ordering::Acquire));
        !self.is_frozen()
    }

    /// Waits until no client owns the session. Answers whether none does, when the time is over.
    pub fn wait_detached(&self, timeout: Duration) -> bool {
        self.wait_until(timeout, |tables| !tables.attached)
    }

    fn wait_until(&self, timeout: Duration, condition: impl Fn(&Tables) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut tables = self.tables();
        while !condition(&tables) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            tables = self.changed.wait_timeout(tables, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The session's state. Save guest memory between [`Self::freeze`] and [`Self::thaw`] along with it, or take it from
    /// [`Self::read_guest`], else it holds breakpoint instructions.
    ///
    /// # Errors
    ///
    /// [`SessionError::NotStopped`] when a vCPU runs: freeze the session first. [`SessionError::Vcpu`].
    pub fn state(&self) -> Result<GuestDebugState, SessionError> {
        let tables = self.tables();
        match &tables.restored {
            Some(restored) => Ok(restored.state()),
            None => Ok(self.with_software(self.beside_software(&tables)?, &tables)),
        }
    }

    /// The same, in a form that [`Self::update_since`] takes.
    ///
    /// # Errors
    ///
    /// As [`Self::state`].
    pub fn save(&self) -> Result<SavedState, SessionError> {
        let tables = self.tables();
        let (state, software) = match &tables.restored {
            Some(restored) => (restored.state(), restored.software.clone()),
            None => {
                let software = self.software().saved().clone();
                (self.with_software(self.beside_software(&tables)?, &tables), software)
            }
        };
        Ok(SavedState { state: Arc::new(state), software, stand_ins: tables.stand_ins.clone() })
    }

    /// What the state has become, if it is not what it was: for a VMM that has sent it ahead, to the other side's
    /// [`Self::update`]. While no software breakpoint changes it costs the same for any number of them.
    ///
    /// # Errors
    ///
    /// As [`Self::state`].
    pub fn update_since(&self, before: &SavedState) -> Result<Option<StateUpdate>, SessionError> {
        let tables = self.tables();
        let (state, same_software) = match &tables.restored {
            Some(restored) => (restored.beside.clone(), Arc::ptr_eq(&restored.software, &before.software)),
            None => (self.beside_software(&tables)?, self.software().is_still(&before.software)),
        };
        if same_software && tables.stand_ins == before.stand_ins {
            let same = state.is_but_for_software(&before.state);
            return Ok(if same { None } else { Some(StateUpdate { same_software: true, state }) });
        }
        let state = match &tables.restored {
            Some(restored) => restored.state(),
            None => self.with_software(state, &tables),
        };
        Ok(Some(StateUpdate { same_software: false, state }).filter(|update| update.state != *before.state))
    }

    /// The state without its software breakpoints.
    fn beside_software(&self, tables: &Tables) -> Result<GuestDebugState, SessionError> {
        self.all_stopped()?;
        let (reported, pending, put_aside) = self.queue().all();
        Ok(GuestDebugState {
            version: STATE_VERSION,
            architecture: A::ARCHITECTURE,
            attached: tables.armed,
            held: tables.held,
            selected_vcpu: tables.selected.map(|vcpu| vcpu.0),
            hardware: tables.hardware.iter().map(|address| address.0).collect(),
            watches: tables
                .watches
                .iter()
                .map(|watch| WatchState { address: watch.address.0, length: watch.length, kind: watch.kind })
                .collect(),
            software: Vec::new(),
            vcpus: self
                .vcpus
                .iter()
                .map(|slot| VcpuDebugState {
                    mode: mode(slot.order()),
                    told: slot.told().map(|told| ToldState {
                        pc: told.pc,
                        watches: told.watches.iter().map(|address| address.0).collect(),
                    }),
                })
                .collect(),
            reported,
            pending: self.stop_states(pending)?,
            put_aside: self.stop_states(put_aside)?,
            rules: rules::state(&tables.rules),
        })
    }

    fn with_software(&self, beside: GuestDebugState, tables: &Tables) -> GuestDebugState {
        let mut software = self.software().state();
        // What stands in for a hardware breakpoint is none of the client's.
        let names: Vec<_> = tables.stand_ins.iter().filter(|(_, asked)| !**asked).map(|(name, _)| name.0).collect();
        if !names.is_empty() {
            software.iter_mut().for_each(|breakpoint| breakpoint.names.retain(|name| !names.contains(name)));
            software.retain(|breakpoint| !breakpoint.names.is_empty());
        }
        GuestDebugState { software, ..beside }
    }

    /// The vCPU that the client has selected.
    pub fn selected_vcpu(&self) -> Option<VcpuId> {
        let tables = self.tables();
        match &tables.restored {
            Some(restored) => restored.beside.selected_vcpu.map(VcpuId),
            None => tables.selected,
        }
    }

    /// Keeps what vCPU the client has selected, for the next client on whatever host.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoSuchVcpu`], [`SessionError::NotAttached`].
    pub fn select_vcpu(&self, vcpu: Option<VcpuId>) -> Result<(), SessionError> {
        if let Some(vcpu) = vcpu {
            self.slot(vcpu)?;
        }
        let mut tables = self.tables();
        if !tables.attached {
            return Err(SessionError::NotAttached);
        }
        tables.selected = vcpu;
        Ok(())
    }

    fn stop_states(&self, stops: Vec<Pending>) -> Result<Vec<StopState>, SessionError> {
        let state = |Pending { event, pc }: Pending| {
            let read = || {
                let pc = A::pc(&*self.stopped(event.vcpu)?);
                pc.map_err(|source| SessionError::Vcpu { vcpu: event.vcpu, source })
            };
            let pc = pc.map_or_else(read, Ok)?;
            Ok(StopState { vcpu: event.vcpu.0, pc, reason: event.reason.into() })
        };
        stops.into_iter().map(state).collect()
    }

    /// Stops every vCPU, each of which remembers what it was doing. [`Self::thaw_vcpus`] goes back, after an error too.
    pub(super) fn freeze_vcpus(&self) -> Result<(), SessionError> {
        for (id, slot) in self.slots() {
            if slot.request_freeze()
                && let Some(host) = self.host.get()
            {
                host.kick(id);
            }
        }
        for (id, slot) in self.slots() {
            if !slot.wait_parked(STOP_TIMEOUT) {
                return Err(SessionError::Stuck(id));
            }
        }
        if !self.queue().is_empty() {
            // A vCPU that was resumed while another one hit missed that one's call to stop.
            for slot in &self.vcpus {
                slot.set_frozen(Order::Stay);
            }
        }
        Ok(())
    }

    /// Every vCPU goes on with what it was doing.
    pub(super) fn thaw_vcpus(&self, tables: &Tables) {
        let plan = Arc::new(tables.plan::<A>());
        for (id, slot) in self.slots() {
            let order = match slot.take_frozen() {
                // What it was to get over may be behind it by now.
                Some(Order::Go { action, .. }) => Order::Go { action, over: self.over(&plan, id) },
                Some(order) => order,
                None => continue,
            };
            slot.release(order, plan.clone());
        }
        self.stop_if_pending();
    }

    /// A vCPU that stops while others are still to be released stops them in vain.
    pub(super) fn stop_if_pending(&self) {
        if !self.queue().is_empty() {
            self.stop_all(None);
        }
    }

    fn go_on(&self, tables: &Tables) -> Result<(), SessionError> {
        self.frozen.store(false, Ordering::Release);
        self.changed.notify_all();
        let planted = if tables.armed { self.software_mut().plant_all(&*self.ram) } else { Ok(()) };
        self.thaw_vcpus(tables);
        // What a client wanted meanwhile can be done now.
        if tables.attached || !self.queue().is_empty() {
            self.ring();
        }
        Ok(planted?)
    }
}

fn mode(order: Order) -> VcpuMode {
    match order {
        Order::Go { action: ResumeAction::Continue, .. } => VcpuMode::Running,
        Order::Go { action: ResumeAction::Step, .. } => VcpuMode::Stepping,
        Order::Go { action: ResumeAction::StepRange(range), .. } => {
            // A range that ends before it starts holds nothing, as one that ends there.
            VcpuMode::SteppingRange(StepRange { start: range.start, end: range.end.max(range.start) })
        }
        // A quiet step is over before anybody can freeze the session.
        Order::Stay | Order::Go { action: ResumeAction::Stay, .. } | Order::StepQuietly(_) => VcpuMode::Stopped,
    }
}
