//! The breakpoints and watchpoints of a session, and the immutable plan that vCPUs run by.

use super::SessionError;
use super::ahead::Ahead;
use super::debugged::Slots;
use super::restore::Restored;
use super::rules::Rules;
use crate::arch::Arch;
use crate::{Breakpoint, DebugCaps, Gva, VcpuId, WatchKind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// A watch as the client asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watch {
    pub(super) address: Gva,
    pub(super) length: u64,
    pub(super) kind: WatchKind,
}

impl Watch {
    pub(super) fn covers(&self, address: Gva) -> bool {
        address.0.wrapping_sub(self.address.0) < self.length
    }
}

/// What a client has inserted. Changes only while every vCPU is stopped.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// A client owns the session.
    pub(super) attached: bool,
    /// What is set up is in force: a client is attached, or was when the session was saved.
    pub(super) armed: bool,
    /// A session that was restored and is not armed.
    pub(super) restored: Option<Arc<Restored>>,
    /// How far its software breakpoints are planted, where they are while guest memory still arrives.
    pub(super) ahead: Option<Ahead>,
    /// It is armed ahead of the VMM's word, and can still be given another state: what it was armed from.
    pub(super) early: Option<Arc<Restored>>,
    /// The VM was made to wait for a client, and none has resumed it yet.
    pub(super) held: bool,
    pub(super) hardware: BTreeSet<Gva>,
    /// Those of them that this host has no slot for, so that software breakpoints stand in for them. True where the
    /// client has asked for a software breakpoint as well.
    pub(super) stand_ins: BTreeMap<Gva, bool>,
    pub(super) watches: BTreeSet<Watch>,
    /// What becomes of their hits.
    pub(super) rules: Arc<Rules>,
    /// The vCPU that the client has selected.
    pub(super) selected: Option<VcpuId>,
    /// When all vCPUs that were to go were let go last.
    pub(super) all_went: Option<Instant>,
}

impl Tables {
    pub(super) fn insert_hardware<A: Arch>(&mut self, address: Gva, caps: &DebugCaps) -> Result<(), SessionError> {
        A::check(Breakpoint::Hardware(address))?;
        if self.hardware.contains(&address) {
            return Ok(());
        }
        if self.free::<A>(caps).breakpoints == 0 {
            return Err(SessionError::NoBreakpointSlot { available: caps.hw_bps });
        }
        self.hardware.insert(address);
        Ok(())
    }

    pub(super) fn insert_watch<A: Arch>(&mut self, new: Watch, caps: &DebugCaps) -> Result<(), SessionError> {
        let slots = A::watch_slots(new.kind, new.address.0, new.length)?;
        let used = slots_of::<A>(&self.watches);
        let missing = slots.iter().filter(|slot| !used.contains(slot)).count();
        let free = self.free::<A>(caps).watches;
        if missing > free {
            return Err(SessionError::NoWatchpointSlot { needed: slots.len(), free, available: caps.hw_wps });
        }
        self.watches.insert(new);
        Ok(())
    }

    /// What is left of the host's slots.
    fn free<A: Arch>(&self, caps: &DebugCaps) -> Slots {
        let breakpoints = self.hardware.len() - self.stand_ins.len();
        A::free(caps, Slots { breakpoints, watches: slots_of::<A>(&self.watches).len() })
    }

    /// The plan for a free-running vCPU.
    pub(super) fn plan<A: Arch>(&self) -> Plan<A> {
        if !self.armed {
            return Plan::default();
        }
        let in_slots = self.hardware.iter().filter(|address| !self.stand_ins.contains_key(address));
        let breakpoints: Vec<_> = in_slots.map(|address| address.0).collect();
        let stand_ins = self.stand_ins.iter().filter(|(_, also_software)| !**also_software);
        Plan {
            attached: true,
            hw: A::hw(&breakpoints, &slots_of::<A>(&self.watches)),
            breakpoints,
            watches: self.watches.iter().copied().collect(),
            stand_ins: stand_ins.map(|(address, _)| *address).collect(),
            rules: self.rules.clone(),
        }
    }
}

/// The slots of watches; watches that need the very same slot share it.
fn slots_of<'a, A: Arch>(watches: impl IntoIterator<Item = &'a Watch>) -> Vec<A::WatchSlot> {
    let mut slots = Vec::new();
    for watch in watches {
        // A watch in the table was planned once, so planning it again can't fail.
        for slot in A::watch_slots(watch.kind, watch.address.0, watch.length).unwrap_or_default() {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
    }
    slots
}

/// What a vCPU is armed with while it runs. Immutable, so its thread needs no lock to look at it.
#[derive(Debug)]
pub(super) struct Plan<A: Arch> {
    /// The session is armed: debug exceptions leave the guest.
    pub(super) attached: bool,
    /// The debug registers.
    pub(super) hw: A::Hw,
    /// The breakpoints among them.
    pub(super) breakpoints: Vec<u64>,
    /// The watches behind the registers.
    pub(super) watches: Vec<Watch>,
    /// Addresses whose software breakpoint is a hardware breakpoint to the client.
    pub(super) stand_ins: Vec<Gva>,
    /// What becomes of hits.
    pub(super) rules: Arc<Rules>,
}

impl<A: Arch> Default for Plan<A> {
    fn default() -> Self {
        let (breakpoints, watches, stand_ins, rules) = (Vec::new(), Vec::new(), Vec::new(), Arc::default());
        Self { attached: false, hw: A::Hw::default(), breakpoints, watches, stand_ins, rules }
    }
}

impl<A: Arch> Plan<A> {
    pub(super) fn has_breakpoint(&self, pc: u64) -> bool {
        self.breakpoints.contains(&pc)
    }

    /// Whether the hardware breakpoint at `pc` has a rule.
    pub(super) fn has_rule(&self, pc: u64) -> bool {
        self.rules.contains_key(&Breakpoint::Hardware(Gva(pc)))
    }

    /// The slots of all watches that have none of `addresses`.
    pub(super) fn watch_slots_but(&self, addresses: &[Gva]) -> Vec<A::WatchSlot> {
        slots_of::<A>(self.watches.iter().filter(|watch| !addresses.iter().any(|address| watch.covers(*address))))
    }
}
