//! The way to the agent of an emulated host: a line of the emulator's, and a local port whose connections it carries.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kvm_agent::{Capacity, LineClient};

use super::client::Client;

const POLL: Duration = Duration::from_millis(50);

/// An emulator that connects its line, and an agent in it that greets.
pub(super) struct Boot<'a> {
    /// For messages.
    pub(super) name: &'static str,
    pub(super) emulator: &'a mut Child,
    pub(super) timeout: Duration,
    pub(super) capacity: Capacity,
}

impl Boot<'_> {
    /// Waits for both. `accept` must not wait.
    ///
    /// # Errors
    /// If the emulator ends, something else comes, or nothing in time.
    pub(super) fn wait<R, W>(mut self, mut accept: impl FnMut() -> io::Result<(R, W)>) -> Result<LineClient>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let (reader, writer) = self.poll(deadline, || match accept() {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("waiting for the emulator's line"),
        })?;
        let (sender, receiver) = mpsc::channel();
        let capacity = self.capacity;
        // It ends with the emulator.
        thread::spawn(move || sender.send(LineClient::attach(reader, writer, capacity)));
        self.poll(deadline, || match receiver.try_recv() {
            Ok(line) => Ok(Some(line.context("waiting for the agent's greeting")?)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("nobody waits for the agent's greeting"),
        })
    }

    fn poll<T>(&mut self, deadline: Instant, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let name = self.name;
        loop {
            match (self.emulator.try_wait()?, look()) {
                (_, Ok(Some(found))) => return Ok(found),
                (Some(status), _) => bail!("{name} ended with {status}"),
                (None, Err(error)) => return Err(error),
                (None, Ok(None)) if Instant::now() > deadline => {
                    bail!("the agent in {name} did not greet within {} s", self.timeout.as_secs())
                }
                (None, Ok(None)) => thread::sleep(POLL),
            }
        }
    }
}

/// A client for the agent. It and its like in other processes connect to a local port, whose connections go over the line until that
/// ends.
///
/// # Errors
/// If there is no port.
pub(super) fn client(line: LineClient, token: String) -> Result<Client> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr()?.port()));
    let carrier = line.clone();
    thread::spawn(move || {
        for accepted in listener.incoming() {
            // A line that is down shows in the connection's end.
            let _: io::Result<()> = accepted.and_then(|stream: TcpStream| carrier.carry(stream));
        }
    });
    Ok(Client::new(address, token).with_line(line))
}
