//! Ranges of steps at the guest's own speed.
//!
//! A client that steps through a range wants to know when the vCPU leaves it. What happens in between matters where
//! somebody wants to stop, at an exception, and at an instruction that sees the debugger: one that looks at the interrupt
//! mask, changes the exception level, waits. So the mask stays set from one such place to the next, and a vCPU runs through
//! each stretch of plain code in between at once, with breakpoints where it can come out. What is not plain ends the cruise
//! and takes the long way.
//!
//! A stretch is what memory holds when the vCPU enters it. Another vCPU that writes a branch into it, or moves its page, at
//! that very moment can have this one run past its ends, as it can with an exclusive sequence. Slots that are left are set
//! where it is likely to come by then. Whatever else stops it says so: where the guest has changed its mask itself meanwhile,
//! what it gets back is a guess.

use super::step::{Flight, in_vectors};
use crate::arch::Arm64;
use crate::arm64::insn::{self, MAX_STRETCH, Stretch};
use crate::arm64::translate::Regime;
use crate::arm64::{BreakpointSlot, HwDebug, Pstate};
use crate::session::debugged::Debugged as _;
use crate::session::runner::{Entry, Goal, Mode, VcpuDebugger};
use crate::session::{DebugSession, SessionError};
use crate::{DebugVcpu, VcpuId};
use vm_memory::GuestAddress;

/// The smallest granule.
const PAGE: u64 = 4096;
/// Slots that a cruise needs: the vector, and the end of a stretch.
pub(super) const SLOTS: usize = 2;

/// Steps under way with interrupts masked throughout.
#[derive(Debug)]
pub(super) struct Cruise {
    /// PSTATE when it began; its interrupt mask is the guest's own until the end.
    own: Pstate,
    /// Where a fault would go.
    vector: u64,
    /// Where the vCPU is.
    pc: u64,
    /// How it translates, which plain code can't change. The tables are looked at for each stretch: other vCPUs can change them.
    regime: Option<Regime>,
}

impl Cruise {
    pub(super) fn new(own: Pstate, vector: u64, pc: u64) -> Self {
        Self { own, vector, pc, regime: None }
    }

    /// The instructions that the vCPU will execute from where it is, planted ones included, up to the end of the page.
    fn fetch<'a>(
        &mut self,
        session: &DebugSession,
        vcpu_id: VcpuId,
        vcpu: &dyn DebugVcpu,
        bytes: &'a mut [u8; 4 * MAX_STRETCH],
    ) -> Result<&'a [[u8; 4]], SessionError> {
        let regime = match self.regime {
            Some(regime) => regime,
            None => *self.regime.insert(session.regime_by(vcpu_id, vcpu)?),
        };
        let (gpa, _) = Arm64::place(&Arm64::translate(&regime, self.pc, &*session.ram)?);
        let length = bytes.len().min((PAGE - self.pc % PAGE) as usize);
        let bytes = bytes.get_mut(..length).unwrap_or_default();
        session.ram.read(GuestAddress(gpa), bytes)?;
        Ok(bytes.as_chunks().0)
    }
}

impl VcpuDebugger {
    /// Programs what comes next in a cruise. `None` when there is none, or none any more.
    pub(super) fn cruise_on(&mut self, vcpu: &dyn DebugVcpu) -> Result<Option<Entry>, SessionError> {
        let Some(cruise) = &mut self.motion.cruise else { return Ok(None) };
        let Mode::Step { goal: Goal::Leave(range), .. } = &self.mode else { return Ok(None) };
        let mut bytes = [0; 4 * MAX_STRETCH];
        let words = cruise.fetch(&self.session, self.id, vcpu, &mut bytes).unwrap_or_default();
        let words = words.iter().map(|word| u32::from_le_bytes(*word));
        let (pc, own, vector) = (cruise.pc, cruise.own, cruise.vector);
        let wanted = |at: u64| !range.contains(&at) || self.plan.has_breakpoint(at);
        let ends = self.session.caps.hw_bps.saturating_sub(1);
        let stretch = insn::stretch(pc, words.clone(), ends, wanted).and_then(|Stretch { last, mut ends }| {
            ends.push(vector);
            // Slots that are left catch most vCPUs whose code is patched just now, as a branch that becomes a NOP.
            let breakpoints = self.plan.breakpoints.iter().copied();
            let likely = [last.wrapping_add(4), range.end].into_iter().chain(breakpoints);
            for end in likely.filter(|end| *end != pc && BreakpointSlot::new(*end).is_ok()) {
                if ends.len() < self.session.caps.hw_bps && !ends.contains(&end) {
                    ends.push(end);
                }
            }
            let slots: Option<Vec<_>> = ends.iter().map(|end| BreakpointSlot::new(*end).ok()).collect();
            Some((slots?, Flight::stretch(pc, last, ends, own)))
        });
        let (breakpoints, flight) = match (stretch, words.clone().next()) {
            (Some(stretch), _) => stretch,
            (None, Some(word)) if insn::is_plain(word) => {
                let vector = BreakpointSlot::new(vector).into_iter().collect();
                (vector, Flight::single(pc, Some(insn::decode(word)), own))
            }
            _ => {
                self.end_cruise(vcpu)?;
                return Ok(None);
            }
        };
        let hw = HwDebug { breakpoints, watchpoints: self.plan.hw.watchpoints.clone() };
        self.apply(vcpu, true, flight.is_single(), &hw)?;
        self.motion.flight = Some(flight);
        Ok(Some(Entry::Run))
    }

    /// Lands a flight of a cruise at `pc` without a look at PSTATE. Answers false, with the cruise over, when it needs one.
    pub(super) fn cruise_lands(&mut self, pc: u64) -> bool {
        let Some(cruise) = &mut self.motion.cruise else { return false };
        if in_vectors(pc, cruise.vector) {
            self.motion.cruise = None;
            return false;
        }
        cruise.pc = pc;
        true
    }

    /// Gives the guest its own mask back.
    pub(super) fn end_cruise(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        let Some(cruise) = self.motion.cruise.take() else { return Ok(()) };
        self.restore_mask(vcpu, cruise.own)
    }
}
