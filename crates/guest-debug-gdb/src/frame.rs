//! Packet framing of the remote serial protocol: bytes in, whole packets out.

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

/// Bytes that are looked at together.
const BLOCK: usize = 16;

/// Puts a body into a frame: `$body#xx`. The body must be escaped already.
pub(crate) fn encode(body: &[u8], out: &mut Vec<u8>) {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    out.push(b'$');
    out.extend_from_slice(body);
    out.push(b'#');
    out.extend([sum >> 4, sum & 0xf].map(digit));
}

/// Puts bytes into a frame as hex digits, runs of one digit shortened as the protocol allows: a guest's memory is full of zeros,
/// and of nothing that other encodings of the protocol would make shorter.
pub(crate) fn encode_hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'$');
    let start = out.len();
    out.reserve(2 * bytes.len() + 3);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (plain, run) = rest.split_at(before_run(rest));
        digits(plain, out);
        let same = run.first().map_or(0, |byte| {
            let same = run.iter().take_while(|next| *next == byte).count();
            repeat(digit(byte & 0xf), 2 * same, out);
            same
        });
        rest = run.get(same..).unwrap_or_default();
    }
    let sum = out.get(start..).unwrap_or_default().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    out.push(b'#');
    out.extend([sum >> 4, sum & 0xf].map(digit));
}

/// So many of one digit: a digit, a star and a character that counts those that follow, from 29.
fn repeat(digit: u8, mut count: usize, out: &mut Vec<u8>) {
    /// The counting character is a tilde then.
    const MOST: usize = 97;
    while count > 0 {
        out.push(digit);
        count -= 1;
        let more = match count {
            // Too few to be worth it.
            0..3 => continue,
            // These would be a number sign and a dollar sign.
            6 | 7 => 5,
            count => count.min(MOST),
        };
        out.push(b'*');
        out.push(u8::try_from(more + 29).unwrap_or(b'~'));
        count -= more;
    }
}

/// How many bytes precede two that are one digit four times.
fn before_run(bytes: &[u8]) -> usize {
    let repeats = |byte: u8, next: u8| byte == next && byte >> 4 == byte & 0xf;
    let nexts = bytes.get(1..).unwrap_or_default();
    // Whole blocks without a decision inside, which compilers make vector instructions of.
    let blocks = bytes.chunks_exact(BLOCK).zip(nexts.chunks_exact(BLOCK));
    let none = |(block, nexts): &(&[u8], &[u8])| {
        !block.iter().zip(*nexts).fold(false, |any, (byte, next)| any | repeats(*byte, *next))
    };
    let skipped = BLOCK * blocks.take_while(none).count();
    let rest = bytes.get(skipped..).unwrap_or_default();
    skipped + rest.windows(2).position(|pair| repeats(pair[0], pair[1])).unwrap_or(rest.len())
}

/// Bytes as digits, without a decision about one of them.
fn digits(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    let pairs = out.get_mut(start..).unwrap_or_default().chunks_exact_mut(2);
    for (pair, byte) in pairs.zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
    }
}

/// A value of four bits as a hex digit.
const fn digit(value: u8) -> u8 {
    value + if value < 10 { b'0' } else { b'a' - 10 }
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

    /// What a client makes of run lengths.
    fn expand(body: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let mut bytes = body.iter();
        while let Some(byte) = bytes.next() {
            if *byte == b'*' {
                let (last, count) = (*text.last().unwrap(), usize::from(*bytes.next().unwrap()) - 29);
                text.extend(std::iter::repeat_n(last, count));
            } else {
                text.push(*byte);
            }
        }
        text
    }

    #[test]
    fn runs_of_every_length_are_what_they_were() {
        for value in [0u8, 0xff, 0x55] {
            for length in 0..300 {
                let bytes = [vec![0x12], vec![value; length], vec![0x05, 0x50]].concat();
                let mut out = Vec::new();
                encode_hex(&bytes, &mut out);
                // Nothing in it ends a packet, and its checksum fits.
                let [Frame::Packet(body)] = &decode(4096, &out)[..] else { panic!("{value:#x} {length}: {out:x?}") };
                assert_eq!(expand(body), to_hex(&bytes).into_bytes(), "{value:#x} {length}");
                assert!(body.iter().all(|byte| (b' '..=b'~').contains(byte)));
                assert!(body.len() <= 6 + 3 * (2 * length).div_ceil(98) + 4, "{value:#x} {length}: {}", body.len());
            }
        }
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
