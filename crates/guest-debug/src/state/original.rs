//! An instruction in serde's formats: hexadecimal digits in those for people, bytes in the others.
//!
//! A session has thousands of them. In JSON a string is read in a third of the time that a list of numbers takes.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

const LENGTH: usize = 4;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

pub(super) fn serialize<S: Serializer>(bytes: &[u8; LENGTH], serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return bytes.serialize(serializer);
    }
    let digit = |index: usize| {
        let byte = bytes.get(index / 2).copied().unwrap_or_default();
        let nibble = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        DIGITS.get(usize::from(nibble)).copied().unwrap_or_default()
    };
    let text: [u8; 2 * LENGTH] = std::array::from_fn(digit);
    serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; LENGTH], D::Error> {
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(Original)
    } else {
        <[u8; LENGTH]>::deserialize(deserializer)
    }
}

struct Original;

impl<'de> Visitor<'de> for Original {
    type Value = [u8; LENGTH];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an instruction: eight hexadecimal digits, two for each byte, in the order of memory")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let mut bytes = [0; LENGTH];
        if text.len() != 2 * LENGTH {
            return Err(E::invalid_length(text.len(), &self));
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for digit in digits {
                let value = char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
                let value = value.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))?;
                *byte = *byte << 4 | value;
            }
        }
        Ok(bytes)
    }

    /// As version 1 wrote it.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut bytes = [0; LENGTH];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = list.next_element()?.ok_or_else(|| A::Error::invalid_length(index, &self))?;
        }
        match list.next_element::<serde::de::IgnoredAny>()? {
            Some(_) => Err(A::Error::invalid_length(LENGTH + 1, &self)),
            None => Ok(bytes),
        }
    }
}
