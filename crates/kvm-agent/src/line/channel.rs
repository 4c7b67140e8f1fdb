//! One connection on the line.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Capacity;
use super::packet::Body;
use crate::protocol::ProtocolError;
use crate::relay::Stream;

/// What the far end says to an endpoint.
pub(super) type Answer = Result<(), String>;

/// A connection's socket on this side, and what is known of the other.
pub(super) struct Channel {
    socket: Stream,
    capacity: Capacity,
    state: Mutex<State>,
    changed: Condvar,
    /// What has come over the line, for the thread that has the time.
    received: Sender<Errand>,
}

struct State {
    /// Bytes that may be sent.
    credit: usize,
    /// Bytes that have come, and that the peer has had no credit for again.
    taken: usize,
    /// Of these, bytes that are not in the socket yet.
    unwritten: usize,
    /// Nobody wants any more of it.
    closed: bool,
    /// Who waits for the far end to say whether it could connect.
    opening: Option<Sender<Answer>>,
}

impl State {
    /// Bytes that the peer can be given credit for.
    fn due(&self) -> usize {
        self.taken - self.unwritten
    }
}

/// For the thread that may wait.
pub(super) enum Errand {
    Write(Vec<u8>),
    GiveCredit,
    End,
    Leave,
}

impl Channel {
    /// For a socket, with what [`Channel::write_socket`] takes. Where the far end has to connect first, `opening` hears of it.
    pub(super) fn new(socket: Stream, capacity: Capacity, opening: Option<Sender<Answer>>) -> (Self, Receiver<Errand>) {
        let (received, receiver) = mpsc::channel();
        let state = State { credit: capacity.window(), taken: 0, unwritten: 0, closed: false, opening };
        (Self { socket, capacity, state: Mutex::new(state), changed: Condvar::new(), received }, receiver)
    }

    /// Takes what has come for it. Never waits.
    ///
    /// # Errors
    /// If the peer has sent more than it may, or gives more credit than there is.
    pub(super) fn receive(&self, body: Body) -> Result<(), ProtocolError> {
        match body {
            Body::Open(_) => return Err(ProtocolError::Malformed("channel: it is open already")),
            Body::Opened => self.answer(Ok(()))?,
            Body::Refused(text) => self.answer(Err(text))?,
            Body::Credit(count) => {
                let mut state = self.lock();
                state.credit = state.credit.saturating_add(count as usize);
                if state.credit > self.capacity.window() {
                    return Err(ProtocolError::Malformed("credit: more than the window"));
                }
                self.changed.notify_all();
            }
            Body::Reset => self.close(),
            Body::Data(bytes) => self.take(&bytes)?,
            Body::End => self.errand(Errand::End),
        }
        Ok(())
    }

    fn answer(&self, answer: Answer) -> Result<(), ProtocolError> {
        let opening = self.lock().opening.take().ok_or(ProtocolError::Malformed("channel: it is open already"))?;
        // Fails if nobody waits any longer.
        let _ = opening.send(answer);
        Ok(())
    }

    fn take(&self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let mut state = self.lock();
        let due = state.due();
        state.taken += bytes.len();
        if state.taken > self.capacity.window() {
            return Err(ProtocolError::Malformed("data: more than the window"));
        }
        // Bytes that wait for the socket go first. What is wrong with the socket is the other thread's to tell.
        let written = if state.unwritten == 0 { self.socket.write_now(bytes).unwrap_or(0) } else { 0 };
        let rest = &bytes[written..];
        state.unwritten += rest.len();
        if !rest.is_empty() {
            self.errand(Errand::Write(rest.to_vec()));
        } else if due < self.enough() && state.due() >= self.enough() {
            self.errand(Errand::GiveCredit);
        }
        Ok(())
    }

    /// Bytes for which it is worth a packet to give credit.
    fn enough(&self) -> usize {
        self.capacity.window() / 2
    }

    fn errand(&self, errand: Errand) {
        // Fails where the socket takes no more; the peer has been told.
        let _ = self.received.send(errand);
    }

    /// Ends both directions.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.opening = None;
        drop(state);
        self.changed.notify_all();
        self.socket.shutdown(Shutdown::Both);
        self.errand(Errand::Leave);
    }

    /// Sends what comes from the socket, until its end.
    pub(super) fn read_socket(&self, send: impl Fn(Body) -> io::Result<()>) {
        let mut buffer = vec![0; self.capacity.chunk()];
        while let Some(credit) = self.wait_for_credit() {
            let most = credit.min(buffer.len());
            let sent = match (&self.socket).read(&mut buffer[..most]) {
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

    /// Writes to the socket what it did not take at once, and gives credit, until the end of what comes over the line.
    pub(super) fn write_socket(&self, received: &Receiver<Errand>, send: impl Fn(Body) -> io::Result<()>) {
        for errand in received {
            match errand {
                Errand::Write(bytes) => {
                    if (&self.socket).write_all(&bytes).is_err() {
                        let _ = send(Body::Reset);
                        return self.close();
                    }
                    self.lock().unwritten -= bytes.len();
                }
                Errand::GiveCredit => {}
                Errand::End => return self.socket.shutdown(Shutdown::Write),
                Errand::Leave => return,
            }
            if self.give_credit(&send).is_err() {
                return self.close();
            }
        }
    }

    fn give_credit(&self, send: impl Fn(Body) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        let due = state.due();
        if due < self.enough() {
            return Ok(());
        }
        state.taken -= due;
        drop(state);
        // A window fits.
        send(Body::Credit(due as u32))
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
