//! What a payload is made of: numbers in little endian, and strings as their length in four bytes and UTF-8.

use super::ProtocolError;

#[derive(Default)]
pub(super) struct Encoder(pub(super) Vec<u8>);

impl Encoder {
    pub(super) fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn string(&mut self, text: &str) {
        // A longer string makes the frame too long, which write_frame refuses.
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(super) fn list<S: AsRef<str>>(&mut self, items: &[S]) {
        self.number(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            self.string(item.as_ref());
        }
    }
}

pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl Decoder<'_> {
    fn take(&mut self, length: usize, field: &'static str) -> Result<&[u8], ProtocolError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(ProtocolError::Malformed(field))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn number(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn long(&mut self, field: &'static str) -> Result<u64, ProtocolError> {
        let (low, high) = (self.number(field)?, self.number(field)?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    pub(super) fn string(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        let length = self.number(field)? as usize;
        String::from_utf8(self.take(length, field)?.to_vec()).map_err(|_| ProtocolError::Malformed(field))
    }

    pub(super) fn list(&mut self, field: &'static str) -> Result<Vec<String>, ProtocolError> {
        // No capacity from the peer's number: it may be anything.
        let count = self.number(field)?;
        (0..count).map(|_| self.string(field)).collect()
    }

    pub(super) fn end(&self) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError::Malformed("bytes after the last field")) }
    }
}
