//! Planting while guest memory still arrives: in a migration most of it does while the guest runs at the source, and what is
//! planted then costs the guest nothing.

use super::control::Order;
use super::restore::Restored;
use super::software::{SoftwareBreakpoints, page};
use super::table::Tables;
use super::{DebugSession, SessionError};
use crate::arch::Arch;
use crate::state::{self, StateUpdate};
use crate::{GuestRam, RamError};
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// How far the software breakpoints of a restored session are planted.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Every page with breakpoints, ascending.
    pages: Vec<u64>,
    /// Those of them where one is not planted: its instruction is not there, or nobody has looked yet.
    rest: BTreeSet<u64>,
}

impl Ahead {
    /// Nobody has looked at any page.
    pub(super) fn new<A: Arch>(software: &SoftwareBreakpoints<A>) -> Self {
        let rest: BTreeSet<_> = software.pages().collect();
        Self { pages: rest.iter().copied().collect(), rest }
    }

    /// The same pages, with nothing left to do until one is written again.
    fn all_done(&self) -> Self {
        Self { pages: self.pages.clone(), rest: BTreeSet::new() }
    }

    fn written<A: Arch>(
        &mut self,
        software: &mut SoftwareBreakpoints<A>,
        ram: &dyn GuestRam,
        address: GuestAddress,
        length: u64,
    ) -> Result<(), RamError> {
        let Some(last) = length.checked_sub(1).map(|last| address.0.saturating_add(last)) else {
            return Ok(());
        };
        let from = self.pages.partition_point(|&at| at < page(address.0));
        for &at in self.pages.iter().skip(from).take_while(|&&at| at <= last) {
            // On an error too: what was known of the page is void.
            self.rest.insert(at);
            if software.plant_page(at, ram)? {
                self.rest.remove(&at);
            }
        }
        Ok(())
    }

    /// Looks once more at the pages that are not done.
    pub(super) fn plant_rest<A: Arch>(
        &self,
        software: &mut SoftwareBreakpoints<A>,
        ram: &dyn GuestRam,
    ) -> Result<(), RamError> {
        self.rest.iter().try_for_each(|&at| software.plant_page(at, ram).map(drop))
    }
}

impl<A: Arch> DebugSession<A> {
    /// The VMM has written `length` bytes of guest memory: plants the software breakpoints of a restored session there, ahead
    /// of [`Self::arm`], which then looks only at pages where one is missing. Once called, it has to be for everything that
    /// is written until then; what was written before the first call need not be told. A breakpoint is planted only on the
    /// instruction that was saved. Does nothing in a session that is in force.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when guest memory can't be written. [`SessionError::NotStopped`] for a dormant session,
    /// [`SessionError::Frozen`].
    pub fn plant_ahead(&self, address: GuestAddress, length: u64) -> Result<(), SessionError> {
        let mut tables = self.thawed()?;
        let Tables { restored, early, ahead, .. } = &mut *tables;
        let Some(restored) = restored.as_ref().or(early.as_ref()) else { return Ok(()) };
        let mut software = self.software_mut();
        let ahead = match ahead {
            Some(ahead) => ahead,
            None => {
                self.waits_to_be_armed()?;
                *software = SoftwareBreakpoints::from_state(&restored.software);
                ahead.insert(Ahead::new(&software))
            }
        };
        Ok(ahead.written(&mut software, &*self.ram, address, length)?)
    }

    /// Arms a restored session before the vCPUs' registers are there, if it can be without them: no stop is to be told, and no
    /// software breakpoint has to stand in. Answers whether it could be. [`Self::arm`] is still to be called, and has nothing
    /// to do then; until it is, no vCPU may run, and [`Self::update`] and [`Self::plant_ahead`] work as before.
    ///
    /// # Errors
    ///
    /// As [`Self::arm`]; [`SessionError::NotStopped`] for a dormant session.
    pub fn arm_ahead(&self) -> Result<bool, SessionError> {
        let mut tables = self.thawed()?;
        let Some(restored) = tables.restored.clone() else { return Ok(tables.early.is_some()) };
        self.waits_to_be_armed()?;
        let state = &restored.beside;
        let stops = state.reported.is_some() || !state.pending.is_empty() || !state.put_aside.is_empty();
        let told = state.vcpus.iter().any(|vcpu| vcpu.told.is_some());
        if stops || told || state::fits_host::<A>(state, &self.caps)?.as_software > 0 {
            return Ok(false);
        }
        let ahead = tables.ahead.as_ref().map(Ahead::all_done);
        self.arm_now(&mut tables)?;
        tables.ahead = Some(ahead.unwrap_or_else(|| Ahead::new(&self.software())));
        tables.early = Some(restored);
        Ok(true)
    }

    /// The source's session has changed since its state was sent ahead: from now on this one has been restored from what that
    /// has become. If it has other software breakpoints than before, those that were planted ahead are taken out.
    ///
    /// # Errors
    ///
    /// [`SessionError::State`] as [`Self::from_state`], [`SessionError::InForce`] for a session that is armed, or was never
    /// restored; nothing has changed then. [`SessionError::Ram`] when an original instruction can't be put back.
    pub fn update(&self, update: StateUpdate) -> Result<(), SessionError> {
        let mut tables = self.thawed()?;
        let before = tables.restored.as_ref().or(tables.early.as_ref()).cloned().ok_or(SessionError::InForce)?;
        let StateUpdate { same_software, state } = update;
        if same_software {
            state::check_but_for_software::<A>(&state, !before.software.is_empty())?;
        } else {
            state::check_as::<A>(&state)?;
        }
        if tables.early.is_some() || self.waits_to_be_armed().is_ok() {
            state::fits_host::<A>(&state, &self.caps)?;
        }
        let mut restored = Restored::new(state.into(), self.vcpus.len())?;
        if tables.early.is_some() {
            // As if it had not been armed; its breakpoints are planted still.
            for (_, slot) in self.slots() {
                // No thread is there to be kicked.
                let _ = slot.request_stop();
            }
            let ahead = tables.ahead.take();
            *tables = Tables { ahead, ..Tables::default() };
        }
        if same_software {
            restored.software = before.software.clone();
        } else if tables.ahead.take().is_some() {
            self.software_mut().clear(&*self.ram)?;
        }
        tables.restored = Some(Arc::new(restored));
        Ok(())
    }

    /// A guest that has not started yet may be free to.
    fn waits_to_be_armed(&self) -> Result<(), SessionError> {
        match self.slots().find(|(_, slot)| slot.order() != Order::Stay) {
            Some((id, _)) => Err(SessionError::NotStopped(id)),
            None => Ok(()),
        }
    }
}
