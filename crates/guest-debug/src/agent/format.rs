//! Texts with values in them, in the manner of C's printf: what gdb's dprintf takes, but for floating point.

use super::eval::{Counted, MAX_TEXT};
use super::{EvalError, FormatError};

/// The most of a string in guest memory that is shown.
const MAX_STRING: usize = 256;
/// A read of a string does not cross such a boundary: the next page may be another or none.
const PAGE: u64 = 4096;
/// The most of a string that is read at once.
const PIECE: usize = 64;

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Value(Conversion),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversion {
    kind: u8,
    /// Bytes of the value that count: `int` unless the text says otherwise, as in C.
    size: u32,
    width: usize,
    left: bool,
    zeros: bool,
    plus: bool,
    alternate: bool,
}

/// Whether a text with its final NUL can be printed with so many values.
pub(super) fn check(text: &[u8], given: usize) -> Result<(), FormatError> {
    let Some((0, text)) = text.split_last() else { return Err(FormatError::Unterminated) };
    if text.contains(&0) {
        return Err(FormatError::Unterminated);
    }
    let mut taken = 0;
    let mut rest = text;
    while let Some((piece, behind)) = next(rest)? {
        taken += usize::from(matches!(piece, Piece::Value(_)));
        rest = behind;
    }
    if taken == given { Ok(()) } else { Err(FormatError::Arguments { taken, given }) }
}

/// Appends a text that was checked.
pub(super) fn print(
    text: &[u8],
    values: &[u64],
    machine: &mut Counted<'_>,
    out: &mut Vec<u8>,
) -> Result<(), EvalError> {
    let mut rest = text.strip_suffix(&[0]).unwrap_or(text);
    let mut values = values.iter();
    while let Ok(Some((piece, behind))) = next(rest) {
        // Whatever is longer is cut in the end.
        if out.len() > MAX_TEXT {
            break;
        }
        match piece {
            Piece::Byte(byte) => out.push(byte),
            Piece::Value(conversion) => conversion.print(values.next().copied().unwrap_or(0), machine, out)?,
        }
        rest = behind;
    }
    Ok(())
}

/// The first piece of a text without its NUL, and the text behind it.
fn next(text: &[u8]) -> Result<Option<(Piece, &[u8])>, FormatError> {
    match text {
        [] => Ok(None),
        [b'%', b'%', rest @ ..] => Ok(Some((Piece::Byte(b'%'), rest))),
        [b'%', rest @ ..] => conversion(rest).map(|(conversion, rest)| Some((Piece::Value(conversion), rest))),
        [b'\\', rest @ ..] => escape(rest).map(|(byte, rest)| Some((Piece::Byte(byte), rest))),
        [byte, rest @ ..] => Ok(Some((Piece::Byte(*byte), rest))),
    }
}

fn escape(text: &[u8]) -> Result<(u8, &[u8]), FormatError> {
    let Some((&found, rest)) = text.split_first() else { return Err(FormatError::Escape { found: 0 }) };
    let byte = match found {
        b'a' => 7,
        b'b' => 8,
        b'e' => 27,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'\\' | b'"' => found,
        b'0'..=b'7' => {
            let digits = text.iter().take(3).take_while(|digit| (b'0'..=b'7').contains(*digit));
            let length = digits.clone().count();
            let value = digits.fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0'));
            return Ok((value, text.get(length..).unwrap_or_default()));
        }
        found => return Err(FormatError::Escape { found }),
    };
    Ok((byte, rest))
}

/// What stands behind a percent sign.
fn conversion(text: &[u8]) -> Result<(Conversion, &[u8]), FormatError> {
    let mut rest = text;
    let mut take = |accept: fn(u8) -> bool| {
        let (&byte, behind) = rest.split_first()?;
        accept(byte).then(|| rest = behind)?;
        Some(byte)
    };
    let (mut left, mut zeros, mut plus, mut alternate) = (false, false, false, false);
    while let Some(flag) = take(|byte| b"-0+#' ".contains(&byte)) {
        match flag {
            b'-' => left = true,
            b'0' => zeros = true,
            b'+' => plus = true,
            b'#' => alternate = true,
            _ => {}
        }
    }
    let mut width = 0;
    while let Some(digit) = take(|byte| byte.is_ascii_digit()) {
        width = width * 10 + usize::from(digit - b'0');
        if width > MAX_TEXT {
            return Err(FormatError::Width);
        }
    }
    let mut size = 4;
    while let Some(length) = take(|byte| b"hljtz".contains(&byte)) {
        size = match (length, size) {
            (b'h', 2) => 1,
            (b'h', _) => 2,
            _ => 8,
        };
    }
    let kind = take(|byte| b"diuxXocsp".contains(&byte));
    match kind {
        Some(kind) => {
            let size = if matches!(kind, b's' | b'p') { 8 } else { size };
            Ok((Conversion { kind, size, width, left, zeros, plus, alternate }, rest))
        }
        None => Err(FormatError::Conversion { found: rest.first().copied().unwrap_or(0) }),
    }
}

impl Conversion {
    fn print(self, value: u64, machine: &mut Counted<'_>, out: &mut Vec<u8>) -> Result<(), EvalError> {
        let unused = 64 - 8 * self.size;
        let (unsigned, signed) = (value << unused >> unused, (value << unused).cast_signed() >> unused);
        let (sign, digits) = match self.kind {
            b'd' | b'i' if signed < 0 => ("-", signed.unsigned_abs().to_string()),
            b'd' | b'i' => (if self.plus { "+" } else { "" }, signed.to_string()),
            b'u' => ("", unsigned.to_string()),
            b'o' => (if self.alternate { "0" } else { "" }, format!("{unsigned:o}")),
            b'x' => (if self.alternate { "0x" } else { "" }, format!("{unsigned:x}")),
            b'X' => (if self.alternate { "0X" } else { "" }, format!("{unsigned:X}")),
            b'p' => ("0x", format!("{unsigned:x}")),
            kind => {
                let text = if kind == b'c' { vec![value as u8] } else { string(value, machine)? };
                self.pad(&text, out);
                return Ok(());
            }
        };
        let length = sign.len() + digits.len();
        if self.zeros && !self.left && length < self.width {
            let zeros = "0".repeat(self.width - length);
            out.extend(format!("{sign}{zeros}{digits}").bytes());
        } else {
            self.pad(format!("{sign}{digits}").as_bytes(), out);
        }
        Ok(())
    }

    fn pad(self, text: &[u8], out: &mut Vec<u8>) {
        let blanks = std::iter::repeat_n(b' ', self.width.saturating_sub(text.len()));
        if self.left {
            out.extend_from_slice(text);
            out.extend(blanks);
        } else {
            out.extend(blanks);
            out.extend_from_slice(text);
        }
    }
}

/// A string in guest memory, up to its NUL.
fn string(address: u64, machine: &mut Counted<'_>) -> Result<Vec<u8>, EvalError> {
    let mut text = Vec::new();
    while text.len() < MAX_STRING {
        let at = address.wrapping_add(text.len() as u64);
        let length = PIECE.min((PAGE - at % PAGE) as usize);
        let mut piece = [0; PIECE];
        let Some(piece) = piece.get_mut(..length) else { break };
        machine.read(at, piece)?;
        let end = piece.iter().position(|byte| *byte == 0);
        text.extend(piece.iter().take(end.unwrap_or(length)));
        if end.is_some() {
            return Ok(text);
        }
    }
    text.truncate(MAX_STRING);
    text.extend(b"...");
    Ok(text)
}
