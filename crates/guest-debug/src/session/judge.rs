//! A hit with a rule, on the vCPU's own thread: stop, or pass.
//!
//! A hit that is passed counts once its instruction has executed. Until then it can be cut short, by another vCPU's stop or
//! by a save, and it hits again later; so what it changes is noted in [`Passing`] and done, or undone, when that is known.

use super::rules::Rule;
use super::runner::{Mode, VcpuDebugger};
use super::{DebugSession, SessionError};
use crate::agent::{self, EvalError, Machine};
use crate::arm64::insn::{self, General, Simulated};
use crate::arm64::translate::{self, Regime};
use crate::arm64::{Pstate, Reg};
use crate::{Breakpoint, DebugVcpu, GuestRam, Gva, VcpuId};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The smallest granule.
const PAGE: u64 = 4096;

/// A hit that is passed.
#[derive(Debug)]
pub(super) struct Passing {
    rule: Arc<Rule>,
    /// Whether it counts.
    hit: bool,
    /// It is one of those to be ignored.
    ignored: bool,
    text: String,
}

impl VcpuDebugger {
    /// Whether a hit of `breakpoint` stops the VM. If not, the vCPU has to execute the instruction without hitting it.
    pub(super) fn judge(&mut self, vcpu: &dyn DebugVcpu, breakpoint: Breakpoint) -> bool {
        let Some(rule) = self.plan.rules.get(&breakpoint).cloned() else { return true };
        let mut guest = Guest { session: &self.session, id: self.id, vcpu, regime: None, page: None };
        let mut passing = Passing { rule: rule.clone(), hit: false, ignored: false, text: String::new() };
        match holds(&rule, &mut guest) {
            Ok(false) => {}
            Ok(true) => {
                passing.hit = true;
                passing.ignored = rule.take_ignored();
                if !passing.ignored && rule.what.commands.is_empty() {
                    return true;
                }
                if !passing.ignored {
                    passing.text = execute(&rule, &mut guest, breakpoint);
                }
            }
            Err(error) => {
                self.session.say(format!("The condition of the {breakpoint} has no value: {error}\n"));
                return true;
            }
        }
        self.passing.push(passing);
        false
    }

    /// Carries the instruction at `pc` out from here, if registers are all that it needs; answers whether it did. That
    /// spares the step, and the others' wait for a planted instruction. `planted` says that one is known to be there.
    pub(super) fn carry_out(&mut self, vcpu: &dyn DebugVcpu, pc: Gva, planted: bool) -> Result<bool, SessionError> {
        let Ok(gpa) = self.session.translate_by(self.id, vcpu, pc) else { return Ok(false) };
        // Of two breakpoints at one place the other one has not been hit yet.
        if !planted && self.session.software().is_planted(gpa) {
            return Ok(false);
        }
        let Ok(word) = self.session.fetch_physical(gpa) else { return Ok(false) };
        let pstate = Pstate(self.get(vcpu, Reg::Pstate)?);
        let reg = |general| match general {
            General::X(n) => Reg::X(n),
            General::Sp => stack_pointer(pstate),
        };
        let read = |general| self.get(vcpu, reg(general));
        let Some(Simulated { pc: next, write }) = insn::simulate(word, pc.0, pstate, read)? else { return Ok(false) };
        if let Some((general, value)) = write {
            self.set(vcpu, reg(general), value)?;
        }
        self.write_pstate(vcpu, pstate, pstate.without(Pstate::BTYPE))?;
        self.set(vcpu, Reg::Pc, next)?;
        if matches!(self.mode, Mode::Free) {
            self.moves()?;
            self.passed()?;
        } else {
            self.step_done(vcpu, next)?;
        }
        Ok(true)
    }

    /// The instruction has executed: what was passed there counts.
    pub(super) fn passed(&mut self) -> Result<(), SessionError> {
        for Passing { rule, hit, text, .. } in std::mem::take(&mut self.passing) {
            rule.count(hit);
            if !text.is_empty() {
                self.session.say(text);
            }
        }
        self.end_alone()
    }

    /// The instruction has not executed, and what was passed there will be met again.
    pub(super) fn not_passed(&mut self) -> Result<(), SessionError> {
        for passing in std::mem::take(&mut self.passing) {
            if passing.ignored {
                passing.rule.give_ignored_back();
            }
        }
        self.end_alone()
    }
}

/// The stack pointer in use.
fn stack_pointer(pstate: Pstate) -> Reg {
    if pstate.el() == 0 || !pstate.sp_sel() { Reg::SpEl0 } else { Reg::SpEl1 }
}

/// Whether a hit counts. A condition behind a true one is not looked at.
fn holds(rule: &Rule, guest: &mut Guest<'_>) -> Result<bool, EvalError> {
    for condition in &rule.what.conditions {
        if condition.evaluate(guest)?.value != 0 {
            return Ok(true);
        }
    }
    Ok(rule.what.conditions.is_empty())
}

/// What the commands print. The guest was not to be stopped, so an error is printed as well.
fn execute(rule: &Rule, guest: &mut Guest<'_>, breakpoint: Breakpoint) -> String {
    let texts = rule.what.commands.iter().map(|command| match command.evaluate(guest) {
        Ok(outcome) => outcome.text,
        Err(error) => format!("The message of the {breakpoint} can't be printed: {error}\n"),
    });
    texts.collect()
}

/// A vCPU and guest memory, for expressions on the vCPU's own thread.
struct Guest<'a> {
    session: &'a DebugSession,
    id: VcpuId,
    vcpu: &'a dyn DebugVcpu,
    regime: Option<Regime>,
    /// The virtual page that was translated last, and where it is.
    page: Option<(u64, GuestAddress)>,
}

impl Guest<'_> {
    fn place(&mut self, address: u64) -> Result<GuestAddress, SessionError> {
        let (page, offset) = (address & !(PAGE - 1), address % PAGE);
        if let Some((known, base)) = self.page
            && known == page
        {
            return Ok(GuestAddress(base.0 + offset));
        }
        let regime = match self.regime {
            Some(regime) => regime,
            None => *self.regime.insert(self.session.regime_by(self.id, self.vcpu)?),
        };
        let base = GuestAddress(translate::translate(&regime, page, self.session.ram())?.gpa);
        self.page = Some((page, base));
        Ok(GuestAddress(base.0 + offset))
    }
}

impl Machine for Guest<'_> {
    fn register(&mut self, number: u16) -> Result<u64, EvalError> {
        let unreadable = |reason: String| EvalError::Register { number, reason };
        let get = |reg| self.vcpu.get_u64(reg).map_err(|error| unreadable(error.to_string()));
        match agent::reg_of(number) {
            Some(reg) => get(reg),
            None if number == agent::SP => {
                let pstate = Pstate(get(Reg::Pstate)?);
                get(stack_pointer(pstate))
            }
            None => Err(unreadable("there is no such register".to_owned())),
        }
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), EvalError> {
        let length = data.len();
        let unreadable = |error: SessionError| EvalError::Memory { address, length, reason: error.to_string() };
        let mut at = address;
        let mut rest = data;
        while !rest.is_empty() {
            let within = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(rest.len());
            let (piece, behind) = rest.split_at_mut(within);
            let gpa = self.place(at).map_err(unreadable)?;
            self.session.software().read(gpa, piece, self.session.ram()).map_err(|error| unreadable(error.into()))?;
            at = at.wrapping_add(within as u64);
            rest = behind;
        }
        Ok(())
    }
}

impl DebugSession {
    fn ram(&self) -> &dyn GuestRam {
        &*self.ram
    }
}
