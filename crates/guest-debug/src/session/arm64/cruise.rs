//! Ranges of steps at the speed of KVM.
//!
//! Of the instructions in a range, nearly all neither look at the interrupt mask nor can change the exception level
//! or the translation. Between those the mask simply stays set and the code page's translation stays known. Arithmetic
//! goes on to the next instruction, so that its step costs KVM_RUN and nothing else; of the others, the program counter
//! is read. A breakpoint on the vector tells when an instruction went there instead. Whatever is not plain ends the
//! cruise first and takes the long way.

use super::step::{Flight, MASK, in_vectors};
use crate::arm64::insn::{self, Insn};
use crate::arm64::{BreakpointSlot, HwDebug, Pstate, Reg, SysReg};
use crate::session::runner::{Entry, Goal, Mode, VcpuDebugger};
use crate::session::{DebugSession, SessionError};
use crate::{DebugVcpu, Gva, VcpuId};
use vm_memory::GuestAddress;

/// The smallest granule.
const PAGE: u64 = 4096;
/// Slots that a cruise needs: the vector, and what follows an access.
pub(super) const SLOTS: usize = 2;

/// Registers that software keeps a thread's identity in; reading one is never emulated. SP_EL0 is the first.
const THREAD_REGISTERS: [SysReg; 4] =
    [SysReg::new(3, 0, 4, 1, 0), SysReg::TPIDR_EL0, SysReg::TPIDRRO_EL0, SysReg::TPIDR_EL1];

/// Steps under way with interrupts masked throughout.
#[derive(Debug)]
pub(super) struct Cruise {
    /// PSTATE when it began; its interrupt mask is the guest's own until the end.
    own: Pstate,
    /// Where a fault would go.
    vector: u64,
    /// Where the vCPU is, if no instruction since `verified` has faulted.
    pc: u64,
    /// Where the vCPU was when the program counter was last read.
    verified: u64,
    /// The page that it is in, and where that is.
    code: Option<(u64, GuestAddress)>,
}

impl Cruise {
    pub(super) fn new(own: Pstate, vector: u64, pc: u64) -> Self {
        Self { own, vector, pc, verified: pc, code: None }
    }

    /// The instruction `ahead` of the current one, on the same page.
    fn fetch(
        &mut self,
        session: &DebugSession,
        vcpu_id: VcpuId,
        vcpu: &dyn DebugVcpu,
        ahead: u64,
    ) -> Result<u32, SessionError> {
        let (page, offset) = (self.pc & !(PAGE - 1), self.pc % PAGE);
        let base = match self.code {
            Some((known, base)) if known == page => base,
            _ => session.translate_by(vcpu_id, vcpu, Gva(page))?,
        };
        self.code = Some((page, base));
        session.fetch_word(GuestAddress(base.0 + offset + ahead))
    }

    fn is_last_on_page(&self) -> bool {
        self.pc % PAGE == PAGE - 4
    }
}

/// Whether an instruction may be stepped in a cruise: it leaves the mask, the level and the translation alone.
pub(super) fn is_plain(word: u32) -> bool {
    plain(word).is_some()
}

/// What an instruction is that may be stepped in a cruise.
fn plain(word: u32) -> Option<Insn> {
    // MSR (immediate): SPSel would move the vector (Arm ARM, C6.2 "MSR (immediate)").
    let msr_immediate = word & 0xfff8_f01f == 0xd500_401f;
    let insn = insn::decode(word);
    let plain = match insn {
        // How Linux finds its current task and its per-CPU data, so that kernel code is full of them.
        Insn::SystemRegister { read: true, reg, .. } => THREAD_REGISTERS.contains(&reg),
        Insn::Other | Insn::Branch(_) => !msr_immediate,
        _ => false,
    };
    plain.then_some(insn)
}

/// Whether a plain instruction goes on to the next one whatever happens: integer arithmetic, moves, NOP, and a thread's
/// identity. Pointer authentication does not, it may fault.
fn is_quick(word: u32, insn: Insn) -> bool {
    const NOP: u32 = 0xd503_201f;
    let immediate = word >> 26 & 0b111 == 0b100;
    let register = word >> 25 & 0b111 == 0b101;
    let authenticates = word & 0xffff_0000 == 0xdac1_0000;
    let identifies = matches!(insn, Insn::SystemRegister { .. });
    word == NOP || identifies || ((immediate || register) && !authenticates)
}

