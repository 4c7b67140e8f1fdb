//! Guest memory as the body of a packet.

use crate::frame::digit;

/// How memory is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Two digits a byte: what `m` answers.
    Hex,
    /// `b`, and the bytes as they are but for those that mean something in a packet: what `x` answers, since gdb 16.
    Binary,
}

/// Bytes that are looked at together.
const BLOCK: usize = 16;

/// What ends a packet, begins one, escapes and repeats.
const SPECIAL: [u8; 4] = *b"#$}*";

impl Encoding {
    /// Appends a body, with runs shortened as the protocol allows: a guest's memory is full of zeros, and of nothing that
    /// other encodings of the protocol would make shorter.
    pub(crate) fn write(self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Hex => hex(bytes, out),
            Self::Binary => binary(bytes, out),
        }
    }
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    // A checksum follows.
    out.reserve(2 * bytes.len() + 3);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (plain, run) = rest.split_at(before_equal_digits(rest));
        digits(plain, out);
        let same = equal_bytes(run);
        if let Some(byte) = run.first() {
            repeat(digit(byte & 0xf), 2 * same, out);
        }
        rest = run.get(same..).unwrap_or_default();
    }
}

fn binary(bytes: &[u8], out: &mut Vec<u8>) {
    // Of arbitrary bytes one in 64 is escaped.
    out.reserve(bytes.len() + bytes.len() / 16 + 4);
    out.push(b'b');
    let mut rest = bytes;
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        let bytes = u128::from_le_bytes(*block);
        if has_run(bytes) {
            rest = one_by_one(rest, BLOCK, out);
            continue;
        }
        if SPECIAL.iter().any(|special| has_zero(bytes ^ ONES * u128::from(*special))) {
            escape(block, out);
        } else {
            out.extend_from_slice(block);
        }
        rest = behind;
    }
    one_by_one(rest, rest.len(), out);
}

/// One in each byte.
const ONES: u128 = u128::from_le_bytes([1; BLOCK]);

/// Whether a byte is 0: taking 1 from each sets the highest bit of that byte, which had none, and where no byte is 0 of none.
const fn has_zero(bytes: u128) -> bool {
    bytes.wrapping_sub(ONES) & !bytes & ONES << 7 != 0
}

/// Whether four equal bytes follow each other. A run that goes on behind the block is one of the next, or too short.
const fn has_run(bytes: u128) -> bool {
    let differs = bytes ^ bytes >> 8;
    // Nothing is known of what follows the last byte.
    has_zero(differs | differs >> 8 | differs >> 16 | !(u128::MAX >> 24))
}

/// The bytes of a block, without a decision about one of them.
fn escape(block: &[u8; BLOCK], out: &mut Vec<u8>) {
    let mut spelled = [b'}'; 2 * BLOCK];
    let mut length = 0;
    for byte in block {
        let special = SPECIAL.iter().fold(false, |any, special| any | (byte == special));
        length += usize::from(special);
        if let Some(place) = spelled.get_mut(length) {
            *place = byte ^ u8::from(special) << 5;
        }
        length += 1;
    }
    out.extend_from_slice(spelled.get(..length).unwrap_or_default());
}

/// Spells so many bytes, and more where a run goes on. Answers what is left.
fn one_by_one<'a>(bytes: &'a [u8], count: usize, out: &mut Vec<u8>) -> &'a [u8] {
    let mut rest = bytes;
    while bytes.len() - rest.len() < count {
        rest = match rest {
            [first, behind @ ..] if SPECIAL.contains(first) => {
                // A run length would count what stands for the byte.
                out.extend([b'}', first ^ 0x20]);
                behind
            }
            [first, second, third, fourth, ..] if first == second && second == third && third == fourth => {
                let same = equal_bytes(rest);
                repeat(*first, same, out);
                rest.get(same..).unwrap_or_default()
            }
            [first, behind @ ..] => {
                out.push(*first);
                behind
            }
            [] => return rest,
        };
    }
    rest
}

/// How many bytes at the beginning are the same.
fn equal_bytes(bytes: &[u8]) -> usize {
    bytes.first().map_or(0, |first| bytes.iter().take_while(|byte| *byte == first).count())
}

/// So many of one character: it, a star and a character that counts those that follow, from 29.
fn repeat(character: u8, mut count: usize, out: &mut Vec<u8>) {
    /// The counting character is a tilde then.
    const MOST: usize = 97;
    while count > 0 {
        out.push(character);
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
fn before_equal_digits(bytes: &[u8]) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, FrameDecoder, encode_with, to_hex};
    use proptest::prelude::*;

    /// The body that a client gets.
    fn sent(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_with(|out| encoding.write(bytes, out), &mut out);
        let mut decoder = FrameDecoder::new(8192);
        let frames: Vec<_> = out.iter().filter_map(|byte| decoder.push(*byte)).collect();
        // Nothing in it ends a packet, and its checksum fits.
        let [Frame::Packet(body)] = &frames[..] else { panic!("{bytes:x?}: {out:x?}") };
        body.clone()
    }

    /// What a client makes of run lengths, which it does before anything else.
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

    fn unescape(text: &[u8]) -> Vec<u8> {
        let mut bytes = text.iter();
        let mut plain = Vec::new();
        while let Some(byte) = bytes.next() {
            plain.push(if *byte == b'}' { bytes.next().unwrap() ^ 0x20 } else { *byte });
        }
        plain
    }

    #[test]
    fn runs_of_every_length_are_what_they_were() {
        for value in [0u8, 0xff, 0x55] {
            for length in 0..300 {
                let bytes = [vec![0x12], vec![value; length], vec![0x05, 0x50]].concat();
                let body = sent(Encoding::Hex, &bytes);
                assert_eq!(expand(&body), to_hex(&bytes).into_bytes(), "{value:#x} {length}");
                assert!(body.iter().all(|byte| (b' '..=b'~').contains(byte)));
                assert!(body.len() <= 6 + 3 * (2 * length).div_ceil(98) + 4, "{value:#x} {length}: {}", body.len());

                let body = sent(Encoding::Binary, &bytes);
                assert_eq!(expand(&body), [b"b", &bytes[..]].concat(), "{value:#x} {length}");
                assert!(body.len() <= 4 + 3 * length.div_ceil(98) + 4, "{value:#x} {length}: {}", body.len());
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_are_what_they_were(runs in prop::collection::vec((any::<u8>(), 1usize..40), 0..60)) {
            let bytes = runs.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect::<Vec<_>>();
            prop_assert_eq!(expand(&sent(Encoding::Hex, &bytes)), to_hex(&bytes).into_bytes());
            prop_assert_eq!(unescape(&expand(&sent(Encoding::Binary, &bytes))), [b"b", &bytes[..]].concat());
        }

        #[test]
        fn arbitrary_bytes_are_what_they_were(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let body = sent(Encoding::Binary, &bytes);
            prop_assert_eq!(unescape(&expand(&body)), [b"b", &bytes[..]].concat());
            let escaped = bytes.iter().filter(|byte| SPECIAL.contains(byte)).count();
            prop_assert!(body.len() <= 1 + bytes.len() + escaped);
        }
    }
}
