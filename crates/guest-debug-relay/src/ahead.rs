//! Read-ahead, an extension of the remote serial protocol: what a client will ask after a stop is answered in front of the stop.
//!
//! gdb's questions after a step take one round trip each, and are the same every time: the instruction at pc, the code or the
//! stack around it, the list of threads. So a relay, which has seen them after the last stop, asks for them all beforehand:
//!
//! ```text
//! -> qSupported:...;guest-debug.ahead+
//! <- ...;guest-debug.ahead+
//! -> QGuestDebug.Ahead:m@20,4;m@1f~0,40;qXfer:threads:read::0,1000
//! <- OK
//! -> vCont;s:p1.1
//! <- %guest-debug.ahead:mffff800008123458,4       what would have been asked, and, as a packet of its own,
//! <- $1f2003d5#..                                 what would have been answered
//! <- %guest-debug.ahead:...
//! <- ...
//! <- $T05...                                      the stop
//! ```
//!
//! What is wished for stays so until it is replaced, for every stop of the guest that is told while acknowledgements are off; not for the
//! answer to `?`, or to a resume that fails. `@20` is the value that
//! the stop reply has for register 0x20; `@1f~-1` is the piece of memory, as long as the read and aligned to that, that is one in
//! front of the one that register 0x1f points into. gdb reads code and stack in such pieces.
//!
//! A server that does this has promised three things. Behind each notification comes one packet, the answer, and nothing between them. The
//! thread of a stop is selected, as `Hg` would. And breakpoints that are inserted or removed do not show in memory that is read.

use std::fmt;

use crate::packet::number;

/// In `qSupported` of a client that can be answered ahead, and in the answer of a server that does it.
pub const FEATURE: &str = "guest-debug.ahead+";
/// How the packet begins that says what to answer.
pub const WISHES: &str = "QGuestDebug.Ahead:";
/// How the notification begins that has the request, in front of the packet with its answer.
pub const ANSWER: &str = "guest-debug.ahead:";
/// The most that can be wished for.
pub const MAX_WISHES: usize = 32;
/// The longest read of memory that can be wished for, in bytes.
pub const MAX_LENGTH: u64 = 1024;
/// The longest piece of the list of threads, in bytes: what gdb asks for.
pub const MAX_LIST: u64 = 4096;

/// How many pieces away from what a register points to a read still has to do with it.
const NEAR: i64 = 4;
/// The shortest read that is one of such a piece.
const SHORTEST_LINE: u64 = 16;

/// A request that changes nothing, to be answered at the next stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// `m` or `x`.
    Memory {
        /// Whether it is `x`.
        binary: bool,
        /// From where on.
        place: Place,
        /// How many bytes: 1 to [`MAX_LENGTH`].
        length: u64,
    },
    /// The list of threads from its beginning, and how many bytes of it at most, up to [`MAX_LIST`].
    Threads(u64),
    /// `p`: a register by its number.
    Register(u64),
    /// `g`: the general registers.
    Registers,
}

/// An address, or where to find it in a stop reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Known beforehand.
    Address(u64),
    /// The value of the register with this number.
    Register(u64),
    /// Of memory in pieces as long as the read, so many behind the one that the register points into.
    Line {
        /// The register's number.
        register: u64,
        /// How many pieces, -4 to 4.
        lines: i64,
    },
}

impl Wish {
    /// Reads a wish as it is in a packet, or a request of a client. `None` for what is not one, or too large.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"g" => Some(Self::Registers),
            [b'p', digits @ ..] => Some(Self::Register(number(digits)?)),
            [kind @ (b'm' | b'x'), args @ ..] => {
                let comma = args.iter().position(|byte| *byte == b',')?;
                let (place, length) = (args.get(..comma)?, number(args.get(comma + 1..)?)?);
                let place = Place::parse(place)?;
                let possible = match place {
                    Place::Line { .. } => length.is_power_of_two(),
                    _ => length > 0,
                };
                (possible && length <= MAX_LENGTH).then_some(Self::Memory { binary: *kind == b'x', place, length })
            }
            _ => {
                let length = number(text.strip_prefix(b"qXfer:threads:read::0,")?)?;
                (length <= MAX_LIST).then_some(Self::Threads(length))
            }
        }
    }

    /// Reads all wishes of a packet, behind [`WISHES`]. `None` if one of them is none, or they are too many.
    pub fn parse_all(text: &[u8]) -> Option<Vec<Self>> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        let wishes: Option<Vec<_>> = text.split(|byte| *byte == b';').take(MAX_WISHES + 1).map(Self::parse).collect();
        wishes.filter(|wishes| wishes.len() <= MAX_WISHES)
    }

    /// The request, as a client would send it after a stop with these registers. `None` if one is not among them.
    pub fn request(&self, value_of: impl Fn(u64) -> Option<u64>) -> Option<String> {
        let Self::Memory { binary, place, length } = *self else { return Some(self.to_string()) };
        let address = match place {
            Place::Address(address) => address,
            Place::Register(number) => value_of(number)?,
            Place::Line { register, lines } => line(value_of(register)?, lines, length),
        };
        Some(Self::Memory { binary, place: Place::Address(address), length }.to_string())
    }

    /// What to wish for so that a request like this one is answered after the next stop, when these are the registers of the last.
    /// More than one where it may have to do with a register or not.
    pub fn like(request: &[u8], registers: &[(u64, u64)]) -> Vec<Self> {
        let Some(wish) = Self::parse(request) else { return Vec::new() };
        let Self::Memory { binary, place: Place::Address(address), length } = wish else { return vec![wish] };
        let memory = |place| Self::Memory { binary, place, length };
        let equal: Vec<_> = registers
            .iter()
            .filter(|(_, value)| *value == address)
            .map(|(number, _)| memory(Place::Register(*number)))
            .collect();
        if !equal.is_empty() {
            return equal;
        }
        let mut likes = vec![wish];
        if length >= SHORTEST_LINE && length.is_power_of_two() && address.is_multiple_of(length) {
            for (register, value) in registers {
                let near = (-NEAR..=NEAR).find(|lines| line(*value, *lines, length) == address);
                likes.extend(near.map(|lines| memory(Place::Line { register: *register, lines })));
            }
        }
        likes
    }
}

