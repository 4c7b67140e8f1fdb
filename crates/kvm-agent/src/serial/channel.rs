//! One connection on the line.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::packet::{Body, CHUNK};
use crate::protocol::ProtocolError;

/// Most bytes of one direction that are under way. Others wait behind them, so it is not more than the line carries in a
/// moment.
pub(super) const WINDOW: usize = 4096;

/// A connection's socket on this side, and what is known of the other.
pub(super) struct Channel {
    socket: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
    /// What has come over the line, for the thread that writes it to the socket.
    received: Sender<Body>,
}

struct State {
    /// Bytes that may be sent.
    credit: usize,
    /// Bytes that have come and are not in the socket yet.
    unwritten: usize,
    /// Nobody wants any more of it.
    closed: bool,
}

impl Channel {
    /// For a socket, with what [`Channel::write_socket`] takes.
    pub(super) fn new(socket: TcpStream) -> (Self, Receiver<Body>) {
        let (received, receiver) = mpsc::channel();
        let state = Mutex::new(State { credit: WINDOW, unwritten: 0, closed: false });
        (Self { socket, state, changed: Condvar::new(), received }, receiver)
    }

    /// Takes what has come for it. Never waits.
    ///
    /// # Errors
    /// If the peer has sent more than it may, or gives more credit than there is.
    pub(super) fn receive(&self, body: Body) -> Result<(), ProtocolError> {
        match body {
            Body::Open => return Err(ProtocolError::Malformed("channel: it is open already")),
            Body::Credit(count) => {
                let mut state = self.lock();
                state.credit += usize::from(count);
                if state.credit > WINDOW {
                    return Err(ProtocolError::Malformed("credit: more than the window"));
                }
                self.changed.notify_all();
            }
            Body::Reset => self.close(),
            Body::Data(bytes) => {
                let mut state = self.lock();
                state.unwritten += bytes.len();
                if state.unwritten > WINDOW {
                    return Err(ProtocolError::Malformed("data: more than the window"));
                }
                // Fails where the socket takes no more; the peer has been told.
                let _ = self.received.send(Body::Data(bytes));
            }
            Body::End => drop(self.received.send(Body::End)),
        }
        Ok(())
    }

    /// Ends both directions.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        // Fails only if the peer is gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.received.send(Body::Reset);
    }

    /// Sends what comes from the socket, until its end.
    pub(super) fn read_socket(&self, send: impl Fn(Body) -> io::Result<()>) {
        let mut buffer = [0; CHUNK];
        while let Some(credit) = self.wait_for_credit() {
            let sent = match (&self.socket).read(&mut buffer[..credit.min(CHUNK)]) {
                Ok(0) => {
                    let _ = send(Body::End);
                    return;
                }
                Ok(length) => {
                    self.lock().credit -= length;
                    send(Body::Data(buffer[..length].to_vec()))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => send(Body::Reset).and(Err(io::ErrorKind::ConnectionReset.into())),
            };
            if sent.is_err() {
                return self.close();
            }
        }
    }

    /// Writes to the socket what comes over the line, until its end.
    pub(super) fn write_socket(&self, received: &Receiver<Body>, send: impl Fn(Body) -> io::Result<()>) {
        for body in received {
            let Body::Data(bytes) = body else {
                if body == Body::End {
                    let _ = self.socket.shutdown(Shutdown::Write);
                }
                return;
            };
            if (&self.socket).write_all(&bytes).is_err() {
                let _ = send(Body::Reset);
                return self.close();
            }
            self.lock().unwritten -= bytes.len();
            if send(Body::Credit(bytes.len() as u16)).is_err() {
                return self.close();
            }
        }
    }

    /// `None` when nobody wants any more.
    fn wait_for_credit(&self) -> Option<usize> {
        let wait = |state: &mut State| state.credit == 0 && !state.closed;
        let state = self.changed.wait_while(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then_some(state.credit)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