impl VcpuDebugger {
    /// Programs the next step of a cruise. `None` when there is none, or none any more.
    pub(super) fn cruise_on(&mut self, vcpu: &dyn DebugVcpu) -> Result<Option<Entry>, SessionError> {
        let Some(cruise) = &mut self.motion.cruise else { return Ok(None) };
        let word = cruise.fetch(&self.session, self.id, vcpu, 0).ok();
        let Some((word, insn)) = word.and_then(|word| Some((word, plain(word)?))) else {
            let supposed = cruise.pc;
            let pc = self.end_cruise(vcpu)?;
            if pc == supposed {
                return Ok(None);
            }
            self.step_done(vcpu, pc)?;
            return Ok(Some(Entry::Again));
        };
        let (pc, next, vector) = (cruise.pc, cruise.pc.wrapping_add(4), cruise.vector);
        // An access may be to a device that KVM emulates, and then KVM before Linux 6.2 executes the next instruction
        // too. That does no harm if the next one is plain and nobody wants to stop there.
        let accesses = insn::access(word).is_some();
        let guarded = accesses && {
            let follows =
                if cruise.is_last_on_page() { None } else { cruise.fetch(&self.session, self.id, vcpu, 4).ok() };
            let wanted = match &self.mode {
                Mode::Step { goal: Goal::Leave(range), .. } => !range.contains(&next),
                _ => true,
            };
            wanted || self.plan.has_breakpoint(next) || !follows.is_some_and(is_plain)
        };
        let same_page = cruise.verified & !(PAGE - 1) == pc & !(PAGE - 1);
        let mut flight = Flight::single(pc, Some(insn), cruise.own);
        flight.from = cruise.verified;
        flight.quick = same_page && is_quick(word, insn);
        flight.accesses = accesses;
        let stops = [Some(vector), guarded.then_some(next)].into_iter().flatten().filter(|stop| *stop != pc);
        let slots = stops.filter_map(|stop| BreakpointSlot::new(stop).ok());
        // As a rule nothing changes between two steps of a cruise, and then nothing is made to find that out.
        if !self.is_armed_with(slots.clone()) {
            let watchpoints = self.plan.hw.watchpoints.clone();
            self.apply(vcpu, true, true, &HwDebug { breakpoints: slots.collect(), watchpoints })?;
        }
        self.motion.flight = Some(flight);
        Ok(Some(Entry::Run))
    }

    /// Whether KVM was told last to step with these breakpoints and the plan's watches.
    fn is_armed_with(&self, breakpoints: impl Iterator<Item = BreakpointSlot>) -> bool {
        self.stepping_hw().is_some_and(|hw| {
            hw.watchpoints == self.plan.hw.watchpoints && breakpoints.eq(hw.breakpoints.iter().copied())
        })
    }

    /// Lands a step that goes on to the next instruction whatever happens, without asking the vCPU.
    pub(super) fn quick_landing(&mut self) -> Option<u64> {
        let flight = self.motion.flight.take_if(|flight| flight.quick)?;
        let next = flight.pc.wrapping_add(4);
        if let Some(cruise) = &mut self.motion.cruise {
            cruise.pc = next;
        }
        Some(next)
    }

    /// Lands a plain step at `pc` without a look at PSTATE. Answers false, with the cruise over, when it needs one.
    pub(super) fn cruise_lands(&mut self, flight: &Flight, pc: u64) -> bool {
        let Some(cruise) = &mut self.motion.cruise else { return false };
        let branched = matches!(flight.insn, Some(Insn::Branch(_)));
        // Behind an access, a second plain instruction may have executed; it may have branched too.
        if (branched || flight.accesses || pc == flight.pc.wrapping_add(4)) && !in_vectors(pc, cruise.vector) {
            cruise.pc = pc;
            cruise.verified = pc;
            return true;
        }
        self.motion.cruise = None;
        false
    }

    /// Ends a cruise that is cut short. An instruction of it may have gone elsewhere than was supposed.
    pub(super) fn halt_cruise(&mut self, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        let Some(supposed) = self.motion.cruise.as_ref().map(|cruise| cruise.pc) else { return Ok(()) };
        let pc = self.end_cruise(vcpu)?;
        if pc == supposed { Ok(()) } else { self.step_done(vcpu, pc) }
    }

    /// Gives the guest its own mask back, and answers where the vCPU really is.
    pub(super) fn end_cruise(&mut self, vcpu: &dyn DebugVcpu) -> Result<u64, SessionError> {
        let Some(cruise) = self.motion.cruise.take() else { return self.get(vcpu, Reg::Pc) };
        let pc = if cruise.verified == cruise.pc { cruise.pc } else { self.get(vcpu, Reg::Pc)? };
        let now = Pstate(self.get(vcpu, Reg::Pstate)?);
        let mut flight = Flight::single(cruise.pc, None, cruise.own);
        flight.from = cruise.verified;
        if pc != cruise.pc && self.took_exception(vcpu, &flight, pc, now)? {
            self.mend_exception(vcpu, cruise.own, now)?;
        } else {
            self.write_pstate(vcpu, now, now.with_bits_of(cruise.own, MASK | Pstate::SS))?;
        }
        Ok(pc)
    }
}
