//! Frames and their payloads.
//!
//! A frame is one byte of kind, the payload's length in four bytes (little endian) and the payload. Strings are their
//! length in four bytes and UTF-8. A connection starts with [`Kind::Hello`] and one request; what follows depends on
//! the request.

use std::error::Error;
use std::fmt;
use std::io::{self, Read, Write};

/// Version of the protocol, part of the hello.
pub const VERSION: u32 = 1;

/// Longest payload that is accepted, in bytes.
pub const MAX_PAYLOAD: u32 = 1 << 20;

/// Size in bytes of the pieces in which files and output travel.
pub const CHUNK: usize = 256 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: version and token.
    Hello = 1,
    /// Client: run a command.
    Exec = 2,
    /// Client: send a signal to the command that runs on this connection.
    Signal = 3,
    /// Client: write a file; data frames and an end frame follow.
    Put = 4,
    /// Client: read a file; the answer is data frames and an end frame.
    Get = 5,
    /// Client: size of a file.
    Stat = 6,
    /// Client: connect to a socket; after the OK frame the connection carries that socket's bytes, unframed.
    Connect = 7,
    /// Client: write a file from a piece of a disk.
    Import = 8,
    /// Agent: done.
    Ok = 16,
    /// Agent: the request failed; the payload is the reason as text.
    Error = 17,
    /// Agent: standard output of the command.
    Stdout = 18,
    /// Agent: standard error of the command.
    Stderr = 19,
    /// Agent: how the command ended.
    Exit = 20,
    /// Both: a piece of a file.
    Data = 21,
    /// Both: the file is complete.
    End = 22,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Exec,
            3 => Self::Signal,
            4 => Self::Put,
            5 => Self::Get,
            6 => Self::Stat,
            7 => Self::Connect,
            8 => Self::Import,
            16 => Self::Ok,
            17 => Self::Error,
            18 => Self::Stdout,
            19 => Self::Stderr,
            20 => Self::Exit,
            21 => Self::Data,
            22 => Self::End,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: Kind,
    /// Its payload, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Why a peer's bytes were refused.
#[derive(Debug)]
pub enum ProtocolError {
    /// The connection failed.
    Io(io::Error),
    /// A kind that this version does not know.
    UnknownKind(u8),
    /// A payload longer than [`MAX_PAYLOAD`].
    TooLong(u32),
    /// A frame that does not belong here.
    Unexpected(Kind),
    /// The named field is cut off or not what it should be.
    Malformed(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection: {error}"),
            Self::UnknownKind(byte) => write!(f, "frame of unknown kind {byte}"),
            Self::TooLong(length) => write!(f, "payload of {length} bytes, at most {MAX_PAYLOAD} are accepted"),
            Self::Unexpected(kind) => write!(f, "unexpected {kind:?} frame"),
            Self::Malformed(field) => write!(f, "malformed field: {field}"),
        }
    }
}

impl Error for ProtocolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ProtocolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes one frame.
///
/// # Errors
/// [`ProtocolError::TooLong`], or what the connection answers.
pub fn write_frame(writer: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<(), ProtocolError> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong(length));
    }
    // One write for small frames: two would cost a packet each.
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    writer.write_all(&frame)?;
    Ok(())
}

/// Reads one frame; `None` if the peer closed the connection between two frames.
///
/// # Errors
/// Any [`ProtocolError`]; the connection is of no use afterwards.
pub fn read_frame(reader: &mut impl Read) -> Result<Option<Frame>, ProtocolError> {
    let mut first = [0; 1];
    loop {
        match reader.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let kind = Kind::from_byte(first[0]).ok_or(ProtocolError::UnknownKind(first[0]))?;
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong(length));
    }
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, payload }))
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's own environment.
    pub env: Vec<(String, String)>,
}

/// A socket inside the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Path of a unix socket.
    Unix(String),
    /// Port on the host's loopback address.
    Tcp(u16),
}

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

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec(Command),
    /// Write a file, parent directories included, with these permission bits.
    Put {
        /// Absolute path inside the host.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Write a file, parent directories included, from a disk of the host.
    Import {
        /// Absolute path inside the host.
        path: String,
        /// Permission bits.
        mode: u32,
        /// The disk's device.
        device: String,
        /// Where the content starts there, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
    },
    /// Read a file.
    Get {
        /// Absolute path inside the host.
        path: String,
    },
    /// Ask for the size of a file; the answer is an OK frame with eight bytes, or an error.
    Stat {
        /// Absolute path inside the host.
        path: String,
    },
    /// Connect to a socket.
    Connect(Endpoint),
}

impl Request {
    /// The request as a frame.
    #[must_use]
    pub fn encode(&self) -> Frame {
        let mut out = Encoder::default();
        let kind = match self {
            Self::Exec(command) => {
                out.list(&command.argv);
                out.list(&command.env.iter().flat_map(|(name, value)| [name, value]).collect::<Vec<_>>());
                Kind::Exec
            }
            Self::Put { path, mode } => {
                out.string(path);
                out.number(*mode);
                Kind::Put
            }
            Self::Import { path, mode, device, offset, length } => {
                out.string(path);
                out.number(*mode);
                out.string(device);
                out.long(*offset);
                out.long(*length);
                Kind::Import
            }
            Self::Get { path } => {
                out.string(path);
                Kind::Get
            }
            Self::Stat { path } => {
                out.string(path);
                Kind::Stat
            }
            Self::Connect(Endpoint::Unix(path)) => {
                out.number(0);
                out.string(path);
                Kind::Connect
            }
            Self::Connect(Endpoint::Tcp(port)) => {
                out.number(1);
                out.number(u32::from(*port));
                Kind::Connect
            }
        };
        Frame { kind, payload: out.0 }
    }

