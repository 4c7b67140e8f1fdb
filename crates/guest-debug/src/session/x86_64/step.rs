//! Single steps that execute exactly the guest's own instruction.
//!
//! KVM steps with RFLAGS.TF, and three things make that differ from what the guest would do by itself:
//!
//! * Interrupts that are pending come first. Where KVM can (`KVM_GUESTDBG_BLOCKIRQ`, Linux 5.16), it holds them back. Where it
//!   can't, RFLAGS.IF is clear during the instruction, and is made what the instruction would have left afterwards.
//! * An instruction that saves RFLAGS saves TF with them, and IF as it is then: PUSHF, SYSCALL, INT, and every fault. What it
//!   saved is put right. KVM itself keeps TF out of RFLAGS only where those are read.
//! * Going to a handler clears TF, so that the step would end only when the handler returns. Slots that are free watch for
//!   where SYSCALL or INT go to, or for the handlers of page faults and general protection, and end the step there.
//!
//! HLT would wait for an interrupt. Under a step it completes at once: a kernel's idle loop looks for work and halts again. MOV
//! to SS is stepped together with the instruction behind it, since the CPU lets nothing trap in between.

use super::fill;
use crate::arch::X86_64;
use crate::session::SessionError;
use crate::session::control::Over;
use crate::session::runner::{Entry, Mode, VcpuDebugger};
use crate::x86_64::idt::{GATE, Gate, saved_flags};
use crate::x86_64::insn::{self, CodeSize, Insn};
use crate::x86_64::{HwDebug, Reg};
use crate::{Breakpoint, DebugVcpu, Gva, StopReason};

type Vcpu<'a> = &'a dyn DebugVcpu<X86_64>;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;
/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// Both are in the second byte of RFLAGS.
const FLAGS_BYTE: u64 = 1;
/// IA32_EFER.LMA: the CPU is in long mode.
const LMA: u64 = 1 << 10;
/// `L` and `D` of a code segment, as [`Reg::CsAr`] has them.
const CS_L: u64 = 1 << 13;
const CS_D: u64 = 1 << 14;
/// The faults that nearly every instruction can raise: general protection and page fault.
const FAULTS: [u8; 2] = [14, 13];
const PAGE: u64 = 4096;

/// A step that KVM has been programmed for.
#[derive(Debug)]
pub(super) struct Flight {
    /// Where it began.
    pub(super) pc: u64,
    insn: Insn,
    /// RFLAGS before.
    rflags: u64,
    /// CPL was not above IOPL: POPF writes IF.
    privileged: bool,
    /// IF was cleared for the step.
    masked: bool,
    /// Where handlers begin that the instruction may go to.
    handlers: Vec<Handler>,
}

#[derive(Debug, Clone, Copy)]
struct Handler {
    address: u64,
    what: Way,
}

/// How the CPU got to a handler.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// SYSCALL; these bits of RFLAGS are clear then.
    Syscall { cleared: u64 },
    /// Through the IDT.
    Gate { vector: u8, software: bool, trap: bool },
}

impl Flight {
    /// Whether the vCPU is where the step ends without a trap.
    pub(super) fn ends_at(&self, pc: u64) -> bool {
        self.handlers.iter().any(|handler| handler.address == pc)
    }
}

