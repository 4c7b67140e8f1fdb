//! The client's side of a session: attach, breakpoints, resume, stops.

use super::control::{Ended, Order, Over, Told};
use super::messages::Waiting;
use super::software::Removed;
use super::table::{Plan, Tables, Watch};
use super::{BreakpointInfo, DebugSession, QUIET_TIMEOUT, STOP_TIMEOUT, SessionError, free};
use crate::arch::Arch;
use crate::state::{MAX_TOLD, StopState};
use crate::{Breakpoint, Gva, ResumeAction, StopEvent, StopReason, VcpuId, WatchKind};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// How often an instruction that was cut short is tried again before its vCPU goes on with the others.
const PATIENCE: usize = 20;

impl<A: Arch> DebugSession<A> {
    /// Gives the session to a client and stops every vCPU.
    ///
    /// In a session that was restored the client finds the breakpoints of the client before it, and is told the stop
    /// that one was told last, then those that it had not fetched. Of a session that was not armed until now, only
    /// stops of vCPUs that have not moved on are told.
    ///
    /// # Errors
    ///
    /// [`SessionError::AlreadyAttached`], [`SessionError::Host`], [`SessionError::Stuck`], [`SessionError::Frozen`], [`SessionError::Arriving`],
    /// [`SessionError::State`] and [`SessionError::Ram`] when a restored session can't be armed. The guest runs on then
    /// as it did.
    pub fn attach(&self) -> Result<(), SessionError> {
        if self.host.get().is_none() {
            return Err(SessionError::Host);
        }
        let mut tables = self.thawed()?;
        if tables.attached {
            return Err(SessionError::AlreadyAttached);
        }
        // What may still come would be another session under the client's feet.
        if tables.early.is_some() {
            return Err(SessionError::Arriving);
        }
        if let Err(error) = self.freeze_vcpus().and_then(|()| self.take_over(&mut tables)) {
            self.thaw_vcpus(&tables);
            return Err(error);
        }
        // They stay stopped, for the client.
        for slot in &self.vcpus {
            slot.take_frozen();
        }
        let mut queue = self.queue();
        queue.tell_again();
        let waiting = !queue.is_empty();
        drop(queue);
        tables.attached = true;
        tables.armed = true;
        if waiting {
            self.ring();
        }
        Ok(())
    }

    /// Takes the session from its client: removes every breakpoint and lets every vCPU run. Nothing stays
    /// behind in guest memory, and KVM's debug settings go before a vCPU enters the guest again.
    ///
    /// # Errors
    ///
    /// [`SessionError::NotAttached`]. [`SessionError::Stuck`] with the client still attached. [`SessionError::Ram`] when an original
    /// instruction can't be put back because the VMM took its memory away; the client is detached all the same.
    pub fn detach(&self) -> Result<(), SessionError> {
        let mut tables = self.tables();
        if !tables.attached {
            return Err(SessionError::NotAttached);
        }
        let frozen = self.is_frozen();
        if !frozen {
            self.halt()?;
        }
        *tables = Tables::default();
        self.changed.notify_all();
        let cleared = self.software_mut().clear(&*self.ram);
        self.queue().clear();
        *self.waiting() = Waiting::default();
        let _ = self.doorbell.read();
        let plan = Arc::new(tables.plan::<A>());
        for slot in &self.vcpus {
            slot.set_told(None);
            if frozen {
                slot.set_frozen(free());
            } else {
                slot.release(free(), plan.clone());
            }
        }
        Ok(cleared?)
    }

    /// Whether a client owns the session.
    pub fn attached(&self) -> bool {
        self.tables().attached
    }

    /// Stops every vCPU. If nothing else has stopped the VM by then, the next stop is [`StopReason::Interrupt`]
    /// of vCPU 0. In a frozen session the vCPUs stay stopped when it is thawed. Without a client nothing happens: nobody
    /// could let the guest go on.
    pub fn interrupt(&self) {
        let tables = self.tables();
        if !tables.attached {
            return;
        }
        let mut queue = self.queue();
        if queue.is_empty() {
            queue.push(StopEvent { vcpu: VcpuId(0), reason: StopReason::Interrupt });
        }
        drop(queue);
        self.stop_all(None);
        self.ring();
    }

    /// Readable while a stop may be waiting in [`DebugSession::take_stop`].
    pub fn stop_fd(&self) -> &EventFd {
        &self.doorbell
    }

