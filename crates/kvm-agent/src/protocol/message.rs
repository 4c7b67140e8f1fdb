//! The small messages around a request: who asks, which signal to send, how a command ended.

use std::fmt;

use super::ProtocolError;
use super::fields::{Decoder, Encoder};

/// Version of the protocol, part of the hello.
pub const VERSION: u32 = 2;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Whether the command reported success.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code that a shell would report.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code).unwrap_or(1)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A signal for a running command and its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT
    Int,
    /// SIGTERM
    Term,
    /// SIGKILL
    Kill,
}

impl Signal {
    /// Name as `kill -s` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Int => "INT",
            Self::Term => "TERM",
            Self::Kill => "KILL",
        }
    }
}

/// Payload of the hello.
#[must_use]
pub fn encode_hello(token: &str) -> Vec<u8> {
    let mut out = Encoder::default();
    out.number(VERSION);
    out.string(token);
    out.0
}

/// Version and token of a hello.
///
/// # Errors
/// [`ProtocolError::Malformed`] naming the field.
pub fn decode_hello(payload: &[u8]) -> Result<(u32, String), ProtocolError> {
    let mut input = Decoder(payload);
    let hello = (input.number("version")?, input.string("token")?);
    input.end()?;
    Ok(hello)
}

/// Payload of an exit frame.
#[must_use]
pub fn encode_exit(exit: Exit) -> Vec<u8> {
    let (kind, value) = match exit {
        Exit::Code(code) => (0, code),
        Exit::Signal(signal) => (1, signal),
    };
    let mut out = Encoder::default();
    out.number(kind);
    out.number(value.cast_unsigned());
    out.0
}

/// How a command ended, from an exit frame.
///
/// # Errors
/// [`ProtocolError::Malformed`] naming the field.
pub fn decode_exit(payload: &[u8]) -> Result<Exit, ProtocolError> {
    let mut input = Decoder(payload);
    let (kind, value) = (input.number("kind")?, input.number("value")?.cast_signed());
    input.end()?;
    match kind {
        0 => Ok(Exit::Code(value)),
        1 => Ok(Exit::Signal(value)),
        _ => Err(ProtocolError::Malformed("kind: neither code nor signal")),
    }
}

/// Payload of a signal frame.
#[must_use]
pub fn encode_signal(signal: Signal) -> Vec<u8> {
    signal.name().as_bytes().to_vec()
}

/// The signal that a signal frame asks for.
///
/// # Errors
/// [`ProtocolError::Malformed`] for any other name.
pub fn decode_signal(payload: &[u8]) -> Result<Signal, ProtocolError> {
    [Signal::Int, Signal::Term, Signal::Kill]
        .into_iter()
        .find(|signal| signal.name().as_bytes() == payload)
        .ok_or(ProtocolError::Malformed("signal: none of INT, TERM, KILL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_signals_and_hellos_survive_the_wire() {
        for exit in [Exit::Code(0), Exit::Code(101), Exit::Code(-1), Exit::Signal(9)] {
            assert_eq!(decode_exit(&encode_exit(exit)).unwrap(), exit);
        }
        for signal in [Signal::Int, Signal::Term, Signal::Kill] {
            assert_eq!(decode_signal(&encode_signal(signal)).unwrap(), signal);
        }
        assert!(decode_signal(b"HUP").is_err());
        assert_eq!(decode_hello(&encode_hello("t")).unwrap(), (VERSION, "t".to_owned()));
        assert_eq!(Exit::Signal(6).shell_code(), 134);
    }
}