    /// The request that a frame holds.
    ///
    /// # Errors
    /// [`ProtocolError::Unexpected`] if the frame is no request, [`ProtocolError::Malformed`] naming the field.
    pub fn decode(frame: &Frame) -> Result<Self, ProtocolError> {
        let mut input = Decoder(&frame.payload);
        let request = match frame.kind {
            Kind::Exec => {
                let argv = input.list("argv")?;
                if argv.is_empty() {
                    return Err(ProtocolError::Malformed("argv: no program"));
                }
                let env = input.list("env")?;
                if env.len() % 2 != 0 {
                    return Err(ProtocolError::Malformed("env: name without a value"));
                }
                let env = env.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
                Self::Exec(Command { argv, env })
            }
            Kind::Put => Self::Put { path: input.string("path")?, mode: input.number("mode")? },
            Kind::Import => Self::Import {
                path: input.string("path")?,
                mode: input.number("mode")?,
                device: input.string("device")?,
                offset: input.long("offset")?,
                length: input.long("length")?,
            },
            Kind::Get => Self::Get { path: input.string("path")? },
            Kind::Stat => Self::Stat { path: input.string("path")? },
            Kind::Connect => Self::Connect(match input.number("endpoint")? {
                0 => Endpoint::Unix(input.string("path")?),
                1 => Endpoint::Tcp(
                    u16::try_from(input.number("port")?).map_err(|_| ProtocolError::Malformed("port: above 65535"))?,
                ),
                _ => return Err(ProtocolError::Malformed("endpoint: neither unix nor tcp")),
            }),
            other => return Err(ProtocolError::Unexpected(other)),
        };
        input.end()?;
        Ok(request)
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

#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        // A longer string makes the frame too long, which write_frame refuses.
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
    }

    fn list<S: AsRef<str>>(&mut self, items: &[S]) {
        self.number(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            self.string(item.as_ref());
        }
    }
}

struct Decoder<'a>(&'a [u8]);

impl Decoder<'_> {
    fn take(&mut self, length: usize, field: &'static str) -> Result<&[u8], ProtocolError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(ProtocolError::Malformed(field))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn long(&mut self, field: &'static str) -> Result<u64, ProtocolError> {
        let (low, high) = (self.number(field)?, self.number(field)?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn string(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        let length = self.number(field)? as usize;
        String::from_utf8(self.take(length, field)?.to_vec()).map_err(|_| ProtocolError::Malformed(field))
    }

    fn list(&mut self, field: &'static str) -> Result<Vec<String>, ProtocolError> {
        // No capacity from the peer's number: it may be anything.
        let count = self.number(field)?;
        (0..count).map(|_| self.string(field)).collect()
    }

    fn end(&self) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError::Malformed("bytes after the last field")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        vec![
            Request::Exec(Command {
                argv: vec!["/bin/echo".into(), "two words".into(), String::new()],
                env: vec![("RUST_BACKTRACE".into(), "1".into())],
            }),
            Request::Put { path: "/tmp/a".into(), mode: 0o755 },
            Request::Import {
                path: "/tmp/b".into(),
                mode: 0o644,
                device: "/dev/vda".into(),
                offset: 5 << 32 | 1,
                length: 77,
            },
            Request::Get { path: "/proc/kallsyms".into() },
            Request::Stat { path: "/dev/kvm".into() },
            Request::Connect(Endpoint::Unix("/tmp/gdb.sock".into())),
            Request::Connect(Endpoint::Tcp(1234)),
        ]
    }

    #[test]
    fn requests_survive_the_wire() {
        for request in requests() {
            let frame = request.encode();
            let mut wire = Vec::new();
            write_frame(&mut wire, frame.kind, &frame.payload).unwrap();
            let read = read_frame(&mut wire.as_slice()).unwrap().unwrap();
            assert_eq!(Request::decode(&read).unwrap(), request);
        }
    }

    #[test]
    fn every_truncation_of_a_request_is_an_error() {
        for request in requests() {
            let frame = request.encode();
            for length in 0..frame.payload.len() {
                let cut = Frame { kind: frame.kind, payload: frame.payload[..length].to_vec() };
                assert!(Request::decode(&cut).is_err(), "{request:?} cut to {length} bytes");
            }
            let mut longer = frame.clone();
            longer.payload.push(0);
            assert!(Request::decode(&longer).is_err(), "{request:?} with a byte too many");
        }
    }

    #[test]
    fn a_frame_cut_in_the_middle_is_an_error_and_between_frames_the_end() {
        assert!(read_frame(&mut [].as_slice()).unwrap().is_none());
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Data, b"abc").unwrap();
        for length in 1..wire.len() {
            assert!(read_frame(&mut &wire[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn oversized_and_unknown_frames_are_refused() {
        let mut wire = vec![Kind::Data as u8];
        wire.extend_from_slice(&(MAX_PAYLOAD + 1).to_le_bytes());
        assert!(matches!(read_frame(&mut wire.as_slice()), Err(ProtocolError::TooLong(_))));
        assert!(matches!(read_frame(&mut [99, 0, 0, 0, 0].as_slice()), Err(ProtocolError::UnknownKind(99))));
        let long = vec![0; MAX_PAYLOAD as usize + 1];
        assert!(matches!(write_frame(&mut Vec::new(), Kind::Data, &long), Err(ProtocolError::TooLong(_))));
    }

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