    /// The next stop, once every vCPU is out of guest code. `None` when there is none. While the session is frozen a stop
    /// waits for the thaw, unless [`Self::interrupt`] asks for one.
    ///
    /// # Errors
    ///
    /// [`SessionError::Stuck`]; the stop is still there for the next call.
    pub fn take_stop(&self) -> Result<Option<StopEvent>, SessionError> {
        // Held throughout: a state that is asked for meanwhile has the stop either pending or reported.
        let tables = self.tables();
        if self.is_frozen() && !self.queue().has_interrupt() {
            // It rings again when the session is thawed.
            let _ = self.doorbell.read();
            return Ok(None);
        }
        if self.queue().is_empty() {
            let _ = self.doorbell.read();
            // One that arrived between the look and the read rang in vain.
            if self.queue().is_empty() {
                return Ok(None);
            }
        }
        // A vCPU that was resumed while another one hit missed that one's call to stop.
        self.halt()?;
        let _ = self.doorbell.read();
        let Some(event) = self.queue().pop() else { return Ok(None) };
        let pc = self.pc(event.vcpu);
        if event.reason != StopReason::Interrupt {
            let slot = self.slot(event.vcpu)?;
            let known = slot.told().filter(|told| Some(told.pc) == pc);
            let again = known.as_ref().is_some_and(|known| match event.reason {
                StopReason::Watchpoint { address, .. } => known.watches.contains(&address),
                _ => true,
            });
            if !again {
                self.count_stop(&tables, event.reason);
            }
            let mut watches = known.map(|told| told.watches).unwrap_or_default();
            // After a move the same stop is told again.
            if let StopReason::Watchpoint { address, .. } = event.reason
                && !A::WATCH_TRAPS
                && !watches.contains(&address)
            {
                if watches.len() == MAX_TOLD {
                    // It hits once more if it is still there.
                    watches.remove(0);
                }
                watches.push(address);
            }
            slot.set_told(pc.map(|pc| Told { pc, watches }));
        }
        self.queue().reported = pc.map(|pc| StopState { vcpu: event.vcpu.0, pc, reason: event.reason.into() });
        Ok(Some(event))
    }

    /// Resumes the VM. A vCPU that is not named continues.
    ///
    /// While one steps, the others stay where they are if they went less than 100 ms ago; otherwise they go first, for a
    /// millisecond, and on while it steps. A step that takes more than 5 ms is joined by the others in any case.
    ///
    /// Stops that the client has not fetched yet are reported at once, if their breakpoint is still there and
    /// their vCPU would run; nothing runs then. A vCPU that sits on a breakpoint which the client was told of
    /// executes that instruction first, without hitting it again; for a software breakpoint it does so alone.
    ///
    /// # Errors
    ///
    /// [`SessionError::NotAttached`], [`SessionError::NotStopped`] when a vCPU still runs,
    /// [`SessionError::NoSuchVcpu`], [`SessionError::Vcpu`], [`SessionError::Ram`], [`SessionError::Frozen`]. Nothing runs
    /// then.
    pub fn resume(&self, actions: &[(VcpuId, ResumeAction)]) -> Result<(), SessionError> {
        let mut tables = self.thawed()?;
        if !tables.attached {
            return Err(SessionError::NotAttached);
        }
        let mut all = vec![ResumeAction::Continue; self.vcpus.len()];
        for (id, action) in actions {
            self.slot(*id)?;
            if let Some(slot) = all.get_mut(id.0 as usize) {
                *slot = action.clone();
            }
        }
        self.halt()?;
        for ((id, _), action) in self.slots().zip(&mut all) {
            if let ResumeAction::StepRange(range) = action {
                *range = self.addresses(id, range)?;
            }
        }
        tables.held = false;
        if self.keep_pending(&tables, &all) {
            self.ring();
            return Ok(());
        }
        self.queue().reported = None;
        let plan = Arc::new(tables.plan::<A>());
        let mut stepped = false;
        for (id, _) in self.slots() {
            let Some(action) = all.get_mut(id.0 as usize) else { continue };
            if *action == ResumeAction::Stay {
                continue;
            }
            let Some(gpa) = self.software_under(id) else { continue };
            self.software_mut().lift_one(gpa, &*self.ram)?;
            let executed = self.step_quietly(id, &plan);
            self.software_mut().plant_one(gpa, &*self.ram)?;
            if !executed? {
                continue;
            }
            let pc = self.pc(id);
            let ranged = matches!(action, ResumeAction::StepRange(_));
            let reason = match (action.clone(), pc) {
                // What has a rule is judged by the vCPU itself.
                (_, Some(pc)) if ranged && plan.has_breakpoint(pc) && !plan.has_rule(pc) => {
                    StopReason::HardwareBreakpoint(Gva(pc))
                }
                (ResumeAction::StepRange(range), Some(pc)) if range.contains(&pc) => continue,
                (ResumeAction::Continue | ResumeAction::Stay, _) => continue,
                _ => StopReason::Step,
            };
            // The step that the client asked for has just been made.
            *action = ResumeAction::Stay;
            self.queue().push(StopEvent { vcpu: id, reason });
            stepped = true;
        }
        if stepped || !self.queue().is_empty() {
            self.ring();
            return Ok(());
        }
        let orders = self.slots().zip(all).map(|((id, _), action)| match action {
            ResumeAction::Stay => Order::Stay,
            action => Order::Go { action, over: self.over(&plan, id) },
        });
        self.let_go(&mut tables, &plan, orders.collect());
        Ok(())
    }

