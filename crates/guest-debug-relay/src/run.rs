//! The relay on two real connections.

use std::io::{self, Read, Write};
use std::mem;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::relay::{Outgoing, Relay};

/// The most that is read at once.
const PIECE: usize = 0x1_0000;

/// Carries bytes between a client and a server until one of them is gone. Blocks.
///
/// A thread of its own reads each side. That of the side which is still there is left behind in its read: whoever has not come to the end of the
/// process shuts the connection down. What writes to the server is dropped where the client is gone, so that a server behind a pipe sees its end.
///
/// # Errors
/// Whatever reading or writing answers, but for a side that has closed its connection.
pub fn run<CR, CW, SR, SW>(client: (CR, CW), server: (SR, SW)) -> io::Result<()>
where
    CR: Read + Send + 'static,
    CW: Write + Send + 'static,
    SR: Read + Send + 'static,
    SW: Write + Send + 'static,
{
    let sides = Arc::new(Sides {
        relay: Mutex::default(),
        to_client: Mutex::new(client.1),
        to_server: Mutex::new(Some(server.1)),
    });
    let (sender, ends) = mpsc::channel();
    let (theirs, to) = (Arc::clone(&sides), sender.clone());
    thread::spawn(move || End::with(to, || theirs.carry_requests(client.0)));
    let theirs = Arc::clone(&sides);
    thread::spawn(move || End::with(sender, || theirs.carry_answers(server.0)));
    let result = ends.recv().unwrap_or(Ok(()));
    // A thread that is writing to it has found that its reader does not read.
    if let Ok(mut to_server) = sides.to_server.try_lock() {
        to_server.take();
    }
    result
}

/// Tells how a thread has ended, in any case.
struct End {
    result: io::Result<()>,
    to: Sender<io::Result<()>>,
}

impl End {
    fn with(to: Sender<io::Result<()>>, carry: impl FnOnce() -> io::Result<()>) {
        let mut end = Self { result: Err(io::Error::other("a thread of the relay has panicked")), to };
        end.result = carry();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The other one may have been first.
        let _ = self.to.send(mem::replace(&mut self.result, Ok(())));
    }
}

/// The relay with what it wants to send, and where to.
struct Sides<CW, SW> {
    relay: Mutex<(Relay, Outgoing)>,
    to_client: Mutex<CW>,
    /// `None` when all is over.
    to_server: Mutex<Option<SW>>,
}

impl<CW: Write, SW: Write> Sides<CW, SW> {
    /// The client's bytes. The server gets its own first: it may have something to do meanwhile.
    fn carry_requests(&self, mut client: impl Read) -> io::Result<()> {
        let mut bytes = vec![0; PIECE];
        while let Some(length) = received(client.read(&mut bytes))? {
            self.take(|relay, out| relay.from_client(bytes.get(..length).unwrap_or_default(), Instant::now(), out));
            if !sent(self.send_to_server().and_then(|()| self.send_to_client()))? {
                break;
            }
        }
        Ok(())
    }

    /// The server's bytes. Nothing comes of them for the server, so it is not waited for here.
    fn carry_answers(&self, mut server: impl Read) -> io::Result<()> {
        let mut bytes = vec![0; PIECE];
        while let Some(length) = received(server.read(&mut bytes))? {
            self.take(|relay, out| relay.from_server(bytes.get(..length).unwrap_or_default(), Instant::now(), out));
            if !sent(self.send_to_client())? {
                break;
            }
        }
        Ok(())
    }

    fn take(&self, take: impl FnOnce(&mut Relay, &mut Outgoing)) {
        let (relay, out) = &mut *lock(&self.relay);
        take(relay, out);
    }

    fn send_to_client(&self) -> io::Result<()> {
        // Who has nothing to send does not wait for who has.
        if lock(&self.relay).1.client.is_empty() {
            return Ok(());
        }
        // Before the bytes are taken: two threads would send them in another order.
        let mut client = lock(&self.to_client);
        let bytes = mem::take(&mut lock(&self.relay).1.client);
        client.write_all(&bytes)?;
        client.flush()
    }

    fn send_to_server(&self) -> io::Result<()> {
        let bytes = mem::take(&mut lock(&self.relay).1.server);
        match &mut *lock(&self.to_server) {
            Some(server) if !bytes.is_empty() => server.write_all(&bytes).and_then(|()| server.flush()),
            _ => Ok(()),
        }
    }
}

/// How much has come; `None` at the end.
fn received(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(0) => Ok(None),
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is sent, or else its reader is gone.
fn sent(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_end(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn ends(stream: &UnixStream) -> (UnixStream, UnixStream) {
        (stream.try_clone().unwrap(), stream.try_clone().unwrap())
    }

    #[test]
    fn a_server_sees_that_the_client_is_gone() {
        let (client, client_end) = UnixStream::pair().unwrap();
        // As a program's standard input and output are: two pipes.
        let (mut input, input_end) = UnixStream::pair().unwrap();
        let (_output, output_end) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || run(ends(&client_end), (output_end, input_end)));
        (&client).write_all(b"+$k#6b").unwrap();
        client.shutdown(std::net::Shutdown::Both).unwrap();
        let mut got = Vec::new();
        input.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"+$k#6b");
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_sees_that_the_server_is_gone() {
        let (_client, client_end) = UnixStream::pair().unwrap();
        let (server, server_end) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || run(ends(&client_end), ends(&server_end)));
        drop(server);
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_can_still_interrupt() {
        let (mut client, client_end) = UnixStream::pair().unwrap();
        let (mut server, server_end) = UnixStream::pair().unwrap();
        thread::spawn(move || run(ends(&client_end), ends(&server_end)));
        let mut talk = server.try_clone().unwrap();
        thread::spawn(move || {
            // More than any socket takes.
            let text = b"$O41#d4".repeat(0x1_0000);
            while talk.write_all(&text).is_ok() {}
        });
        thread::sleep(std::time::Duration::from_millis(200));
        client.write_all(&[3]).unwrap();
        let mut byte = [0];
        server.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [3]);
    }
}
