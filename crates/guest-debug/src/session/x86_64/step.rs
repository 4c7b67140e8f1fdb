//! Single steps that execute exactly the guest's own instruction.
//!
//! KVM steps with RFLAGS.TF, and four things make that differ from what the guest would do by itself:
//!
//! * Interrupts that are pending come first. Where KVM can (`KVM_GUESTDBG_BLOCKIRQ`, Linux 5.16), it holds them back. Where it
//!   can't, RFLAGS.IF is clear during the instruction, and is made what the instruction would have left afterwards.
//! * An instruction that saves RFLAGS saves TF with them, and IF as it is then: PUSHF, SYSCALL, INT, and every fault. What it
//!   saved is put right. KVM itself keeps TF out of RFLAGS only where those are read.
//! * Going to a handler clears TF, so that the step would end only when the handler returns. Slots that are free watch for
//!   where SYSCALL or INT go to, or for the handlers of page faults and general protection, and end the step there.
//! * A hypervisor below KVM may say that a step is done whose instruction has not executed: seen where reaching its memory led
//!   through that hypervisor, or through KVM. Such a step is begun again.
//!
//! A step reads what it has to know in one go ([`Context`]), and behind an instruction that can't have changed it the next step
//! of a range goes on with that: such a step costs KVM_SET_GUEST_DEBUG, which gives TF to the guest, and KVM_RUN.
//!
//! HLT would wait for an interrupt. Under a step it completes at once: a kernel's idle loop looks for work and halts again. MOV
//! to SS is stepped together with the instruction behind it, since the CPU lets nothing trap in between.

use super::context::{self, Context};
use super::fill;
use crate::arch::X86_64;
use crate::session::SessionError;
use crate::session::control::Over;
use crate::session::runner::{Entry, Mode, VcpuDebugger};
use crate::x86_64::idt::{self, Gate};
use crate::x86_64::insn::{self, Insn};
use crate::x86_64::mode::Mode as CpuMode;
use crate::x86_64::{HwDebug, Reg};
use crate::{Breakpoint, DebugVcpu, Gva, StopReason};

type Vcpu<'a> = &'a dyn DebugVcpu<X86_64>;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;
/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// Both are in the second byte of RFLAGS.
const FLAGS_BYTE: u64 = 1;
/// `B` of a stack segment, as [`Reg::SsAr`] has it: the stack pointer is ESP, and not SP.
const SS_B: u64 = 1 << 14;
/// The faults that nearly every instruction can raise: general protection and page fault.
const FAULTS: [u8; 2] = [14, 13];
/// How often a step is begun again. The longest walk of page tables to an instruction and to its operands, on two pages each, touches
/// fewer pages; and a jump to itself, which looks the same, is executed so often more.
const AGAIN: u32 = 32;

/// A step that KVM has been programmed for.
#[derive(Debug)]
pub(super) struct Flight {
    /// The vCPU before.
    context: Context,
    insn: Insn,
    /// Nothing of the context changes but pc, unless a handler is entered.
    plain: bool,
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
    /// Through a gate of the IDT in long mode.
    Gate { vector: u8, software: bool, trap: bool },
    /// Through the interrupt vector table of real mode.
    RealMode,
}

impl Flight {
    /// Where it began.
    pub(super) fn pc(&self) -> u64 {
        self.context.pc
    }

    /// Whether the vCPU is where the step ends without a trap.
    pub(super) fn ends_at(&self, pc: u64) -> bool {
        self.handlers.iter().any(|handler| handler.address == pc)
    }

    /// A handler is executed before it ends.
    pub(super) fn goes_elsewhere(&mut self) {
        self.plain = false;
    }

    /// POPF writes IF: CPL is not above IOPL.
    fn is_privileged(&self) -> bool {
        u64::from(self.context.code.cpl) <= self.context.rflags >> 12 & 3
    }
}

