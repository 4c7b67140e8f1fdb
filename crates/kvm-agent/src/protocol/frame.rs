//! One frame: a byte of kind, the payload's length in four bytes (little endian), and the payload.

use std::io::{self, Read, Write};

use super::ProtocolError;

/// Longest payload that is accepted, in bytes.
pub const MAX_PAYLOAD: u32 = 1 << 20;

/// Size in bytes of the pieces in which files and output travel.
pub const CHUNK: usize = 256 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: version and token.
    Hello = 1,
    /// Client: run a command.
    Exec = 2,
    /// Client: send a signal to the command that runs on this connection.
    Signal = 3,
    /// Client: write a file; data frames and an end frame follow.
    Put = 4,
    /// Client: read a file; the answer is data frames and an end frame.
    Get = 5,
    /// Client: size of a file.
    Stat = 6,
    /// Client: connect to a socket; after the OK frame the connection carries that socket's bytes, unframed.
    Connect = 7,
    /// Client: write a file from a piece of a disk.
    Import = 8,
    /// Client: standard input of the command that runs on this connection; an empty one is its end.
    Stdin = 9,
    /// Agent: done.
    Ok = 16,
    /// Agent: the request failed; the payload is the reason as text.
    Error = 17,
    /// Agent: standard output of the command.
    Stdout = 18,
    /// Agent: standard error of the command.
    Stderr = 19,
    /// Agent: how the command ended.
    Exit = 20,
    /// Both: a piece of a file.
    Data = 21,
    /// Both: the file is complete.
    End = 22,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Exec,
            3 => Self::Signal,
            4 => Self::Put,
            5 => Self::Get,
            6 => Self::Stat,
            7 => Self::Connect,
            8 => Self::Import,
            9 => Self::Stdin,
            16 => Self::Ok,
            17 => Self::Error,
            18 => Self::Stdout,
            19 => Self::Stderr,
            20 => Self::Exit,
            21 => Self::Data,
            22 => Self::End,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: Kind,
    /// Its payload, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Writes one frame.
///
/// # Errors
/// [`ProtocolError::TooLong`], or what the connection answers.
pub fn write_frame(writer: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<(), ProtocolError> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong(length));
    }
    // One write for small frames: two would cost a packet each.
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    writer.write_all(&frame)?;
    Ok(())
}

/// Reads one frame; `None` if the peer closed the connection between two frames.
///
/// # Errors
/// Any [`ProtocolError`]; the connection is of no use afterwards.
pub fn read_frame(reader: &mut impl Read) -> Result<Option<Frame>, ProtocolError> {
    let mut first = [0; 1];
    loop {
        match reader.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let kind = Kind::from_byte(first[0]).ok_or(ProtocolError::UnknownKind(first[0]))?;
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong(length));
    }
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_cut_in_the_middle_is_an_error_and_between_frames_the_end() {
        assert!(read_frame(&mut [].as_slice()).unwrap().is_none());
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Data, b"abc").unwrap();
        for length in 1..wire.len() {
            assert!(read_frame(&mut &wire[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn oversized_and_unknown_frames_are_refused() {
        let mut wire = vec![Kind::Data as u8];
        wire.extend_from_slice(&(MAX_PAYLOAD + 1).to_le_bytes());
        assert!(matches!(read_frame(&mut wire.as_slice()), Err(ProtocolError::TooLong(_))));
        assert!(matches!(read_frame(&mut [99, 0, 0, 0, 0].as_slice()), Err(ProtocolError::UnknownKind(99))));
        let long = vec![0; MAX_PAYLOAD as usize + 1];
        assert!(matches!(write_frame(&mut Vec::new(), Kind::Data, &long), Err(ProtocolError::TooLong(_))));
    }
}