impl VcpuDebugger<X86_64> {
    /// Programs the vCPU for one step.
    pub(super) fn begin(&mut self, vcpu: Vcpu<'_>) -> Result<Entry, SessionError> {
        let Mode::Step { over, .. } = &self.mode else { return Ok(Entry::Again) };
        let mut over = over.clone();
        let pc = self.get(vcpu, Reg::Rip)?;
        if over == Over::Nothing && self.plan.has_breakpoint(pc) {
            if self.judge(vcpu, Breakpoint::Hardware(Gva(pc))) {
                self.stop(StopReason::HardwareBreakpoint(Gva(pc)));
                return Ok(Entry::Again);
            }
            over = Over::Breakpoint;
        }
        let rflags = self.get(vcpu, Reg::Eflags)?;
        let insn = insn::decode(&self.code(vcpu, pc), self.code_size(vcpu)?);
        let cpl = self.get(vcpu, Reg::Cs)? & 3;
        let planted = !self.session.software().is_empty()
            && self
                .session
                .translate_by(self.id, vcpu, Gva(pc))
                .is_ok_and(|gpa| self.session.software().is_planted(gpa));
        if let Insn::Hlt { length } = insn
            && cpl == 0
            && !planted
        {
            let next = pc.wrapping_add(length.into());
            self.set(vcpu, Reg::Rip, next)?;
            self.step_done(vcpu, next)?;
            return Ok(Entry::Again);
        }
        let watches = if over == Over::AllWatches { Vec::new() } else { self.plan.watch_slots_but(&[]) };
        let mut hw = HwDebug::new(&watches).unwrap_or_default();
        let mut handlers = self.handlers(vcpu, insn)?;
        // At its first instruction the step would end before it began.
        handlers.retain(|handler| handler.address != pc);
        fill(&mut hw, handlers.iter().map(|handler| handler.address));
        let blocked = <X86_64 as crate::session::Debugged<X86_64>>::blocks_interrupts(&self.session.caps);
        let masked = !blocked && rflags & IF != 0;
        if masked {
            self.set(vcpu, Reg::Eflags, rflags & !IF)?;
        }
        // Behind every write of registers, which would take TF away.
        self.apply(vcpu, true, true, &hw)?;
        let privileged = cpl <= rflags >> 12 & 3;
        self.motion.flight = Some(Flight { pc, insn, rflags, privileged, masked, handlers });
        Ok(Entry::Run)
    }

    /// The step was cut short by somebody who wants the vCPU stopped.
    pub(super) fn settle(&mut self, vcpu: Vcpu<'_>) -> Result<(), SessionError> {
        self.end_if_moved(vcpu)?;
        self.unwind(vcpu)
    }

    /// Ends the step if its instruction has executed.
    pub(super) fn end_if_moved(&mut self, vcpu: Vcpu<'_>) -> Result<(), SessionError> {
        let Some(flight) = &self.motion.flight else { return Ok(()) };
        let before = flight.pc;
        let pc = self.get(vcpu, Reg::Rip)?;
        if pc == before {
            return Ok(());
        }
        self.land(vcpu, pc)?;
        self.step_done(vcpu, pc)
    }

    /// Forgets a step that did not execute, and gives IF back.
    pub(super) fn unwind(&mut self, vcpu: Vcpu<'_>) -> Result<(), SessionError> {
        let Some(flight) = self.motion.flight.take() else { return Ok(()) };
        if flight.masked {
            let now = self.get(vcpu, Reg::Eflags)?;
            self.set(vcpu, Reg::Eflags, now | IF)?;
        }
        Ok(())
    }

    /// The step has executed and the vCPU is at `pc`: makes RFLAGS, and what was saved of them, what the instruction would
    /// have left.
    pub(super) fn land(&mut self, vcpu: Vcpu<'_>, pc: u64) -> Result<(), SessionError> {
        let Some(flight) = self.motion.flight.take() else { return Ok(()) };
        let own = flight.rflags & IF;
        let handler = flight.handlers.iter().find(|handler| handler.address == pc);
        let saved = |offset: u64| -> Result<u64, SessionError> { Ok(self.get(vcpu, Reg::Rsp)?.wrapping_add(offset)) };
        // IF as it is to be, where the instruction has not written it.
        let interrupts = match (handler.map(|handler| handler.what), flight.insn) {
            (Some(Way::Syscall { cleared }), _) => {
                let r11 = self.get(vcpu, Reg::R(11))?;
                let wanted = r11 & !TF | own;
                if wanted != r11 {
                    self.set(vcpu, Reg::R(11), wanted)?;
                }
                Some(own & !cleared)
            }
            (Some(Way::Gate { vector, software, trap }), _) => {
                self.mend_saved(vcpu, saved(saved_flags(vector, software))?, own);
                Some(if trap { own } else { 0 })
            }
            (None, Insn::Pushf) => {
                self.mend_saved(vcpu, saved(0)?, own);
                Some(own)
            }
            (None, Insn::Popf) if flight.privileged => None,
            (None, Insn::Iret | Insn::Sysret | Insn::Cli | Insn::Sti) => None,
            _ => Some(own),
        };
        if let (Some(interrupts), true) = (interrupts, flight.masked) {
            let now = self.get(vcpu, Reg::Eflags)?;
            let wanted = now & !IF | interrupts;
            if wanted != now {
                self.set(vcpu, Reg::Eflags, wanted)?;
            }
        }
        Ok(())
    }

