//! Expressions that are evaluated beside the vCPU: the bytecode that gdb compiles conditions and messages to.
//!
//! An [`Expression`] is verified when it arrives: its opcodes are known, its jumps lead to instructions, its stack neither
//! runs empty nor over, and has the same height wherever two ways meet. What is left for its evaluation is bounded: steps,
//! memory reads, the length of a text. The opcodes are those of "The GDB Agent Expression Mechanism", appendix F of gdb's
//! manual, without tracing, trace state variables and floating point.
//!
//! # Registers
//!
//! Numbers are the session's own, the same on every host, since expressions are saved and moved: 0 to 30 are X0 to X30, 31
//! is the stack pointer in use, 32 the program counter and 33 PSTATE, as in gdb's description of the core. From 0x8000 on
//! a number is the 16-bit encoding of a system register ([`SysReg::encoding`]). A server whose client numbers them
//! otherwise translates with [`renumber`].
//!
//! Those of x86_64 guests are in [`crate::x86_64::Reg::expression_number`]. An expression is verified without knowing which
//! guest it is for; a number that its vCPUs have no register for is an error when it is evaluated.

mod bytecode;
mod compose;
mod error;
mod eval;
mod format;
mod verify;

pub use compose::{Comparison, Operand, Width, compare, message};
pub use error::{EvalError, ExpressionError, FormatError};
pub use eval::{MAX_READS, MAX_STEPS, MAX_TEXT, Outcome};

use crate::arm64::{Reg, SysReg};

/// The longest expression, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// Values that the stack of an expression can hold.
pub const MAX_STACK: usize = 64;

/// Number of the stack pointer in use.
pub const SP: u16 = 31;
/// Number of the program counter.
pub const PC: u16 = 32;
/// Number of PSTATE.
pub const PSTATE: u16 = 33;

/// What an expression looks at. Asked for one stopped vCPU, by whoever may.
pub trait Machine {
    /// The value of a register, by the session's number.
    ///
    /// # Errors
    ///
    /// [`EvalError::Register`] when it can't be read.
    fn register(&mut self, number: u16) -> Result<u64, EvalError>;

    /// Fills `data` with guest memory from a virtual address on.
    ///
    /// # Errors
    ///
    /// [`EvalError::Memory`] when a byte can't be read.
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), EvalError>;
}

/// A verified expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    bytes: Vec<u8>,
}

impl Expression {
    /// A condition: wherever it ends there is a value on the stack, and it prints nothing.
    ///
    /// # Errors
    ///
    /// [`ExpressionError`] with the place of the first thing that can't be so.
    pub fn condition(bytes: Vec<u8>) -> Result<Self, ExpressionError> {
        verify::verify(&bytes, verify::Purpose::Condition)?;
        Ok(Self { bytes })
    }

    /// A command: it may print, and leaves what it likes on the stack.
    ///
    /// # Errors
    ///
    /// As [`Self::condition`]; [`ExpressionError::Format`] for a text that can't be printed.
    pub fn command(bytes: Vec<u8>) -> Result<Self, ExpressionError> {
        verify::verify(&bytes, verify::Purpose::Command)?;
        Ok(Self { bytes })
    }

    /// The bytecode.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Evaluates it.
    ///
    /// # Errors
    ///
    /// [`EvalError`] for what the machine can't read, for a division by zero, and when a limit is reached.
    pub fn evaluate(&self, machine: &mut dyn Machine) -> Result<Outcome, EvalError> {
        eval::evaluate(&self.bytes, machine)
    }
}

/// Gives every register that an expression reads another number; `number` answers `None` for one that there is not.
///
/// # Errors
///
/// [`ExpressionError::Register`] for such a register, and what [`Expression::condition`] says of bytes that are no
/// instructions.
pub fn renumber(bytes: &[u8], number: impl Fn(u16) -> Option<u16>) -> Result<Vec<u8>, ExpressionError> {
    let mut renumbered = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (op, next) = bytecode::decode(bytes, at)?;
        if let bytecode::Op::Reg(theirs) = op {
            let ours = number(theirs).ok_or(ExpressionError::Register { at, number: theirs })?;
            if let Some(operand) = renumbered.get_mut(at + 1..next) {
                operand.copy_from_slice(&ours.to_be_bytes());
            }
        }
        at = next;
    }
    Ok(renumbered)
}

/// The number of a register, if expressions can read it.
pub fn number_of(reg: Reg) -> Option<u16> {
    match reg {
        Reg::X(n) if n < 31 => Some(n.into()),
        Reg::Pc => Some(PC),
        Reg::Pstate => Some(PSTATE),
        Reg::Sys(sys) => Some(sys.encoding()).filter(|number| *number >= FIRST_SYSTEM),
        reg => SPECIAL.iter().find(|(_, special)| *special == reg).map(|(sys, _)| sys.encoding()),
    }
}

/// The vCPU's register behind a number; `None` for [`SP`], which depends on PSTATE, and for what is no register.
pub(crate) fn reg_of(number: u16) -> Option<Reg> {
    match number {
        0..=30 => u8::try_from(number).ok().map(Reg::X),
        PC => Some(Reg::Pc),
        PSTATE => Some(Reg::Pstate),
        FIRST_SYSTEM.. => {
            let sys = SysReg::from_encoding(number);
            Some(SPECIAL.iter().find(|(special, _)| *special == sys).map_or(Reg::Sys(sys), |(_, reg)| *reg))
        }
        _ => None,
    }
}

/// Whether there is a register of that number.
fn is_register(number: u16) -> bool {
    number == SP || reg_of(number).is_some()
}

/// `op0` of system registers is 2 or 3.
const FIRST_SYSTEM: u16 = 0x8000;

/// System registers that a vCPU has under names of their own.
const SPECIAL: [(SysReg, Reg); 6] = [
    (SysReg::new(3, 0, 4, 1, 0), Reg::SpEl0),
    (SysReg::new(3, 4, 4, 1, 0), Reg::SpEl1),
    (SysReg::new(3, 0, 4, 0, 1), Reg::ElrEl1),
    (SysReg::new(3, 0, 4, 0, 0), Reg::SpsrEl1),
    (SysReg::new(3, 3, 4, 4, 1), Reg::Fpsr),
    (SysReg::new(3, 3, 4, 4, 0), Reg::Fpcr),
];

#[cfg(test)]
mod tests;