impl VcpuDebugger<X86_64> {
    /// Programs the vCPU for one step.
    pub(super) fn begin(&mut self, vcpu: Vcpu<'_>) -> Result<Entry, SessionError> {
        let Mode::Step { over, .. } = &self.mode else { return Ok(Entry::Again) };
        let mut over = over.clone();
        let mut context = match self.motion.known.take() {
            Some(known) => known,
            None => self.context(vcpu)?,
        };
        let pc = context.pc;
        if over == Over::Nothing && self.plan.has_breakpoint(pc) {
            if self.judge(vcpu, Breakpoint::Hardware(Gva(pc))) {
                self.stop(StopReason::HardwareBreakpoint(Gva(pc)));
                return Ok(Entry::Again);
            }
            over = Over::Breakpoint;
        }
        let code = context.fetch(&*self.session.ram, |gpa, piece| self.session.read_guest(gpa, piece).is_ok());
        let insn = insn::decode(&code, context.code.size);
        if let Insn::Hlt { length } = insn
            && context.code.cpl == 0
            && !self.is_planted(&mut context)
        {
            let next = pc.wrapping_add(length.into());
            self.set(vcpu, Reg::Rip, context.code.offset(next))?;
            self.step_done(vcpu, next)?;
            return Ok(Entry::Again);
        }
        let watches = if over == Over::AllWatches { Vec::new() } else { self.plan.watch_slots_but(&[]) };
        let mut hw = HwDebug::new(&watches).unwrap_or_default();
        let mut handlers = self.handlers(vcpu, &mut context, insn)?;
        // At its first instruction the step would end before it began.
        handlers.retain(|handler| handler.address != pc);
        let all_armed = fill(&mut hw, handlers.iter().map(|handler| handler.address)) == FAULTS.len();
        let blocked = <X86_64 as crate::session::Debugged<X86_64>>::blocks_interrupts(&self.session.caps);
        let masked = !blocked && context.rflags & IF != 0;
        if masked {
            self.set(vcpu, Reg::Eflags, context.rflags & !IF)?;
        }
        // Behind every write of registers, which would take TF away.
        self.apply(vcpu, true, true, &hw)?;
        // What a handler does is not known when it is stepped over.
        let plain = blocked && all_armed && insn::is_plain(&code, context.code.size);
        self.motion.flight = Some(Flight { context, insn, plain, masked, handlers });
        Ok(Entry::Run)
    }

    /// A breakpoint that was inserted there since has to be hit.
    fn is_planted(&self, context: &mut Context) -> bool {
        let gpa = context.place(context.pc, &*self.session.ram);
        gpa.is_some_and(|gpa| self.session.software().is_planted(gpa))
    }

