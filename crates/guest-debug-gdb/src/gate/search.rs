//! `qSearch:memory`, which gdb's `find` sends: an address, a length, and the bytes that are looked for, as binary.

use super::{number_of, split_once, unescaped_length};

/// Most memory that one search goes through, less than a client's patience with an answer.
pub(crate) const MAX_SEARCH: u64 = 256 << 20;

/// A search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Search {
    pub address: u64,
    pub length: u64,
    pub pattern: Vec<u8>,
}

/// Parses what is behind `qSearch:memory:`.
pub(super) fn parse(args: &[u8]) -> Option<Search> {
    let (address, rest) = split_once(args, b';')?;
    let (length, pattern) = split_once(rest, b';')?;
    let pattern = unescape(pattern)?;
    if pattern.is_empty() {
        return None;
    }
    Some(Search { address: number_of(address)?, length: number_of(length)?, pattern })
}

/// `}` and a byte stand for that byte with bit 5 changed.
fn unescape(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(unescaped_length(data)?);
    let mut rest = data.iter();
    while let Some(byte) = rest.next() {
        bytes.push(if *byte == b'}' { rest.next()? ^ 0x20 } else { *byte });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_binary() {
        let search = |pattern: &[u8]| Some(Search { address: 0x1000, length: 0x20, pattern: pattern.to_vec() });
        assert_eq!(parse(b"1000;20;ab;c"), search(b"ab;c"));
        assert_eq!(parse(b"1000;20;a}\x03}\x5d\x80"), search(b"a#}\x80"));
        for bad in [&b""[..], b"1000", b"1000;20", b"1000;20;", b"x;20;a", b"1000;;a", b"1000;20;a}"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