    /// Puts RFLAGS right that were saved at `address`. A stack that can't be reached has just been written to, so that can't
    /// be but for a guest that changes its page tables at the same time; then it stays as it is.
    fn mend_saved(&self, vcpu: Vcpu<'_>, address: u64, own: u64) {
        let mend = || -> Result<(), SessionError> {
            let gpa = self.session.translate_by(self.id, vcpu, Gva(address.wrapping_add(FLAGS_BYTE)))?;
            let mut byte = [0];
            self.session.ram.read(gpa, &mut byte)?;
            let wanted = byte.map(|byte| byte & !((TF >> 8) as u8) | (own >> 8) as u8);
            if wanted != byte {
                self.session.ram.write(gpa, &wanted)?;
            }
            Ok(())
        };
        let _ = mend();
    }

    /// Where the instruction may go instead of behind itself.
    fn handlers(&self, vcpu: Vcpu<'_>, insn: Insn) -> Result<Vec<Handler>, SessionError> {
        if self.get(vcpu, Reg::Efer)? & LMA == 0 {
            return Ok(Vec::new());
        }
        if insn == Insn::Syscall {
            let (address, cleared) = (self.get(vcpu, Reg::Lstar)?, self.get(vcpu, Reg::Fmask)?);
            return Ok(vec![Handler { address, what: Way::Syscall { cleared } }]);
        }
        let (vectors, software): (&[u8], _) = match &insn {
            Insn::Int { vector } => (std::slice::from_ref(vector), true),
            _ => (&FAULTS, false),
        };
        let base = self.get(vcpu, Reg::IdtBase)?;
        let handler = |&vector: &u8| {
            let mut gate = [0; GATE as usize];
            let gpa =
                self.session.translate_by(self.id, vcpu, Gva(base.wrapping_add(u64::from(vector) * GATE))).ok()?;
            self.session.ram.read(gpa, &mut gate).ok()?;
            let (low, high) = (u64::from_le_bytes(*gate.first_chunk()?), u64::from_le_bytes(*gate.last_chunk()?));
            let Gate { handler, trap } = Gate::decode(low, high)?;
            Some(Handler { address: handler, what: Way::Gate { vector, software, trap } })
        };
        Ok(vectors.iter().filter_map(handler).collect())
    }

    /// The guest's code at `pc`, as much as can be read of the longest instruction.
    fn code(&self, vcpu: Vcpu<'_>, pc: u64) -> Vec<u8> {
        let on_page = (PAGE - pc % PAGE).min(insn::MAX_LENGTH as u64);
        let mut code = Vec::new();
        for (at, length) in [(pc, on_page), (pc.wrapping_add(on_page), insn::MAX_LENGTH as u64 - on_page)] {
            let mut piece = vec![0; length as usize];
            let read = self.session.translate_by(self.id, vcpu, Gva(at));
            let read = read.and_then(|gpa| self.session.read_guest(gpa, &mut piece));
            if read.is_err() || length == 0 {
                break;
            }
            code.append(&mut piece);
        }
        code
    }

    fn code_size(&self, vcpu: Vcpu<'_>) -> Result<CodeSize, SessionError> {
        let ar = self.get(vcpu, Reg::CsAr)?;
        let long = self.get(vcpu, Reg::Efer)? & LMA != 0;
        Ok(match (long && ar & CS_L != 0, ar & CS_D != 0) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        })
    }
}
