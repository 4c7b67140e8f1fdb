//! A hit with a rule, on the vCPU's own thread: stop, or pass.
//!
//! A hit that is passed counts once its instruction has executed. Until then it can be cut short, by another vCPU's stop or
//! by a save, and it hits again later; so what it changes is noted in [`Passing`] and done, or undone, when that is known.

use super::rules::Rule;
use super::runner::{Mode, VcpuDebugger};
use super::{DebugSession, SessionError};
use crate::agent::{EvalError, Machine};
use crate::arch::Arch;
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

impl<A: Arch> VcpuDebugger<A> {
    /// Whether a hit of `breakpoint` stops the VM. If not, the vCPU has to execute the instruction without hitting it.
    pub(super) fn judge(&mut self, vcpu: &dyn DebugVcpu<A>, breakpoint: Breakpoint) -> bool {
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
    pub(super) fn carry_out(&mut self, vcpu: &dyn DebugVcpu<A>, pc: Gva, planted: bool) -> Result<bool, SessionError> {
        let Ok(gpa) = self.session.translate_by(self.id, vcpu, pc) else { return Ok(false) };
        // Of two breakpoints at one place the other one has not been hit yet.
        if !planted && self.session.software().is_planted(gpa) {
            return Ok(false);
        }
        let Some(next) = A::carry_out(self, vcpu, pc, gpa)? else { return Ok(false) };
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
        if self.passing.is_empty() && self.alone.is_none() {
            return Ok(());
        }
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

/// Whether a hit counts. A condition behind a true one is not looked at.
fn holds<A: Arch>(rule: &Rule, guest: &mut Guest<'_, A>) -> Result<bool, EvalError> {
    for condition in &rule.what.conditions {
        if condition.evaluate(guest)?.value != 0 {
            return Ok(true);
        }
    }
    Ok(rule.what.conditions.is_empty())
}

/// What the commands print. The guest was not to be stopped, so an error is printed as well.
fn execute<A: Arch>(rule: &Rule, guest: &mut Guest<'_, A>, breakpoint: Breakpoint) -> String {
    let texts = rule.what.commands.iter().map(|command| match command.evaluate(guest) {
        Ok(outcome) => outcome.text,
        Err(error) => format!("The message of the {breakpoint} can't be printed: {error}\n"),
    });
    texts.collect()
}

/// A vCPU and guest memory, for expressions on the vCPU's own thread.
struct Guest<'a, A: Arch> {
    session: &'a DebugSession<A>,
    id: VcpuId,
    vcpu: &'a dyn DebugVcpu<A>,
    regime: Option<A::Regime>,
    /// The virtual page that was translated last, and where it is.
    page: Option<(u64, GuestAddress)>,
}

impl<A: Arch> Guest<'_, A> {
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
        let base = GuestAddress(A::place(&A::translate(&regime, page, self.session.ram())?).0);
        self.page = Some((page, base));
        Ok(GuestAddress(base.0 + offset))
    }
}

impl<A: Arch> Machine for Guest<'_, A> {
    fn register(&mut self, number: u16) -> Result<u64, EvalError> {
        let unreadable = |reason: String| EvalError::Register { number, reason };
        match A::expression_register(self.vcpu, number) {
            Some(value) => value.map_err(|error| unreadable(error.to_string())),
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

impl<A: Arch> DebugSession<A> {
    fn ram(&self) -> &dyn GuestRam {
        &*self.ram
    }
}
