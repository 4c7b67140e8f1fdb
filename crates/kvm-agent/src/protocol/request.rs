//! What a connection is for.

use super::fields::{Decoder, Encoder};
use super::{Frame, Kind, ProtocolError};

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's own environment.
    pub env: Vec<(String, String)>,
    /// Whether its standard input comes in [`Kind::Stdin`] frames; if not, it has none.
    pub stdin: bool,
}

/// A socket inside the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Path of a unix socket.
    Unix(String),
    /// Port on the host's loopback address.
    Tcp(u16),
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
                out.number(u32::from(command.stdin));
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
                let stdin = match input.number("stdin")? {
                    0 => false,
                    1 => true,
                    _ => return Err(ProtocolError::Malformed("stdin: neither 0 nor 1")),
                };
                Self::Exec(Command { argv, env, stdin })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{read_frame, write_frame};

    fn requests() -> Vec<Request> {
        vec![
            Request::Exec(Command {
                argv: vec!["/bin/echo".into(), "two words".into(), String::new()],
                env: vec![("RUST_BACKTRACE".into(), "1".into())],
                stdin: true,
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
}
