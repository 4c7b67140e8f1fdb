//! Instructions of the bytecode. Operands follow the opcode, the most significant byte first.

use super::ExpressionError;
use std::ops::Range;

/// An instruction with its operands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Takes two values, leaves one.
    Binary(Binary),
    /// Takes a value, leaves one.
    Unary(Unary),
    /// Takes an address, leaves the little-endian number of so many bytes there.
    Ref(usize),
    /// Takes a value, and goes on at that byte unless it is zero.
    IfGoto(usize),
    Goto(usize),
    Const(u64),
    Reg(u16),
    End,
    Dup,
    Pop,
    Swap,
    /// Leaves a copy of the value that is so far below the top.
    Pick(usize),
    /// The top value goes below the two under it.
    Rot,
    /// Takes a function and a channel, which mean nothing here, and so many values; prints.
    Printf {
        arguments: usize,
        text: Range<usize>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    ShiftLeft,
    ShiftRightSigned,
    ShiftRightUnsigned,
    And,
    Or,
    Xor,
    Equal,
    LessSigned,
    LessUnsigned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    LogicalNot,
    Not,
    SignExtend(u8),
    ZeroExtend(u8),
}

pub(super) const LESS_SIGNED: u8 = 0x14;
pub(super) const LESS_UNSIGNED: u8 = 0x15;
pub(super) const EQUAL: u8 = 0x13;
pub(super) const LOG_NOT: u8 = 0x0e;
pub(super) const REF8: u8 = 0x17;
pub(super) const REF16: u8 = 0x18;
pub(super) const REF32: u8 = 0x19;
pub(super) const REF64: u8 = 0x1a;
pub(super) const CONST8: u8 = 0x22;
pub(super) const CONST64: u8 = 0x25;
pub(super) const REG: u8 = 0x26;
pub(super) const END: u8 = 0x27;
pub(super) const SWAP: u8 = 0x2b;
pub(super) const PRINTF: u8 = 0x34;

/// The instruction at byte `at`, and where the next one begins.
pub(super) fn decode(bytes: &[u8], at: usize) -> Result<(Op, usize), ExpressionError> {
    let mut operands = Operands { bytes, at, next: at };
    let opcode = operands.number(1)? as u8;
    let op = match opcode {
        0x02 => Op::Binary(Binary::Add),
        0x03 => Op::Binary(Binary::Sub),
        0x04 => Op::Binary(Binary::Mul),
        0x05 => Op::Binary(Binary::DivSigned),
        0x06 => Op::Binary(Binary::DivUnsigned),
        0x07 => Op::Binary(Binary::RemSigned),
        0x08 => Op::Binary(Binary::RemUnsigned),
        0x09 => Op::Binary(Binary::ShiftLeft),
        0x0a => Op::Binary(Binary::ShiftRightSigned),
        0x0b => Op::Binary(Binary::ShiftRightUnsigned),
        LOG_NOT => Op::Unary(Unary::LogicalNot),
        0x0f => Op::Binary(Binary::And),
        0x10 => Op::Binary(Binary::Or),
        0x11 => Op::Binary(Binary::Xor),
        0x12 => Op::Unary(Unary::Not),
        EQUAL => Op::Binary(Binary::Equal),
        LESS_SIGNED => Op::Binary(Binary::LessSigned),
        LESS_UNSIGNED => Op::Binary(Binary::LessUnsigned),
        0x16 => Op::Unary(Unary::SignExtend(operands.bits()?)),
        REF8 => Op::Ref(1),
        REF16 => Op::Ref(2),
        REF32 => Op::Ref(4),
        REF64 => Op::Ref(8),
        0x20 => Op::IfGoto(operands.number(2)? as usize),
        0x21 => Op::Goto(operands.number(2)? as usize),
        CONST8 => Op::Const(operands.number(1)?),
        0x23 => Op::Const(operands.number(2)?),
        0x24 => Op::Const(operands.number(4)?),
        CONST64 => Op::Const(operands.number(8)?),
        REG => Op::Reg(operands.number(2)? as u16),
        END => Op::End,
        0x28 => Op::Dup,
        0x29 => Op::Pop,
        0x2a => Op::Unary(Unary::ZeroExtend(operands.bits()?)),
        SWAP => Op::Swap,
        0x32 => Op::Pick(operands.number(1)? as usize),
        0x33 => Op::Rot,
        PRINTF => {
            let (arguments, length) = (operands.number(1)? as usize, operands.number(2)? as usize);
            Op::Printf { arguments, text: operands.skip(length)? }
        }
        opcode => return Err(ExpressionError::Opcode { at, opcode }),
    };
    Ok((op, operands.next))
}

struct Operands<'a> {
    bytes: &'a [u8],
    at: usize,
    next: usize,
}

impl Operands<'_> {
    fn skip(&mut self, length: usize) -> Result<Range<usize>, ExpressionError> {
        let range = self.next..self.next + length;
        if self.bytes.len() < range.end {
            return Err(ExpressionError::Truncated { at: self.at });
        }
        self.next = range.end;
        Ok(range)
    }

    fn number(&mut self, length: usize) -> Result<u64, ExpressionError> {
        let range = self.skip(length)?;
        let bytes = self.bytes.get(range).unwrap_or_default();
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn bits(&mut self) -> Result<u8, ExpressionError> {
        let bits = self.number(1)? as u8;
        if (1..=64).contains(&bits) { Ok(bits) } else { Err(ExpressionError::Bits { at: self.at, bits }) }
    }
}

impl Op {
    /// Values that it takes from the stack, and values that it leaves there.
    pub(super) fn effect(&self) -> (usize, usize) {
        match self {
            Self::Binary(_) => (2, 1),
            Self::Unary(_) | Self::Ref(_) => (1, 1),
            Self::IfGoto(_) | Self::Pop => (1, 0),
            Self::Goto(_) | Self::End => (0, 0),
            Self::Const(_) | Self::Reg(_) => (0, 1),
            Self::Dup => (1, 2),
            Self::Swap => (2, 2),
            Self::Pick(depth) => (depth + 1, depth + 2),
            Self::Rot => (3, 3),
            Self::Printf { arguments, .. } => (arguments + 2, 0),
        }
    }
}
