//! Packet framing of the remote serial protocol: bytes in, whole packets out.

pub(crate) use guest_debug_relay::packet::{digit, encode, encode_notification, encode_with};

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A packet's body, its checksum verified, still escaped.
    Packet(Vec<u8>),
    /// `+`
    Ack,
    /// `-`: send the last reply again.
    Nack,
    /// 0x03: stop the guest.
    Interrupt,
    /// The checksum does not match.
    BadChecksum,
    /// The packet was longer than announced; it was skipped.
    Oversized,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Body,
    Skip,
    Checksum1,
    Checksum2 { high: Option<u8> },
}

/// Turns a byte stream into frames. Holds at most one packet, and never more than its limit.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    state: State,
    body: Vec<u8>,
    sum: u8,
    limit: usize,
    oversized: bool,
}

impl FrameDecoder {
    /// A decoder that skips packets whose body is longer than `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: State::Between, body: Vec::new(), sum: 0, limit, oversized: false }
    }

    /// Takes the next byte. Bytes between packets that mean nothing are dropped.
    pub(crate) fn push(&mut self, byte: u8) -> Option<Frame> {
        match self.state {
            State::Between => match byte {
                b'$' => self.start(),
                b'+' => return Some(Frame::Ack),
                b'-' => return Some(Frame::Nack),
                0x03 => return Some(Frame::Interrupt),
                _ => {}
            },
            // A dollar sign inside a body is always escaped: a bare one begins a new packet, the old one was cut.
            State::Body | State::Skip if byte == b'$' => self.start(),
            State::Body | State::Skip if byte == b'#' => self.state = State::Checksum1,
            State::Body if self.body.len() < self.limit => {
                self.sum = self.sum.wrapping_add(byte);
                self.body.push(byte);
            }
            State::Body => {
                self.state = State::Skip;
                self.oversized = true;
                self.body = Vec::new();
            }
            State::Skip => {}
            State::Checksum1 => self.state = State::Checksum2 { high: hex_digit(byte) },
            State::Checksum2 { high } => {
                self.state = State::Between;
                let body = std::mem::take(&mut self.body);
                if self.oversized {
                    return Some(Frame::Oversized);
                }
                let sent = high.zip(hex_digit(byte)).map(|(high, low)| high << 4 | low);
                return Some(if sent == Some(self.sum) { Frame::Packet(body) } else { Frame::BadChecksum });
            }
        }
        None
    }

    fn start(&mut self) {
        self.state = State::Body;
        self.body.clear();
        self.sum = 0;
        self.oversized = false;
    }
}

/// Bytes as lower-case hex digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(limit: usize, bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = FrameDecoder::new(limit);
        bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
    }

    #[test]
    fn packets_acks_and_interrupts_come_out_in_order() {
        let mut bytes = b"+junk".to_vec();
        encode(b"qC", &mut bytes);
        bytes.extend(b"\x03-");
        let expected = [Frame::Ack, Frame::Packet(b"qC".to_vec()), Frame::Interrupt, Frame::Nack];
        assert_eq!(decode(16, &bytes), expected);
    }

    #[test]
    fn checksum_must_match_and_be_hex() {
        assert_eq!(decode(16, b"$qC#b4"), [Frame::Packet(b"qC".to_vec())]);
        assert_eq!(decode(16, b"$qC#b5"), [Frame::BadChecksum]);
        assert_eq!(decode(16, b"$qC#zz"), [Frame::BadChecksum]);
    }

    #[test]
    fn oversized_packet_is_skipped_and_the_next_one_is_read() {
        let mut bytes = Vec::new();
        encode(&[b'a'; 17], &mut bytes);
        encode(&[b'b'; 16], &mut bytes);
        assert_eq!(decode(16, &bytes), [Frame::Oversized, Frame::Packet(vec![b'b'; 16])]);
    }

    #[test]
    fn a_new_packet_may_begin_inside_a_cut_one() {
        assert_eq!(decode(16, b"$m12$qC#b4"), [Frame::Packet(b"qC".to_vec())]);
    }
}
