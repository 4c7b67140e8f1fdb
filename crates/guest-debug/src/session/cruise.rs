//! Ranges of steps at the speed of KVM.
//!
//! Of the instructions in a range, nearly all neither look at the interrupt mask nor can change the exception level
//! or the translation. Between those the mask simply stays set and the code page's translation stays known, so that
//! a step costs KVM_RUN and one register read. Whatever is not plain ends the cruise first and takes the long way.

use super::runner::{Entry, VcpuDebugger};
use super::step::{Flight, INTERRUPTS, in_vectors};
use super::{DebugSession, SessionError};
use crate::arm64::insn::{self, Insn};
use crate::arm64::{BreakpointSlot, HwDebug, Pstate, Reg};
use crate::{DebugVcpu, Gva, VcpuId};
use vm_memory::GuestAddress;

/// The smallest granule.
const PAGE: u64 = 4096;

/// Steps under way with interrupts masked throughout.
#[derive(Debug)]
pub(super) struct Cruise {
    /// PSTATE when it began; its interrupt mask is the guest's own until the end.
    own: Pstate,
    /// Where a fault would go.
    vector: u64,
    /// Where the vCPU is.
    pc: u64,
    /// The page that it is in, and where that is.
    code: Option<(u64, GuestAddress)>,
}

impl Cruise {
    pub(super) fn new(own: Pstate, vector: u64, pc: u64) -> Self {
        Self { own, vector, pc, code: None }
    }

    fn fetch(&mut self, session: &DebugSession, vcpu_id: VcpuId, vcpu: &dyn DebugVcpu) -> Result<u32, SessionError> {
        let (page, offset) = (self.pc & !(PAGE - 1), self.pc % PAGE);
        let base = match self.code {
            Some((known, base)) if known == page => base,
            _ => session.translate_by(vcpu_id, vcpu, Gva(page))?,
        };
        self.code = Some((page, base));
        session.fetch_physical(GuestAddress(base.0 + offset))
    }
}

/// Whether an instruction may be stepped in a cruise: it leaves the mask, the level and the translation alone.
pub(super) fn is_plain(word: u32) -> bool {
    // MSR (immediate): SPSel would move the vector (Arm ARM, C6.2 "MSR (immediate)").
    let msr_immediate = word & 0xfff8_f01f == 0xd500_401f;
    !msr_immediate && matches!(insn::decode(word), Insn::Other | Insn::Branch(_))
}

impl VcpuDebugger {
    /// Programs the next step of a cruise. `None` when there is none, or none any more.
    pub(super) fn cruise_on(&mut self, vcpu: &dyn DebugVcpu) -> Result<Option<Entry>, SessionError> {
        let Some(cruise) = &mut self.cruise else { return Ok(None) };
        let word = cruise.fetch(&self.session, self.id, vcpu).ok();
        let (pc, pstate, vector) = (cruise.pc, cruise.own, cruise.vector);
        let Some(word) = word.filter(|&word| is_plain(word)) else {
            self.end_cruise(vcpu)?;
            return Ok(None);
        };
        let watchpoints = self.plan.hw.watchpoints.clone();
        let mut hw = HwDebug { breakpoints: Vec::new(), watchpoints };
        // Of the plain instructions, only an access to an in-kernel device is emulated.
        if insn::access(word).is_some() {
            let guards = [pc.wrapping_add(4), vector].into_iter().filter(|guard| *guard != pc);
            let slots = guards.filter_map(|guard| BreakpointSlot::new(guard).ok());
            hw.breakpoints.extend(slots.take(self.session.caps.hw_bps));
        }
        self.apply(vcpu, true, true, &hw)?;
        self.flight = Some(Flight::single(pc, Some(insn::decode(word)), pstate));
        Ok(Some(Entry::Run))
    }

    /// Lands a plain step without a look at PSTATE. Answers false, with the cruise over, when it needs one.
    pub(super) fn cruise_lands(&mut self, flight: &Flight, pc: u64) -> bool {
        let Some(cruise) = &mut self.cruise else { return false };
        let expected = matches!(flight.insn, Some(Insn::Branch(_))) || pc == flight.pc.wrapping_add(4);
        if expected && !in_vectors(pc, cruise.vector) {
            cruise.pc = pc;
            return true;
        }
        self.cruise = None;
        false
    }

    /// Gives the guest its own mask back.
    pub(super) fn end_cruise(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        let Some(cruise) = self.cruise.take() else { return Ok(()) };
        let now = Pstate(self.get(vcpu, Reg::Pstate)?);
        self.write_pstate(vcpu, now, now.with_bits_of(cruise.own, INTERRUPTS | Pstate::SS))
    }
}
