//! How many times a second a breakpoint's condition can be false.
//!
//! KVM alone has to do two things for each hit, whoever decides about it: leave the guest at the breakpoint, and execute the
//! one instruction with the breakpoint out. An instruction for which registers are enough needs no second entry, so there
//! the share can be above 1.

use crate::Error;
use crate::floor::Bare;
use crate::payload::{BASE, Payload};
use crate::session::{Stepper, with_stepper};
use guest_debug::agent::{Comparison, Expression, Operand, Width, compare};
use guest_debug::{Breakpoint, Gva, HitRule};

/// Hits in a round.
const HITS: u64 = 1000;
const ROUNDS: usize = 5;
/// The breakpoint's instruction.
const HIT: Gva = Gva(BASE + 4);
/// The guest counts in X1, and X2 points to memory that is zero.
const X1: u8 = 1;
const X2: u8 = 2;

/// Name, hits a second, and the share of KVM's own speed.
pub(crate) fn measure() -> Result<Vec<(&'static str, f64, f64)>, Error> {
    // add x1, x1, #1; the breakpoint; b .-8
    let payload = |name, instruction| Payload::new(name, [0x9100_0421, instruction, 0x17ff_fffe]);
    // nop; str x1, [x2]
    let (simple, store) = (payload("a NOP", 0xd503_201f), payload("a store", 0xf900_0041));
    // Always looked at before the one that ends a round.
    let register = compare(Operand::Register(X1.into()), Comparison::Equal, 0)?;
    let memory = compare(Operand::At(X2.into(), Width::Double), Comparison::Equal, 1)?;
    let (hardware, software) = (Breakpoint::Hardware(HIT), Breakpoint::Software(HIT));
    let cases = [
        ("false conditions, hardware breakpoint on a NOP", &simple, hardware, &register),
        ("false conditions of memory, hardware breakpoint on a NOP", &simple, hardware, &memory),
        ("false conditions, hardware breakpoint on a store", &store, hardware, &register),
        ("false conditions, software breakpoint on a NOP", &simple, software, &register),
        ("false conditions, software breakpoint on a store", &store, software, &register),
    ];
    let figure = |(name, payload, breakpoint, condition)| {
        let (rate, ratio) = case(payload, breakpoint, condition)?;
        Ok((name, rate, ratio))
    };
    cases.into_iter().map(figure).collect()
}

/// In turns, so that both see the same machine.
fn case(payload: &Payload, breakpoint: Breakpoint, condition: &Expression) -> Result<(f64, f64), Error> {
    let bare = Bare::new(payload)?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    with_stepper(payload, |stepper| {
        stepper.insert(breakpoint)?;
        for round in 0..=ROUNDS {
            let floor = bare.pass(HIT.0, HITS)?;
            let ours = pass(stepper, breakpoint, condition)?;
            if round > 0 {
                ratios.push(floor.as_secs_f64() / ours.as_secs_f64());
                rates.push(HITS as f64 / ours.as_secs_f64());
            }
        }
        Ok(())
    })?;
    Ok((crate::median(rates), crate::median(ratios)))
}

/// Runs to the hit at which the guest has counted so far.
fn pass(stepper: &Stepper<'_>, breakpoint: Breakpoint, condition: &Expression) -> Result<std::time::Duration, Error> {
    let last = compare(Operand::Register(X1.into()), Comparison::Equal, HITS)?;
    let rule = HitRule { conditions: vec![condition.clone(), last], commands: Vec::new() };
    stepper.run_to_hit(breakpoint, rule, X1)
}