    fn context(&self, vcpu: Vcpu<'_>) -> Result<Context, SessionError> {
        Context::read(vcpu).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })
    }

    /// The step was cut short by somebody who wants the vCPU stopped.
    pub(super) fn settle(&mut self, vcpu: Vcpu<'_>) -> Result<(), SessionError> {
        self.motion.known = None;
        self.end_if_moved(vcpu)?;
        self.unwind(vcpu)
    }

    /// Ends the step if its instruction has executed.
    pub(super) fn end_if_moved(&mut self, vcpu: Vcpu<'_>) -> Result<(), SessionError> {
        let Some(before) = self.motion.flight.as_ref().map(Flight::pc) else { return Ok(()) };
        let pc = self.context(vcpu)?.pc;
        if pc == before {
            return Ok(());
        }
        self.land(vcpu, pc)?;
        self.step_done(vcpu, pc)
    }

    /// Begins a step again whose instruction has not executed, though its end was told. Answers whether that was so.
    pub(super) fn again(&mut self, vcpu: Vcpu<'_>, pc: u64) -> Result<bool, SessionError> {
        let Some(flight) = &self.motion.flight else { return Ok(false) };
        let before = flight.context.counters;
        if pc != flight.pc() || self.motion.again == AGAIN || self.context(vcpu)?.counters != before {
            return Ok(false);
        }
        self.unwind(vcpu)?;
        self.motion.again += 1;
        Ok(true)
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
    /// have left. Answers what is known of the vCPU now, if that needs no look at it.
    pub(super) fn land(&mut self, vcpu: Vcpu<'_>, pc: u64) -> Result<Option<Context>, SessionError> {
        self.motion.again = 0;
        let Some(flight) = self.motion.flight.take() else { return Ok(None) };
        let own = flight.context.rflags & IF;
        let handler = flight.handlers.iter().find(|handler| handler.address == pc);
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
                let offset = idt::saved_flags(vector, software);
                self.mend_saved(vcpu, CpuMode::Bits64, offset, own)?;
                Some(if trap { own } else { 0 })
            }
            (Some(Way::RealMode), _) => {
                self.mend_saved(vcpu, CpuMode::Real, idt::REAL_MODE_FLAGS, own)?;
                Some(0)
            }
            (None, Insn::Pushf) => {
                self.mend_saved(vcpu, flight.context.code.mode, 0, own)?;
                Some(own)
            }
            (None, Insn::Popf) if flight.is_privileged() => None,
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
        let known = flight.plain && handler.is_none();
        Ok(known.then(|| flight.context.moved_to(pc)))
    }

    /// Puts RFLAGS right that were saved `offset` bytes above the top of the stack. A stack that can't be reached has just
    /// been written to, so that can't be but for a guest that changes its page tables at the same time; then it stays as it
    /// is.
    fn mend_saved(&self, vcpu: Vcpu<'_>, mode: CpuMode, offset: u64, own: u64) -> Result<(), SessionError> {
        let top = stack_top(vcpu, mode).map_err(|source| SessionError::Vcpu { vcpu: self.id, source })?;
        let address = Gva(top.wrapping_add(offset + FLAGS_BYTE));
        let mend = || -> Result<(), SessionError> {
            let gpa = self.session.translate_by(self.id, vcpu, address)?;
            let mut byte = [0];
            self.session.ram.read(gpa, &mut byte)?;
            let wanted = byte.map(|byte| byte & !((TF >> 8) as u8) | (own >> 8) as u8);
            if wanted != byte {
                self.session.ram.write(gpa, &wanted)?;
            }
            Ok(())
        };
        let _ = mend();
        Ok(())
    }

    /// Where the instruction may go instead of behind itself.
    fn handlers(&self, vcpu: Vcpu<'_>, context: &mut Context, insn: Insn) -> Result<Vec<Handler>, SessionError> {
        let (vectors, software): (&[u8], _) = match &insn {
            Insn::Int { vector } => (std::slice::from_ref(vector), true),
            _ => (&FAULTS, false),
        };
        Ok(match context.code.mode {
            CpuMode::Bits64 if insn == Insn::Syscall => {
                let (address, cleared) = (self.get(vcpu, Reg::Lstar)?, self.get(vcpu, Reg::Fmask)?);
                vec![Handler { address, what: Way::Syscall { cleared } }]
            }
            CpuMode::Bits64 | CpuMode::Compatibility => {
                let handlers = vectors.iter().filter_map(|&vector| {
                    let [low, high] = self.entry(context, vector)?;
                    let Gate { handler, trap } = Gate::decode(u64::from_le_bytes(low), u64::from_le_bytes(high))?;
                    Some(Handler { address: handler, what: Way::Gate { vector, software, trap } })
                });
                handlers.collect()
            }
            CpuMode::Real => {
                // There are no page faults.
                let vectors = vectors.iter().filter(|vector| software || **vector != 14);
                let handlers = vectors.filter_map(|&vector| {
                    let [entry] = self.entry(context, vector)?;
                    Some(Handler { address: idt::real_mode_handler(u32::from_le_bytes(entry)), what: Way::RealMode })
                });
                handlers.collect()
            }
            CpuMode::Virtual8086 | CpuMode::Protected => Vec::new(),
        })
    }

    /// An entry of the IDT, in `N` parts of `SIZE` bytes.
    fn entry<const N: usize, const SIZE: usize>(&self, context: &mut Context, vector: u8) -> Option<[[u8; SIZE]; N]> {
        let address = context.idt.wrapping_add(u64::from(vector) * (N * SIZE) as u64);
        let mut entry = [[0; SIZE]; N];
        let gpa = context.place(address, &*self.session.ram)?;
        self.session.ram.read(gpa, entry.as_flattened_mut()).ok()?;
        Some(entry)
    }
}

/// Linear address of the top of the stack.
fn stack_top(vcpu: Vcpu<'_>, mode: CpuMode) -> Result<u64, crate::VcpuError> {
    if mode == CpuMode::Bits64 {
        return vcpu.get_u64(Reg::Rsp);
    }
    let [rsp, base, access_rights] = context::read(vcpu, [Reg::Rsp, Reg::SsBase, Reg::SsAr])?;
    let offset = if access_rights & SS_B == 0 { rsp & u64::from(u16::MAX) } else { rsp };
    Ok(base.wrapping_add(offset) & u64::from(u32::MAX))
}
