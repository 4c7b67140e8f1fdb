//! Software breakpoints: instructions in guest memory, kept by physical address.
//!
//! The table is bucketed by page: one hash lookup finds the page, a page holds a bounded number of instructions, so
//! a lookup does not grow with the number of breakpoints, and a memory access visits only the pages it touches.

use super::few::Few;
use crate::arch::Arch;
use crate::state::SoftwareState;
use crate::{GuestRam, Gva, RamError};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use vm_memory::GuestAddress;

const PAGE: u64 = 4096;
/// So many reads of an instruction cost about as much as one of a page.
const FEW_READS: usize = 3;

/// What removing a breakpoint found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The original instruction is back, or there was nothing to put back.
    Restored,
    /// The guest has written over the breakpoint meanwhile; what it wrote was left alone.
    Overwritten,
}

#[derive(Debug)]
struct Planted<A: Arch> {
    original: A::Code,
    /// The virtual addresses it was asked for by; it goes when the last of them does.
    names: Few<Gva>,
    /// Whether guest memory holds our instruction, as far as the session knows.
    armed: bool,
}

/// The software breakpoints of a VM.
#[derive(Debug)]
pub(super) struct SoftwareBreakpoints<A: Arch> {
    pages: HashMap<u64, BTreeMap<u64, Planted<A>>>,
    by_name: HashMap<Gva, Few<u64>>,
    /// What is saved of them, if somebody has asked since they changed last.
    saved: OnceLock<SavedSoftware>,
}

/// Software breakpoints as they were at one time. While nothing changes, the list is the same one.
pub(super) type SavedSoftware = Arc<Vec<SoftwareState>>;

impl<A: Arch> Default for SoftwareBreakpoints<A> {
    fn default() -> Self {
        Self { pages: HashMap::new(), by_name: HashMap::new(), saved: OnceLock::new() }
    }
}

impl<A: Arch> SoftwareBreakpoints<A> {
    /// Plants a breakpoint that the client calls `name` at `gpa`. A second one at the same place only adds a name.
    pub(super) fn insert(&mut self, name: Gva, gpa: GuestAddress, ram: &dyn GuestRam) -> Result<(), RamError> {
        match self.at_mut(gpa.0) {
            Some(planted) if planted.armed => {}
            // It waits since a reboot, or is new: now it is asked for in the code that is there.
            _ => {
                let original = read_code::<A>(ram, gpa)?;
                if original == A::BREAK && self.adopt(name, gpa) {
                    // The guest has copied the page with one of ours on it.
                    return Ok(());
                }
                write_code(ram, gpa, A::BREAK.as_ref())?;
                let bucket = self.pages.entry(page(gpa.0)).or_default();
                let names = bucket.remove(&gpa.0).map(|waiting| waiting.names).unwrap_or_default();
                bucket.insert(gpa.0, Planted { original, names, armed: true });
            }
        }
        self.name(name, gpa);
        Ok(())
    }

    /// The same without a write to memory: it is planted by [`Self::plant_all`].
    pub(super) fn insert_later(&mut self, name: Gva, gpa: GuestAddress, ram: &dyn GuestRam) -> Result<(), RamError> {
        if self.at(gpa.0).is_none() {
            let original = read_code::<A>(ram, gpa)?;
            if original == A::BREAK && self.adopt(name, gpa) {
                return Ok(());
            }
            let waiting = Planted { original, names: Few::default(), armed: false };
            self.pages.entry(page(gpa.0)).or_default().insert(gpa.0, waiting);
        }
        self.name(name, gpa);
        Ok(())
    }

    /// Gives a breakpoint one more name.
    fn name(&mut self, name: Gva, gpa: GuestAddress) {
        if let Some(planted) = self.at_mut(gpa.0) {
            planted.names.insert(name);
        }
        self.by_name.entry(name).or_default().insert(gpa.0);
        self.changed();
    }

    /// Removes what the client calls `name`, wherever it was planted: the guest's address space may be another
    /// one by now.
    pub(super) fn remove(&mut self, name: Gva, ram: &dyn GuestRam) -> Result<Option<Removed>, RamError> {
        let Some(places) = self.by_name.get(&name) else { return Ok(None) };
        let places = places.as_slice().to_vec();
        let mut removed = Removed::Restored;
        self.changed();
        for gpa in places {
            let Some(planted) = self.at_mut(gpa) else { continue };
            if planted.names.as_slice().len() <= 1 {
                if planted.armed && lift(gpa, planted, ram)? == Removed::Overwritten {
                    removed = Removed::Overwritten;
                }
                self.forget(gpa);
            } else {
                planted.names.remove(name);
            }
        }
        self.by_name.remove(&name);
        Ok(Some(removed))
    }

