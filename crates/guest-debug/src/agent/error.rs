//! What can be wrong with an expression, and with its evaluation.

use super::{MAX_LENGTH, MAX_READS, MAX_STACK, MAX_STEPS, MAX_TEXT};
use thiserror::Error;

/// Why an expression was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpressionError {
    /// It has no instruction.
    #[error("the expression is empty")]
    Empty,
    /// It is longer than any that is accepted.
    #[error("the expression has {length} bytes, {MAX_LENGTH} at most are accepted")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// There is no such instruction, or it has no meaning beside a vCPU: tracing, floating point.
    #[error("byte {at}: opcode {opcode:#04x} is not one that is evaluated here")]
    Opcode {
        /// Where.
        at: usize,
        /// The opcode.
        opcode: u8,
    },
    /// The bytes end inside an instruction.
    #[error("byte {at}: the expression ends inside this instruction")]
    Truncated {
        /// Where the instruction begins.
        at: usize,
    },
    /// A jump leads to no instruction.
    #[error("byte {at}: the jump to byte {target} does not lead to an instruction")]
    Jump {
        /// Where the jump is.
        at: usize,
        /// Where it leads.
        target: usize,
    },
    /// The stack has too few values for an instruction.
    #[error("byte {at}: the stack has {height} values, {needed} are needed")]
    Underflow {
        /// Where.
        at: usize,
        /// Values on the stack.
        height: usize,
        /// Values that the instruction takes.
        needed: usize,
    },
    /// The stack gets too high.
    #[error("byte {at}: the stack gets higher than {MAX_STACK} values")]
    Overflow {
        /// Where.
        at: usize,
    },
    /// Two ways to an instruction leave different numbers of values on the stack.
    #[error("byte {at}: the stack has {one} or {other} values here, by the way that was taken")]
    Heights {
        /// Where they meet.
        at: usize,
        /// The height by the one way.
        one: usize,
        /// The height by the other.
        other: usize,
    },
    /// Evaluation can run past the last instruction.
    #[error("the expression runs past its end; its last instruction must be end or goto")]
    NoEnd,
    /// There is no register of that number.
    #[error("byte {at}: register {number} can't be read by expressions")]
    Register {
        /// Where.
        at: usize,
        /// The number.
        number: u16,
    },
    /// A value can't be extended from so many bits.
    #[error("byte {at}: extends from {bits} bits, 1 to 64 are possible")]
    Bits {
        /// Where.
        at: usize,
        /// Bits asked for.
        bits: u8,
    },
    /// A condition prints.
    #[error("byte {at}: a condition can't print")]
    Prints {
        /// Where.
        at: usize,
    },
    /// A text can't be printed.
    #[error("byte {at}: {problem}")]
    Format {
        /// Where the instruction begins.
        at: usize,
        /// What is wrong with the text.
        problem: FormatError,
    },
}

/// What is wrong with a text that is to be printed.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// Its last byte is not NUL, or another one is.
    #[error("the text must end with its only NUL")]
    Unterminated,
    /// A conversion that is not one of `d i u x X o c s p %`.
    #[error("conversion %{} of the text is not one of d i u x X o c s p %", .found.escape_ascii())]
    Conversion {
        /// The byte that stands for it; NUL at the end of the text.
        found: u8,
    },
    /// A backslash with something behind it that it does not escape.
    #[error("escape \\{} of the text is not one of a b e f n r t \\ \" 0 to 7", .found.escape_ascii())]
    Escape {
        /// The byte behind the backslash; NUL at the end of the text.
        found: u8,
    },
    /// A field is wider than any text.
    #[error("a field of the text is wider than {MAX_TEXT}")]
    Width,
    /// The text takes another number of values than there are.
    #[error("the text takes {taken} values, {given} are given")]
    Arguments {
        /// Conversions in the text.
        taken: usize,
        /// Values that the instruction says there are.
        given: usize,
    },
}

/// Why an expression has no value.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvalError {
    /// A register can't be read.
    #[error("register {number} can't be read: {reason}")]
    Register {
        /// Its number.
        number: u16,
        /// What the hypervisor answered.
        reason: String,
    },
    /// Memory can't be read.
    #[error("{length} bytes at {address:#x} can't be read: {reason}")]
    Memory {
        /// Guest-virtual address.
        address: u64,
        /// How many bytes.
        length: usize,
        /// Why.
        reason: String,
    },
    /// A division by zero.
    #[error("byte {at} of the expression divides by zero")]
    DivisionByZero {
        /// Where.
        at: usize,
    },
    /// It takes too long.
    #[error("the expression executes more than {MAX_STEPS} instructions")]
    Steps,
    /// It reads too much.
    #[error("the expression reads memory more than {MAX_READS} times")]
    Reads,
    /// It does what its verification has excluded.
    #[error("byte {at} of the expression is not as it was verified")]
    Unverified {
        /// Where.
        at: usize,
    },
}