    /// Inserts a breakpoint. A software breakpoint's address is translated in the address space that `vcpu` is
    /// in. Inserting the same one again changes nothing. In a frozen session it is planted by the thaw.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoBreakpointSlot`], [`SessionError::NoWatchpointSlot`], [`SessionError::Address`],
    /// [`SessionError::Watch`], [`SessionError::Translate`], [`SessionError::Ram`], [`SessionError::NotStopped`],
    /// [`SessionError::NotAttached`].
    pub fn insert(&self, vcpu: VcpuId, breakpoint: Breakpoint) -> Result<(), SessionError> {
        let mut tables = self.tables();
        if !tables.attached {
            return Err(SessionError::NotAttached);
        }
        self.all_stopped()?;
        match breakpoint {
            Breakpoint::Hardware(address) => tables.insert_hardware::<A>(address, &self.caps),
            Breakpoint::Watch { kind, address, length } => {
                tables.insert_watch::<A>(Watch { address, length, kind }, &self.caps)
            }
            Breakpoint::Software(address) => {
                let gpa = self.translate(vcpu, address)?;
                A::check(breakpoint)?;
                if self.is_frozen() {
                    self.software_mut().insert_later(address, gpa, &*self.ram)?;
                } else {
                    self.software_mut().insert(address, gpa, &*self.ram)?;
                }
                if let Some(also_software) = tables.stand_ins.get_mut(&address) {
                    *also_software = true;
                }
                Ok(())
            }
        }
    }

    /// Removes a breakpoint.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoSuchBreakpoint`], [`SessionError::NotStopped`], [`SessionError::Ram`].
    pub fn remove(&self, breakpoint: Breakpoint) -> Result<Removed, SessionError> {
        let mut tables = self.tables();
        self.all_stopped()?;
        let (removed, address) = match breakpoint {
            Breakpoint::Hardware(address) => (self.remove_hardware(&mut tables, address)?, address),
            Breakpoint::Watch { kind, address, length } => {
                (tables.watches.remove(&Watch { address, length, kind }).then_some(Removed::Restored), address)
            }
            Breakpoint::Software(address) => match tables.stand_ins.get_mut(&address) {
                // It stays planted for the hardware breakpoint.
                Some(also_software) => (std::mem::take(also_software).then_some(Removed::Restored), address),
                None => (self.software_mut().remove(address, &*self.ram)?, address),
            },
        };
        removed.ok_or(SessionError::NoSuchBreakpoint(address))
    }

    fn remove_hardware(&self, tables: &mut Tables, address: Gva) -> Result<Option<Removed>, SessionError> {
        if tables.stand_ins.get(&address) == Some(&false) {
            self.software_mut().remove(address, &*self.ram)?;
        }
        tables.stand_ins.remove(&address);
        Ok(tables.hardware.remove(&address).then_some(Removed::Restored))
    }

    /// Everything that is inserted: hardware, watches, software, each in the order of addresses.
    pub fn breakpoints(&self) -> Vec<BreakpointInfo> {
        let tables = self.tables();
        let hardware = tables.hardware.iter().map(|&address| {
            let slots = if tables.stand_ins.contains_key(&address) { 0 } else { 1 };
            (Breakpoint::Hardware(address), slots)
        });
        let watches = tables.watches.iter().map(|&Watch { address, length, kind }| {
            let slots = A::watch_slots(kind, address.0, length).map_or(0, |slots| slots.len());
            (Breakpoint::Watch { kind, address, length }, slots)
        });
        let registers = hardware.chain(watches);
        let mut list: Vec<_> = registers
            .map(|(breakpoint, slots)| {
                let reads = matches!(breakpoint, Breakpoint::Watch { kind: WatchKind::Read, .. });
                BreakpointInfo { breakpoint, physical: None, armed: true, slots, widened: reads && A::WIDENS_READS }
            })
            .collect();
        let mut software = self.software().list();
        software.retain(|(name, ..)| tables.stand_ins.get(name) != Some(&false));
        list.extend(software.into_iter().map(|(name, gpa, armed)| BreakpointInfo {
            breakpoint: Breakpoint::Software(name),
            physical: Some(gpa),
            armed,
            slots: 0,
            widened: false,
        }));
        list
    }

