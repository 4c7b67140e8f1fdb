//! A client's connection: bytes in, and a buffer for bytes out so that a slow client never blocks the server.

use crate::listener::Stream;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use thiserror::Error;

/// While more than this is unsent nothing is read: a client must take its answers before it asks more.
const MAX_UNSENT: usize = 0x10_0000;
/// The most that is read at once.
const MAX_RECEIVED: usize = 0x1_0000;

/// Why a connection can't be used any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Gone {
    /// End of file, or a reset.
    #[error("the connection was closed")]
    Closed,
    /// The client did not read its answers.
    #[error("the client does not read its answers")]
    Stalled,
    /// The first byte was not one of the protocol. A browser that a web page points at the port sends such.
    #[error("not a gdb client")]
    NotGdb,
}

/// A non-blocking connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    /// Where bytes arrive; made once, since a packet is short and this is not.
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// Since when the client has taken nothing of what is unsent.
    waiting: Option<Instant>,
    /// Whether a byte has come that only a debugger sends.
    trusted: bool,
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, received: vec![0; MAX_RECEIVED], unsent: Vec::new(), waiting: None, trusted: false }
    }

    /// What the client sent, or `None` if that is nothing that matters yet.
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>, Gone> {
        let length = match self.stream.read(&mut self.received) {
            Ok(0) => return Err(Gone::Closed),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(_) => return Err(Gone::Closed),
        };
        let bytes = self.received.get(..length).unwrap_or_default();
        if !self.trusted {
            if !matches!(bytes.first(), Some(b'+' | b'-' | b'$' | 0x03)) {
                return Err(Gone::NotGdb);
            }
            // The greeting alone does not stop a guest.
            if bytes.iter().all(|byte| *byte == b'+') {
                return Ok(None);
            }
            self.trusted = true;
        }
        Ok(Some(bytes))
    }

    /// Where to append answers.
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.unsent
    }

    /// Sends what the client takes now.
    pub(crate) fn send(&mut self) -> Result<(), Gone> {
        let mut sent = 0;
        let result = loop {
            match self.unsent.get(sent..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match self.stream.write(rest) {
                    Ok(0) => break Err(Gone::Closed),
                    Ok(length) => sent += length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                    Err(_) => break Err(Gone::Closed),
                },
            }
        };
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.waiting = None;
        } else if sent > 0 || self.waiting.is_none() {
            self.waiting = Some(Instant::now());
        }
        result
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_output(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether the client may ask for more.
    pub(crate) fn accepts_input(&self) -> bool {
        self.unsent.len() <= MAX_UNSENT
    }

    /// When the client will have stalled, if it takes nothing until then.
    pub(crate) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        self.waiting.and_then(|since| since.checked_add(timeout))
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