    /// Removes every breakpoint. All of them are tried; the first error is the answer.
    pub(super) fn clear(&mut self, ram: &dyn GuestRam) -> Result<(), RamError> {
        let result = self.lift_all(ram);
        self.pages.clear();
        self.by_name.clear();
        self.changed();
        result
    }

    /// Puts every original instruction back and keeps the breakpoints for [`Self::plant_all`].
    pub(super) fn lift_all(&mut self, ram: &dyn GuestRam) -> Result<(), RamError> {
        let mut result = Ok(());
        for (&gpa, planted) in self.pages.values_mut().flatten() {
            if planted.armed
                && let Err(error) = lift(gpa, planted, ram)
            {
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Plants everything again, wherever memory holds the instruction that was there. A place that holds something
    /// else now, after a reboot for one, is another program's: it stays as it is.
    pub(super) fn plant_all(&mut self, ram: &dyn GuestRam) -> Result<(), RamError> {
        let mut code = [0; PAGE as usize];
        self.pages.iter_mut().try_for_each(|(&page, bucket)| plant_page(page, bucket, ram, &mut code).map(drop))
    }

    /// The same on one page. Answers whether all of its breakpoints are in memory now.
    pub(super) fn plant_page(&mut self, page: u64, ram: &dyn GuestRam) -> Result<bool, RamError> {
        self.pages.get_mut(&page).map_or(Ok(true), |bucket| plant_page(page, bucket, ram, &mut [0; PAGE as usize]))
    }

    /// Takes over an instruction of ours that the guest has copied, page and all, to a place that is mapped at the same
    /// virtual address now. Answers whether `name` is one of ours.
    pub(super) fn adopt(&mut self, name: Gva, gpa: GuestAddress) -> bool {
        let Some(places) = self.by_name.get(&name) else { return false };
        // The instruction below ours is a breakpoint of the guest's own, which ours has been lifted for.
        if self.at(gpa.0).is_some_and(|planted| planted.original == A::BREAK) {
            return false;
        }
        let Some(original) = places.as_slice().iter().find_map(|&place| self.at(place)).map(|planted| planted.original)
        else {
            return false;
        };
        let bucket = self.pages.entry(page(gpa.0)).or_default();
        let planted = bucket.entry(gpa.0).or_insert(Planted { original, names: Few::default(), armed: true });
        planted.names.insert(name);
        planted.original = original;
        planted.armed = true;
        self.by_name.entry(name).or_default().insert(gpa.0);
        self.changed();
        true
    }

    /// Puts the original instruction back at one place.
    pub(super) fn lift_one(&mut self, gpa: GuestAddress, ram: &dyn GuestRam) -> Result<(), RamError> {
        match self.at_mut(gpa.0) {
            Some(planted) if planted.armed => lift(gpa.0, planted, ram).map(drop),
            _ => Ok(()),
        }
    }

    /// Plants one breakpoint again after [`Self::lift_one`].
    pub(super) fn plant_one(&mut self, gpa: GuestAddress, ram: &dyn GuestRam) -> Result<(), RamError> {
        let Some(planted) = self.at_mut(gpa.0) else { return Ok(()) };
        if !planted.armed {
            let mut original = A::BREAK;
            ram.read(gpa, original.as_mut())?;
            write_code(ram, gpa, A::BREAK.as_ref())?;
            planted.armed = true;
            // The instruction that was stepped may have written here.
            if std::mem::replace(&mut planted.original, original) != original {
                self.changed();
            }
        }
        Ok(())
    }

    /// What is saved of them.
    pub(super) fn state(&self) -> Vec<SoftwareState> {
        if let Some(saved) = self.saved.get() {
            return saved.to_vec();
        }
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_unstable_by_key(|(page, _)| **page);
        let all = pages.into_iter().flat_map(|(_, bucket)| bucket).map(|(&physical, planted)| SoftwareState {
            physical,
            original: state_of(planted.original.as_ref()),
            names: planted.names.as_slice().iter().map(|name| name.0).collect(),
        });
        all.collect()
    }

    /// The same. As long as it is, it is the same allocation.
    pub(super) fn saved(&self) -> &SavedSoftware {
        self.saved.get_or_init(|| Arc::new(self.state()))
    }

    /// Whether nothing has changed since [`Self::saved`] answered with this.
    pub(super) fn is_still(&self, saved: &SavedSoftware) -> bool {
        self.saved.get().is_some_and(|now| Arc::ptr_eq(now, saved))
    }

    /// The breakpoints of a checked state, none of them planted.
    pub(super) fn from_state(list: &SavedSoftware) -> Self {
        let mut software = Self { by_name: HashMap::with_capacity(list.len()), ..Self::default() };
        let planted = |breakpoint: &SoftwareState| {
            let names = Few::from_ascending(breakpoint.names.iter().copied().map(Gva));
            (breakpoint.physical, Planted { original: code_of::<A>(&breakpoint.original), names, armed: false })
        };
        for bucket in list.chunk_by(|one, next| page(one.physical) == page(next.physical)) {
            for SoftwareState { physical, names, .. } in bucket {
                for &name in names {
                    software.by_name.entry(Gva(name)).or_default().insert(*physical);
                }
            }
            if let Some(first) = bucket.first() {
                software.pages.insert(page(first.physical), bucket.iter().map(planted).collect());
            }
        }
        software.saved = list.clone().into();
        software
    }

    /// Whether a breakpoint was asked for by this address.
    pub(super) fn has_name(&self, name: Gva) -> bool {
        self.by_name.contains_key(&name)
    }

    /// Whether our instruction is at this place.
    pub(super) fn is_planted(&self, gpa: GuestAddress) -> bool {
        self.at(gpa.0).is_some_and(|planted| planted.armed)
    }

    /// Reads guest memory as the guest wrote it, without our instructions.
    pub(super) fn read(&self, gpa: GuestAddress, data: &mut [u8], ram: &dyn GuestRam) -> Result<(), RamError> {
        ram.read(gpa, data)?;
        if self.pages.is_empty() {
            return Ok(());
        }
        for (at, planted) in self.within(gpa.0, data.len(), ram) {
            let (start, skip) = overlap(gpa.0, at);
            let original = planted.original.as_ref().iter().skip(skip);
            data.iter_mut().skip(start).zip(original).for_each(|(byte, original)| *byte = *original);
        }
        Ok(())
    }

    /// Writes guest memory for the client: what falls on a planted instruction becomes its original instruction.
    pub(super) fn write(&mut self, gpa: GuestAddress, data: &[u8], ram: &dyn GuestRam) -> Result<(), RamError> {
        let mut merged = data.to_vec();
        let mut originals = Vec::new();
        for (at, planted) in self.within(gpa.0, data.len(), ram) {
            let (start, skip) = overlap(gpa.0, at);
            let mut original = planted.original;
            let own = A::BREAK;
            let bytes = original.as_mut().iter_mut().zip(own.as_ref()).skip(skip);
            for ((byte, brk), new) in bytes.zip(merged.iter_mut().skip(start)) {
                *byte = std::mem::replace(new, *brk);
            }
            originals.push((at, original));
        }
        write_code(ram, gpa, &merged)?;
        if !originals.is_empty() {
            self.changed();
        }
        for (at, original) in originals {
            if let Some(planted) = self.at_mut(at) {
                planted.original = original;
            }
        }
        Ok(())
    }

    /// Every breakpoint: its names and place, in the order of the places.
    pub(super) fn list(&self) -> Vec<(Gva, GuestAddress, bool)> {
        let mut list: Vec<_> = self
            .pages
            .values()
            .flatten()
            .flat_map(|(&gpa, planted)| {
                planted.names.as_slice().iter().map(move |&name| (name, GuestAddress(gpa), planted.armed))
            })
            .collect();
        list.sort_by_key(|&(name, gpa, _)| (gpa.0, name));
        list
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The pages with breakpoints, in no order.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    fn changed(&mut self) {
        self.saved = OnceLock::new();
    }

    fn at(&self, gpa: u64) -> Option<&Planted<A>> {
        self.pages.get(&page(gpa))?.get(&gpa)
    }

    fn at_mut(&mut self, gpa: u64) -> Option<&mut Planted<A>> {
        self.pages.get_mut(&page(gpa))?.get_mut(&gpa)
    }

    fn forget(&mut self, gpa: u64) {
        if let Some(bucket) = self.pages.get_mut(&page(gpa)) {
            bucket.remove(&gpa);
            if bucket.is_empty() {
                self.pages.remove(&page(gpa));
            }
        }
    }

    /// Breakpoints of which a byte lies in the range and that memory really holds: the guest may have written over
    /// one, and then all of its bytes are the guest's.
    fn within<'a>(
        &'a self,
        gpa: u64,
        length: usize,
        ram: &'a dyn GuestRam,
    ) -> impl Iterator<Item = (u64, &'a Planted<A>)> + 'a {
        let first = gpa.saturating_sub(A::BREAK.as_ref().len() as u64 - 1);
        let end = gpa.saturating_add(length as u64);
        let pages = (page(first)..=page(end)).step_by(PAGE as usize);
        let visit = if self.pages.is_empty() { None } else { Some(pages) };
        visit
            .into_iter()
            .flatten()
            .filter_map(|number| self.pages.get(&number))
            .flat_map(move |bucket| bucket.range(first..end))
            .filter(|(_, planted)| planted.armed)
            .filter(move |&(&at, _)| read_code::<A>(ram, GuestAddress(at)) == Ok(A::BREAK))
            .map(|(&at, planted)| (at, planted))
    }
}

fn read_code<A: Arch>(ram: &dyn GuestRam, gpa: GuestAddress) -> Result<A::Code, RamError> {
    let mut code = A::BREAK;
    ram.read(gpa, code.as_mut())?;
    Ok(code)
}

/// An original instruction as it is saved, with zeros behind it.
fn state_of(code: &[u8]) -> [u8; 4] {
    let mut state = [0; 4];
    state.iter_mut().zip(code).for_each(|(to, from)| *to = *from);
    state
}

fn code_of<A: Arch>(state: &[u8; 4]) -> A::Code {
    let mut code = A::BREAK;
    code.as_mut().iter_mut().zip(state).for_each(|(to, from)| *to = *from);
    code
}

/// Offset into the access, and into the instruction, at which the two begin to overlap.
fn overlap(access: u64, breakpoint: u64) -> (usize, usize) {
    (breakpoint.saturating_sub(access) as usize, access.saturating_sub(breakpoint) as usize)
}

/// The page of an address.
pub(super) fn page(gpa: u64) -> u64 {
    gpa & !(PAGE - 1)
}

/// Plants what belongs to a page. Answers whether all of it is in memory now.
fn plant_page<A: Arch>(
    page: u64,
    bucket: &mut BTreeMap<u64, Planted<A>>,
    ram: &dyn GuestRam,
    code: &mut [u8; PAGE as usize],
) -> Result<bool, RamError> {
    // A page is read at once where that saves reads.
    let whole = bucket.len() > FEW_READS && ram.read(GuestAddress(page), code).is_ok();
    let mut complete = true;
    for (&gpa, planted) in bucket {
        let mut now = A::BREAK;
        let at = (gpa - page) as usize;
        let read = match code.get(at..at + now.as_ref().len()) {
            Some(bytes) if whole => {
                now.as_mut().copy_from_slice(bytes);
                true
            }
            _ => ram.read(GuestAddress(gpa), now.as_mut()).is_ok(),
        };
        // Not even what counts as armed is sure to be: memory was reloaded under it.
        planted.armed = read && now == A::BREAK;
        if !planted.armed && read && now == planted.original {
            write_code(ram, GuestAddress(gpa), A::BREAK.as_ref())?;
            planted.armed = true;
        }
        complete &= planted.armed;
    }
    Ok(complete)
}

fn lift<A: Arch>(gpa: u64, planted: &mut Planted<A>, ram: &dyn GuestRam) -> Result<Removed, RamError> {
    let removed = if read_code::<A>(ram, GuestAddress(gpa))? == A::BREAK {
        write_code(ram, GuestAddress(gpa), planted.original.as_ref())?;
        Removed::Restored
    } else {
        Removed::Overwritten
    };
    planted.armed = false;
    Ok(removed)
}

fn write_code(ram: &dyn GuestRam, gpa: GuestAddress, data: &[u8]) -> Result<(), RamError> {
    ram.write(gpa, data)?;
    ram.sync_code(gpa, data.len());
    Ok(())
}
