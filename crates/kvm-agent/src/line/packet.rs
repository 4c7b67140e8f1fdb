//! What travels over the line: a byte of kind, the channel and the payload's length in two bytes each (little endian), and the
//! payload.

use std::io::{self, Read, Write};

use super::Capacity;
use crate::protocol::{Endpoint, Frame, Kind, ProtocolError, Request};

const HEADER: usize = 5;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// The connection that it belongs to.
    pub(super) channel: u16,
    pub(super) body: Body,
}

/// What a packet says of its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// It begins: with the agent's own server, whose bytes can follow at once, or with a socket, where the answer comes first.
    Open(Option<Endpoint>),
    /// The socket is connected.
    Opened,
    /// The socket cannot be connected, and why.
    Refused(String),
    /// Its next bytes, at most [`Capacity::chunk`].
    Data(Vec<u8>),
    /// So many bytes more may be sent.
    Credit(u32),
    /// There are no more bytes from this side.
    End,
    /// It is gone.
    Reset,
}

impl Packet {
    /// Writes it at once.
    ///
    /// # Errors
    /// What the line answers.
    pub(super) fn write(&self, line: &mut impl Write) -> io::Result<()> {
        let small;
        let (kind, payload): (u8, &[u8]) = match &self.body {
            Body::Open(None) => (1, &[]),
            Body::Open(Some(endpoint)) => {
                small = Request::Connect(endpoint.clone()).encode().payload;
                (1, &small)
            }
            Body::Data(bytes) => (2, bytes),
            Body::Credit(count) => {
                small = count.to_le_bytes().to_vec();
                (3, &small)
            }
            Body::End => (4, &[]),
            Body::Reset => (5, &[]),
            Body::Opened => (6, &[]),
            Body::Refused(text) => (7, text.as_bytes()),
        };
        let length = u16::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&self.channel.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        line.write_all(&bytes)?;
        line.flush()
    }

    /// Reads one.
    ///
    /// # Errors
    /// Any [`ProtocolError`]; the line is of no use afterwards.
    pub(super) fn read(line: &mut impl Read, capacity: Capacity) -> Result<Self, ProtocolError> {
        let mut header = [0; HEADER];
        line.read_exact(&mut header)?;
        let [kind, channel @ .., low, high] = header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > capacity.chunk() {
            return Err(ProtocolError::Malformed("length of a packet"));
        }
        let mut payload = vec![0; length];
        line.read_exact(&mut payload)?;
        let body = match (kind, payload.as_slice()) {
            (1, []) => Body::Open(None),
            (1, _) => match Request::decode(&Frame { kind: Kind::Connect, payload })? {
                Request::Connect(endpoint) => Body::Open(Some(endpoint)),
                _ => return Err(ProtocolError::Malformed("endpoint")),
            },
            (2, [_, ..]) => Body::Data(payload),
            (2, _) => return Err(ProtocolError::Malformed("data without bytes")),
            (3, &[a, b, c, d]) => Body::Credit(u32::from_le_bytes([a, b, c, d])),
            (4, []) => Body::End,
            (5, []) => Body::Reset,
            (6, []) => Body::Opened,
            (7, text) => Body::Refused(String::from_utf8_lossy(text).into_owned()),
            (3..=6, _) => return Err(ProtocolError::Malformed("payload of a packet")),
            _ => return Err(ProtocolError::UnknownKind(kind)),
        };
        Ok(Self { channel: u16::from_le_bytes(channel), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity::SERIAL;

    fn packets() -> Vec<Packet> {
        [
            Body::Open(None),
            Body::Open(Some(Endpoint::Unix("/tmp/gdb.sock".to_owned()))),
            Body::Open(Some(Endpoint::Tcp(1234))),
            Body::Opened,
            Body::Refused("nobody listens".to_owned()),
            Body::Data(vec![7; CAPACITY.chunk()]),
            Body::Credit(0x1234_5678),
            Body::End,
            Body::Reset,
        ]
        .into_iter()
        .map(|body| Packet { channel: 0xabcd, body })
        .collect()
    }

    #[test]
    fn packets_survive_the_line() {
        for packet in packets() {
            let mut wire = Vec::new();
            packet.write(&mut wire).unwrap();
            assert_eq!(Packet::read(&mut wire.as_slice(), CAPACITY).unwrap(), packet);
            for length in 0..wire.len() {
                assert!(Packet::read(&mut &wire[..length], CAPACITY).is_err(), "{packet:?} cut to {length} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for wire in [
            &[0, 0, 0, 0, 0][..],
            &[8, 0, 0, 0, 0],
            &[1, 0, 0, 1, 0, 0],
            &[2, 0, 0, 0, 0],
            &[3, 0, 0, 1, 0, 0],
            &[4, 0, 0, 2, 0, 0, 0],
            &[6, 0, 0, 1, 0, 0],
        ] {
            assert!(Packet::read(&mut &*wire, CAPACITY).is_err(), "{wire:?}");
        }
        let length = CAPACITY.chunk + 1;
        let mut long = vec![2, 0, 0];
        long.extend_from_slice(&length.to_le_bytes());
        long.resize(4096, 0);
        assert!(matches!(Packet::read(&mut long.as_slice(), CAPACITY), Err(ProtocolError::Malformed(_))));
    }
}