    /// Drops the stops that no longer hold and answers whether one must be reported before anything runs.
    ///
    /// A dropped hit is not lost: its instruction has not executed, so the vCPU hits again when it runs, if the
    /// breakpoint is there by then.
    fn keep_pending(&self, tables: &Tables, actions: &[ResumeAction]) -> bool {
        let runs = |id: VcpuId| actions.get(id.0 as usize).is_some_and(|action| *action != ResumeAction::Stay);
        let holds = |event: &StopEvent| match event.reason {
            StopReason::HardwareBreakpoint(at) => tables.hardware.contains(&at) && self.is_at(event.vcpu, at.0),
            StopReason::SoftwareBreakpoint(at) => {
                self.is_at(event.vcpu, at.0) && self.software_at(event.vcpu).is_some()
            }
            StopReason::Watchpoint { kind, address } => {
                tables.watches.iter().any(|watch| watch.kind == kind && watch.covers(address))
            }
            StopReason::Step | StopReason::Interrupt => false,
            StopReason::Unsupported(_) => true,
        };
        self.queue().review(runs, holds)
    }

    pub(super) fn all_stopped(&self) -> Result<(), SessionError> {
        let running = self.slots().find(|(_, slot)| slot.state() == crate::VcpuState::Running);
        running.map_or(Ok(()), |(id, _)| Err(SessionError::NotStopped(id)))
    }

    pub(super) fn pc(&self, id: VcpuId) -> Option<u64> {
        A::pc(&*self.stopped(id).ok()?).ok()
    }

    /// The addresses of a range of program counters.
    fn addresses(&self, id: VcpuId, range: &Range<u64>) -> Result<Range<u64>, SessionError> {
        let vcpu = self.stopped(id)?;
        let base = A::pc(&*vcpu).and_then(|pc| Ok(pc.wrapping_sub(vcpu.get_u64(A::PC)?)));
        let base = base.map_err(|source| SessionError::Vcpu { vcpu: id, source })?;
        let (start, end) = (range.start.wrapping_add(base), range.end.wrapping_add(base));
        // One that reaches beyond the last address is empty.
        Ok(start..end.max(start))
    }

    fn is_at(&self, id: VcpuId, pc: u64) -> bool {
        self.pc(id) == Some(pc)
    }

    /// The planted software breakpoint under a vCPU's program counter.
    fn software_at(&self, id: VcpuId) -> Option<GuestAddress> {
        let gpa = self.translate(id, Gva(self.pc(id)?)).ok()?;
        self.software().is_planted(gpa).then_some(gpa)
    }

    /// The same, if the client was told that this vCPU is there.
    fn software_under(&self, id: VcpuId) -> Option<GuestAddress> {
        let told = self.slot(id).ok()?.told()?.pc;
        if self.software().is_empty() || !self.is_at(id, told) {
            return None;
        }
        self.software_at(id)
    }

    /// What the client was told of where the vCPU is.
    pub(super) fn over(&self, plan: &Plan<A>, id: VcpuId) -> Over {
        match self.slot(id).ok().and_then(|slot| slot.told()) {
            Some(told) if !self.is_at(id, told.pc) => Over::Nothing,
            Some(told) if !told.watches.is_empty() => Over::Watches(told.watches),
            Some(told) if plan.has_breakpoint(told.pc) => Over::Breakpoint,
            _ => Over::Nothing,
        }
    }

    /// Has one vCPU execute one instruction while all others stay stopped. Answers whether it did; it does not when
    /// it stopped for something else, which is in the queue then, or when the guest was reset meanwhile.
    fn step_quietly(&self, id: VcpuId, plan: &Arc<Plan<A>>) -> Result<bool, SessionError> {
        let slot = self.slot(id)?;
        let watches = slot.told().map(|told| told.watches).unwrap_or_default();
        let over = if watches.is_empty() { Over::Breakpoint } else { Over::Watches(watches) };
        for _ in 0..PATIENCE {
            slot.release(Order::StepQuietly(over.clone()), plan.clone());
            if !slot.wait_quiet(QUIET_TIMEOUT) {
                // It waits inside the hypervisor, as for CPU_OFF; that counts as executed once it has been left.
                self.stop_all(None);
                if !slot.wait_parked(STOP_TIMEOUT) {
                    return Err(SessionError::Stuck(id));
                }
            }
            if slot.ended() == Ended::Stepped {
                return Ok(true);
            }
            if !self.queue().is_empty() || slot.told().is_none() {
                break;
            }
        }
        Ok(false)
    }
}
