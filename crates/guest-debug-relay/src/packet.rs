//! Packets of the remote serial protocol, as far as somebody between two ends has to know them.

/// Puts a body into a frame: `$body#xx`. The body must be escaped already.
pub fn encode(body: &[u8], out: &mut Vec<u8>) {
    encode_with(|out| out.extend_from_slice(body), out);
}

/// The same for a body that is written where it is sent from.
pub fn encode_with(body: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    frame(b'$', body, out);
}

/// A notification, which nobody answers: `%body#xx`.
pub fn encode_notification(body: &[u8], out: &mut Vec<u8>) {
    frame(b'%', |out| out.extend_from_slice(body), out);
}

fn frame(kind: u8, body: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.push(kind);
    let start = out.len();
    body(out);
    let sum = out.get(start..).unwrap_or_default().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    out.push(b'#');
    out.extend([sum >> 4, sum & 0xf].map(digit));
}

/// A value of four bits as a lower-case hex digit.
pub const fn digit(value: u8) -> u8 {
    value + if value < 10 { b'0' } else { b'a' - 10 }
}

/// A hexadecimal number of up to 64 bits.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Undoes run lengths: a character, a star, and how often it follows, from 29. Ends where that would be longer than any packet.
pub(crate) fn expand(body: &[u8]) -> Vec<u8> {
    let mut text: Vec<u8> = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match (byte, text.last().copied()) {
            (b'*', Some(last)) => {
                let count = bytes.next().map_or(0, |count| usize::from(count.saturating_sub(29)));
                if text.len() + count > LONGEST {
                    return text;
                }
                text.extend(std::iter::repeat_n(last, count));
            }
            _ => text.push(*byte),
        }
    }
    text
}

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A whole packet or notification, with its frame. Whether the checksum fits is for its reader to see.
    Packet(Packet),
    /// What is between packets: acknowledgements, Ctrl-C, and what is too long for a packet.
    Between(Vec<u8>),
}

/// `$body#xx` or `%body#xx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet(Vec<u8>);

impl Packet {
    pub(crate) fn raw(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_notification(&self) -> bool {
        self.0.first() == Some(&b'%')
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.0.len().checked_sub(3).and_then(|end| self.0.get(1..end)).unwrap_or_default()
    }
}

/// Longer than any packet of this project's server, which is `PacketSize` of its `qSupported`.
const LONGEST: usize = 0x20_0000;

/// Takes a stream apart. What it holds is bounded, and nothing is lost or changed on the way.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    pending: Vec<u8>,
    /// How much of it has no end of a packet.
    looked_at: usize,
}

impl Splitter {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.pending.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while let Some(piece) = self.next() {
            pieces.push(piece);
        }
        pieces
    }

    fn next(&mut self) -> Option<Piece> {
        let begins = |byte: &u8| matches!(byte, b'$' | b'%');
        match self.pending.iter().position(begins).unwrap_or(self.pending.len()) {
            0 => {
                let behind = self.pending.get(self.looked_at..)?;
                let Some(hash) = behind.iter().position(|byte| *byte == b'#') else {
                    self.looked_at = self.pending.len();
                    return (self.pending.len() > LONGEST).then(|| Piece::Between(self.take(self.pending.len())));
                };
                let end = self.looked_at + hash + 3;
                if end > self.pending.len() {
                    self.looked_at += hash;
                    return None;
                }
                Some(Piece::Packet(Packet(self.take(end))))
            }
            start => Some(Piece::Between(self.take(start))),
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.looked_at = 0;
        let rest = self.pending.split_off(length);
        std::mem::replace(&mut self.pending, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(piece: &Piece) -> String {
        match piece {
            Piece::Packet(packet) => format!("packet {}", String::from_utf8_lossy(packet.body())),
            Piece::Between(bytes) => format!("between {}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn packets_come_out_when_they_are_whole() {
        let mut splitter = Splitter::default();
        let mut stream = b"+".to_vec();
        encode(b"qC", &mut stream);
        encode_notification(b"Stop:T05", &mut stream);
        stream.push(3);
        // Byte by byte, and all at once.
        let singly: Vec<_> = stream.iter().flat_map(|byte| splitter.push(&[*byte])).collect();
        assert_eq!(singly, splitter.push(&stream));
        assert_eq!(
            singly.iter().map(text).collect::<Vec<_>>(),
            ["between +", "packet qC", "packet Stop:T05", "between \u{3}"]
        );
        assert!(matches!(&singly[2], Piece::Packet(packet) if packet.is_notification()));
    }

    #[test]
    fn what_never_ends_is_passed_on() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(b"$").is_empty());
        let pieces = splitter.push(&vec![b'a'; LONGEST]);
        assert!(matches!(&pieces[..], [Piece::Between(bytes)] if bytes.len() == LONGEST + 1));
        assert!(splitter.pending.is_empty());
    }

    #[test]
    fn runs_are_written_out() {
        // As in gdb's manual: a zero, and three more.
        assert_eq!(expand(b"0* 1"), b"00001");
        assert_eq!(expand(b"*"), b"*");
        assert_eq!(expand(b"a*"), b"a");
        assert!(expand(&b"0*~".repeat(LONGEST / 3)).len() <= LONGEST);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(chunks in prop::collection::vec(prop::collection::vec(prop::sample::select(b"$#%+a0\x03".to_vec()), 0..20), 0..20)) {
            let mut splitter = Splitter::default();
            let mut out = Vec::new();
            for chunk in &chunks {
                for piece in splitter.push(chunk) {
                    match piece {
                        Piece::Packet(packet) => out.extend_from_slice(packet.raw()),
                        Piece::Between(bytes) => out.extend(bytes),
                    }
                }
            }
            out.extend(&splitter.pending);
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
