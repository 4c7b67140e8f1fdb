//! What travels over the line: a byte of kind, the channel and the payload's length in two bytes each (little endian), and the
//! payload.

use std::io::{self, Read, Write};

use crate::protocol::ProtocolError;

/// Most bytes of a connection in one packet.
pub(super) const CHUNK: usize = 512;

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
    /// It begins.
    Open,
    /// Its next bytes, at most [`CHUNK`].
    Data(Vec<u8>),
    /// So many bytes more may be sent.
    Credit(u16),
    /// There are no more bytes from this side.
    End,
    /// It is gone.
    Reset,
}

impl Body {
    const fn kind(&self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Data(_) => 2,
            Self::Credit(_) => 3,
            Self::End => 4,
            Self::Reset => 5,
        }
    }
}

impl Packet {
    /// Writes it at once.
    ///
    /// # Errors
    /// What the line answers.
    pub(super) fn write(&self, line: &mut impl Write) -> io::Result<()> {
        let credit;
        let payload: &[u8] = match &self.body {
            Body::Data(bytes) => bytes,
            Body::Credit(count) => {
                credit = count.to_le_bytes();
                &credit
            }
            Body::Open | Body::End | Body::Reset => &[],
        };
        let length = u16::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(self.body.kind());
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
    pub(super) fn read(line: &mut impl Read) -> Result<Self, ProtocolError> {
        let mut header = [0; HEADER];
        line.read_exact(&mut header)?;
        let [kind, channel @ .., low, high] = header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > CHUNK {
            return Err(ProtocolError::Malformed("length of a packet"));
        }
        let mut payload = vec![0; length];
        line.read_exact(&mut payload)?;
        let body = match (kind, payload.as_slice()) {
            (1, []) => Body::Open,
            (2, [_, ..]) => Body::Data(payload),
            (3, &[low, high]) => Body::Credit(u16::from_le_bytes([low, high])),
            (4, []) => Body::End,
            (5, []) => Body::Reset,
            (1 | 3..=5, _) => return Err(ProtocolError::Malformed("payload of a packet")),
            (2, _) => return Err(ProtocolError::Malformed("data without bytes")),
            _ => return Err(ProtocolError::UnknownKind(kind)),
        };
        Ok(Self { channel: u16::from_le_bytes(channel), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets() -> Vec<Packet> {
        [Body::Open, Body::Data(vec![7; CHUNK]), Body::Credit(0x1234), Body::End, Body::Reset]
            .into_iter()
            .map(|body| Packet { channel: 0xabcd, body })
            .collect()
    }

    #[test]
    fn packets_survive_the_line() {
        for packet in packets() {
            let mut wire = Vec::new();
            packet.write(&mut wire).unwrap();
            assert_eq!(Packet::read(&mut wire.as_slice()).unwrap(), packet);
            for length in 0..wire.len() {
                assert!(Packet::read(&mut &wire[..length]).is_err(), "{packet:?} cut to {length} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for wire in [
            &[0, 0, 0, 0, 0][..],
            &[6, 0, 0, 0, 0],
            &[1, 0, 0, 1, 0, 0],
            &[2, 0, 0, 0, 0],
            &[3, 0, 0, 1, 0, 0],
            &[4, 0, 0, 2, 0, 0, 0],
        ] {
            assert!(Packet::read(&mut &*wire).is_err(), "{wire:?}");
        }
        let mut long = vec![2, 0, 0];
        long.extend_from_slice(&(CHUNK as u16 + 1).to_le_bytes());
        long.resize(4096, 0);
        assert!(matches!(Packet::read(&mut long.as_slice()), Err(ProtocolError::Malformed(_))));
    }
}
