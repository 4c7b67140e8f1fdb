//! What is asked of an expression before it is kept.

use super::bytecode::{Op, decode};
use super::{ExpressionError, MAX_LENGTH, MAX_STACK, format, is_register};

/// What an expression is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Condition,
    Command,
}

/// Looks at every instruction, and follows every way that evaluation can take.
pub(super) fn verify(bytes: &[u8], purpose: Purpose) -> Result<(), ExpressionError> {
    if bytes.is_empty() {
        return Err(ExpressionError::Empty);
    }
    if bytes.len() > MAX_LENGTH {
        return Err(ExpressionError::TooLong { length: bytes.len() });
    }
    let mut instructions = vec![None; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let (op, next) = decode(bytes, at)?;
        check(&op, at, bytes, purpose)?;
        if let Some(place) = instructions.get_mut(at) {
            *place = Some((op, next));
        }
        at = next;
    }
    follow(&instructions, purpose)
}

fn check(op: &Op, at: usize, bytes: &[u8], purpose: Purpose) -> Result<(), ExpressionError> {
    match op {
        Op::Reg(number) if !is_register(*number) => Err(ExpressionError::Register { at, number: *number }),
        Op::Printf { .. } if purpose == Purpose::Condition => Err(ExpressionError::Prints { at }),
        Op::Printf { arguments, text } => {
            let text = bytes.get(text.clone()).unwrap_or_default();
            format::check(text, *arguments).map_err(|problem| ExpressionError::Format { at, problem })
        }
        _ => Ok(()),
    }
}

/// The height of the stack at each instruction that can be reached is the same by every way.
fn follow(instructions: &[Option<(Op, usize)>], purpose: Purpose) -> Result<(), ExpressionError> {
    let mut heights: Vec<Option<usize>> = vec![None; instructions.len()];
    let mut ways = vec![(0, 0, 0)];
    while let Some((from, at, height)) = ways.pop() {
        if at == instructions.len() {
            return Err(ExpressionError::NoEnd);
        }
        let Some(Some((op, next))) = instructions.get(at) else {
            return Err(ExpressionError::Jump { at: from, target: at });
        };
        match heights.get_mut(at) {
            Some(Some(known)) if *known == height => continue,
            Some(Some(known)) => return Err(ExpressionError::Heights { at, one: *known, other: height }),
            Some(place) => *place = Some(height),
            None => return Err(ExpressionError::Jump { at: from, target: at }),
        }
        let (takes, leaves) = op.effect();
        if height < takes {
            return Err(ExpressionError::Underflow { at, height, needed: takes });
        }
        let after = height - takes + leaves;
        if after > MAX_STACK {
            return Err(ExpressionError::Overflow { at });
        }
        match op {
            Op::End if purpose == Purpose::Condition && height == 0 => {
                return Err(ExpressionError::Underflow { at, height, needed: 1 });
            }
            Op::End => {}
            Op::Goto(target) => ways.push((at, jump(instructions, at, *target)?, after)),
            Op::IfGoto(target) => {
                ways.push((at, jump(instructions, at, *target)?, after));
                ways.push((at, *next, after));
            }
            _ => ways.push((at, *next, after)),
        }
    }
    Ok(())
}

/// The end of the bytes is no instruction to jump to.
fn jump(instructions: &[Option<(Op, usize)>], at: usize, target: usize) -> Result<usize, ExpressionError> {
    if target < instructions.len() { Ok(target) } else { Err(ExpressionError::Jump { at, target }) }
}
