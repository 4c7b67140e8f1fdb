//! Expressions for those who have no compiler: comparisons with a constant, and texts.

use super::bytecode::{
    CONST8, CONST64, END, EQUAL, LESS_SIGNED, LESS_UNSIGNED, LOG_NOT, PRINTF, REF8, REF16, REF32, REF64, REG, SWAP,
};
use super::{Expression, ExpressionError};

/// What is compared or printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register, by the session's number.
    Register(u16),
    /// A little-endian number in memory, by guest-virtual address.
    Memory(u64, Width),
    /// A little-endian number in memory, at the address that a register holds.
    At(u16, Width),
}

/// Length of a number in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Half,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Double,
}

/// How two 64-bit numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less, without sign.
    Below,
    /// Less or equal, without sign.
    BelowOrEqual,
    /// Greater, without sign.
    Above,
    /// Greater or equal, without sign.
    AboveOrEqual,
    /// Less, with sign.
    Less,
    /// Greater, with sign.
    Greater,
}

/// The condition that `operand` compares so with `constant`.
///
/// # Errors
///
/// [`ExpressionError::Register`].
pub fn compare(operand: Operand, comparison: Comparison, constant: u64) -> Result<Expression, ExpressionError> {
    let mut bytes = Vec::new();
    operand.push(&mut bytes);
    push_constant(constant, &mut bytes);
    bytes.extend_from_slice(match comparison {
        Comparison::Equal => &[EQUAL],
        Comparison::NotEqual => &[EQUAL, LOG_NOT],
        Comparison::Below => &[LESS_UNSIGNED],
        Comparison::BelowOrEqual => &[SWAP, LESS_UNSIGNED, LOG_NOT],
        Comparison::Above => &[SWAP, LESS_UNSIGNED],
        Comparison::AboveOrEqual => &[LESS_UNSIGNED, LOG_NOT],
        Comparison::Less => &[LESS_SIGNED],
        Comparison::Greater => &[SWAP, LESS_SIGNED],
    });
    bytes.push(END);
    Expression::condition(bytes)
}

/// The command that prints `text`, with conversions for the operands.
///
/// # Errors
///
/// [`ExpressionError::Format`], [`ExpressionError::TooLong`], [`ExpressionError::Overflow`], [`ExpressionError::Register`].
pub fn message(text: &str, operands: &[Operand]) -> Result<Expression, ExpressionError> {
    let mut bytes = Vec::new();
    for operand in operands.iter().rev() {
        operand.push(&mut bytes);
    }
    // No function and no channel.
    bytes.extend([CONST8, 0, CONST8, 0, PRINTF, u8::try_from(operands.len()).unwrap_or(u8::MAX)]);
    let too_long = ExpressionError::TooLong { length: text.len() };
    bytes.extend(u16::try_from(text.len() + 1).map_err(|_| too_long)?.to_be_bytes());
    bytes.extend(text.bytes().chain([0, END]));
    Expression::command(bytes)
}

impl Operand {
    fn push(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Register(number) => push_register(number, bytes),
            Self::Memory(address, width) => {
                push_constant(address, bytes);
                bytes.push(width.opcode());
            }
            Self::At(number, width) => {
                push_register(number, bytes);
                bytes.push(width.opcode());
            }
        }
    }
}

impl Width {
    fn opcode(self) -> u8 {
        match self {
            Self::Byte => REF8,
            Self::Half => REF16,
            Self::Word => REF32,
            Self::Double => REF64,
        }
    }
}

fn push_register(number: u16, bytes: &mut Vec<u8>) {
    bytes.push(REG);
    bytes.extend(number.to_be_bytes());
}

fn push_constant(constant: u64, bytes: &mut Vec<u8>) {
    bytes.push(CONST64);
    bytes.extend(constant.to_be_bytes());
}
