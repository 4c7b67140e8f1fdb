//! Evaluation of a verified expression, bounded in everything.

use super::bytecode::{Binary, Op, Unary, decode};
use super::{EvalError, MAX_STACK, Machine, format};

/// Instructions that an evaluation may execute.
pub const MAX_STEPS: usize = 4096;
/// Times that an evaluation may read memory.
pub const MAX_READS: usize = 256;
/// Bytes of text that an evaluation may print; what is longer is cut, and says so.
pub const MAX_TEXT: usize = 1024;

/// What came of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The value on top of the stack at the end; 0 for an empty stack, which only a command can leave.
    pub value: u64,
    /// What was printed.
    pub text: String,
}

/// The most that is put behind a text that was cut.
const CUT: &str = "...";

pub(super) fn evaluate(bytes: &[u8], machine: &mut dyn Machine) -> Result<Outcome, EvalError> {
    let mut stack = Stack { values: Vec::with_capacity(8), at: 0 };
    let mut machine = Counted { machine, reads: 0 };
    let mut text = Vec::new();
    let mut at = 0;
    for _ in 0..MAX_STEPS {
        let (op, mut next) = decode(bytes, at).map_err(|_| EvalError::Unverified { at })?;
        stack.at = at;
        match op {
            Op::Binary(op) => {
                let (b, a) = (stack.pop()?, stack.pop()?);
                stack.push(binary(op, a, b).ok_or(EvalError::DivisionByZero { at })?)?;
            }
            Op::Unary(op) => {
                let value = stack.pop()?;
                stack.push(unary(op, value))?;
            }
            Op::Ref(length) => {
                let mut value = [0; 8];
                let address = stack.pop()?;
                let data = value.get_mut(..length).ok_or(EvalError::Unverified { at })?;
                machine.read(address, data)?;
                stack.push(u64::from_le_bytes(value))?;
            }
            Op::IfGoto(target) => {
                if stack.pop()? != 0 {
                    next = target;
                }
            }
            Op::Goto(target) => next = target,
            Op::Const(value) => stack.push(value)?,
            Op::Reg(number) => stack.push(machine.machine.register(number)?)?,
            Op::End => {
                let value = stack.values.last().copied().unwrap_or(0);
                return Ok(Outcome { value, text: cut(text) });
            }
            Op::Dup => stack.pick(0)?,
            Op::Pop => drop(stack.pop()?),
            Op::Swap => {
                let (b, a) = (stack.pop()?, stack.pop()?);
                stack.push(b)?;
                stack.push(a)?;
            }
            Op::Pick(depth) => stack.pick(depth)?,
            Op::Rot => {
                let (c, b, a) = (stack.pop()?, stack.pop()?, stack.pop()?);
                stack.push(c)?;
                stack.push(a)?;
                stack.push(b)?;
            }
            Op::Printf { arguments, text: range } => {
                // A function and a channel, for agents that have some.
                stack.pop()?;
                stack.pop()?;
                let values = (0..arguments).map(|_| stack.pop()).collect::<Result<Vec<_>, _>>()?;
                let pattern = bytes.get(range).ok_or(EvalError::Unverified { at })?;
                format::print(pattern, &values, &mut machine, &mut text)?;
            }
        }
        at = next;
    }
    Err(EvalError::Steps)
}

fn cut(mut text: Vec<u8>) -> String {
    let long = text.len() > MAX_TEXT;
    text.truncate(MAX_TEXT);
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if long {
        text.push_str(CUT);
    }
    text
}

/// A machine that is read so often and no more.
pub(super) struct Counted<'a> {
    machine: &'a mut dyn Machine,
    reads: usize,
}

impl Counted<'_> {
    pub(super) fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), EvalError> {
        self.reads += 1;
        if self.reads > MAX_READS { Err(EvalError::Reads) } else { self.machine.read(address, data) }
    }
}

/// The verification has excluded what is looked for here; a mistake in it must not become a panic in a VMM.
struct Stack {
    values: Vec<u64>,
    at: usize,
}

impl Stack {
    fn pop(&mut self) -> Result<u64, EvalError> {
        self.values.pop().ok_or(EvalError::Unverified { at: self.at })
    }

    fn push(&mut self, value: u64) -> Result<(), EvalError> {
        if self.values.len() >= MAX_STACK {
            return Err(EvalError::Unverified { at: self.at });
        }
        self.values.push(value);
        Ok(())
    }

    fn pick(&mut self, depth: usize) -> Result<(), EvalError> {
        let value = self.values.iter().rev().nth(depth).copied().ok_or(EvalError::Unverified { at: self.at })?;
        self.push(value)
    }
}

/// `None` for a division by zero.
fn binary(op: Binary, a: u64, b: u64) -> Option<u64> {
    let (signed_a, signed_b) = (a.cast_signed(), b.cast_signed());
    // A shift by the width of a value or more leaves what shifting bit by bit does.
    let shift = u32::try_from(b).unwrap_or(u32::MAX);
    Some(match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::DivSigned if b == 0 => return None,
        Binary::DivSigned => signed_a.wrapping_div(signed_b).cast_unsigned(),
        Binary::DivUnsigned => a.checked_div(b)?,
        Binary::RemSigned if b == 0 => return None,
        Binary::RemSigned => signed_a.wrapping_rem(signed_b).cast_unsigned(),
        Binary::RemUnsigned => a.checked_rem(b)?,
        Binary::ShiftLeft => a.checked_shl(shift).unwrap_or(0),
        Binary::ShiftRightSigned => (signed_a >> shift.min(63)).cast_unsigned(),
        Binary::ShiftRightUnsigned => a.checked_shr(shift).unwrap_or(0),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Equal => (a == b).into(),
        Binary::LessSigned => (signed_a < signed_b).into(),
        Binary::LessUnsigned => (a < b).into(),
    })
}

fn unary(op: Unary, value: u64) -> u64 {
    match op {
        Unary::LogicalNot => (value == 0).into(),
        Unary::Not => !value,
        Unary::SignExtend(bits) => {
            let unused = 64 - u32::from(bits);
            (value.wrapping_shl(unused).cast_signed() >> unused.min(63)).cast_unsigned()
        }
        Unary::ZeroExtend(bits) => {
            let unused = 64 - u32::from(bits);
            value.wrapping_shl(unused) >> unused.min(63)
        }
    }
}