impl Place {
    fn parse(text: &[u8]) -> Option<Self> {
        let Some(register) = text.strip_prefix(b"@") else { return number(text).map(Self::Address) };
        let Some(at) = register.iter().position(|byte| *byte == b'~') else {
            return number(register).map(Self::Register);
        };
        let lines: i64 = std::str::from_utf8(register.get(at + 1..)?).ok()?.parse().ok()?;
        let register = number(register.get(..at)?)?;
        (-NEAR..=NEAR).contains(&lines).then_some(Self::Line { register, lines })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { binary, place, length } => {
                f.write_str(if *binary { "x" } else { "m" })?;
                match place {
                    Place::Address(address) => write!(f, "{address:x}")?,
                    Place::Register(number) => write!(f, "@{number:x}")?,
                    Place::Line { register, lines } => write!(f, "@{register:x}~{lines}")?,
                }
                write!(f, ",{length:x}")
            }
            Self::Threads(length) => write!(f, "qXfer:threads:read::0,{length:x}"),
            Self::Register(number) => write!(f, "p{number:x}"),
            Self::Registers => f.write_str("g"),
        }
    }
}

/// Where a piece of memory begins that is so many behind the one with this address. The length is a power of two.
fn line(value: u64, lines: i64, length: u64) -> u64 {
    let start = value & !(length - 1);
    start.wrapping_add_signed(lines.wrapping_mul(length.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// PC and SP of arm64.
    const REGISTERS: [(u64, u64); 2] = [(0x20, 0xffff_8000_0812_3458), (0x1f, 0xffff_8000_0a00_3f30)];

    fn value_of(number: u64) -> Option<u64> {
        REGISTERS.iter().find(|(register, _)| *register == number).map(|(_, value)| *value)
    }

    #[test]
    fn a_wish_is_what_was_asked_last_time() {
        for (request, likes) in [
            ("mffff800008123458,4", "m@20,4"),
            ("xffff800008123458,4", "x@20,4"),
            // The function's beginning, which may move with pc or not.
            ("mffff8000081233c0,40", "mffff8000081233c0,40 m@20~-2,40"),
            ("mffff80000a003f40,40", "mffff80000a003f40,40 m@1f~1,40"),
            ("mffff800000000000,40", "mffff800000000000,40"),
            ("mffff800008123450,4", "mffff800008123450,4"),
            ("p3e", "p3e"),
            ("g", "g"),
            ("qXfer:threads:read::0,1000", "qXfer:threads:read::0,1000"),
            // More than one answer should hold, and what is not only a question.
            ("mffff800008123458,401", ""),
            ("mffff800008123458,0", ""),
            ("qXfer:threads:read::7,1000", ""),
            ("qXfer:threads:read::0,1001", ""),
            ("vCont;c", ""),
            ("G00", ""),
        ] {
            let wishes = Wish::like(request.as_bytes(), &REGISTERS);
            let texts: Vec<_> = wishes.iter().map(ToString::to_string).collect();
            assert_eq!(texts.join(" "), likes, "{request}");
            for (wish, text) in wishes.iter().zip(&texts) {
                assert_eq!(Wish::parse(text.as_bytes()).as_ref(), Some(wish), "{text}");
                assert_eq!(wish.request(value_of).as_deref(), Some(request), "{text}");
            }
        }
    }

    #[test]
    fn a_register_that_a_stop_does_not_have_cannot_be_followed() {
        assert_eq!(Wish::parse(b"m@21,4").unwrap().request(value_of), None);
    }

    #[test]
    fn what_is_no_wish_is_refused() {
        assert_eq!(Wish::parse_all(b""), Some(Vec::new()));
        assert_eq!(Wish::parse_all(b"g;p1f").map(|wishes| wishes.len()), Some(2));
        for text in ["g;", "m@20~5,40", "m@20~0,41", "m@20~x,40", "m@,4", "m1000", "M1000,1:00", "p", "c"] {
            assert_eq!(Wish::parse_all(text.as_bytes()), None, "{text}");
        }
        let many = |count| vec!["g"; count].join(";");
        assert!(Wish::parse_all(many(MAX_WISHES).as_bytes()).is_some());
        assert!(Wish::parse_all(many(MAX_WISHES + 1).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[mxgp@~,;0-9a-f+-]{0,24}", value: u64) {
            for wish in Wish::parse_all(text.as_bytes()).unwrap_or_default() {
                let request = wish.request(|_| Some(value)).unwrap();
                prop_assert!(!Wish::like(request.as_bytes(), &[(0x20, value)]).is_empty());
            }
        }
    }
}
