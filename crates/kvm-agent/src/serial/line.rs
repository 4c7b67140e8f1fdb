//! The two ends of the line.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::channel::Channel;
use super::packet::{Body, Packet};
use crate::protocol::ProtocolError;

/// What the agent says first.
const GREETING: &[u8] = b"kvm-agent: line 1\n";
/// Most bytes in front of it: a machine may print something while it starts.
const NOISE: usize = 64 << 10;

/// One end.
struct Line {
    writer: Mutex<Box<dyn Write + Send>>,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    open: BTreeMap<u16, Arc<Channel>>,
    /// The number of the client's next one. It comes back after 65,536 others.
    next: u16,
    /// Nothing comes any more.
    down: bool,
}

/// The end that opens channels.
#[derive(Clone)]
pub struct LineClient(Arc<Line>);

/// Serves the line: each channel is a connection to `server`.
///
/// # Errors
/// When the line ends, and why.
pub fn serve_line(
    reader: impl Read,
    writer: impl Write + Send + 'static,
    server: SocketAddr,
) -> Result<(), ProtocolError> {
    let line = Arc::new(Line::new(writer));
    {
        let mut writer = line.writer();
        writer.write_all(GREETING)?;
        writer.flush()?;
    }
    line.receive(reader, |line, number| {
        match TcpStream::connect(server) {
            Ok(socket) => Ok(line.start(number, socket, None)?),
            // A server that is gone is no reason to end the others.
            Err(_) => Ok(line.send(number, Body::Reset)?),
        }
    })
}

impl LineClient {
    /// Waits for the agent's greeting, and takes the line over.
    ///
    /// # Errors
    /// If the line ends before, or something else comes.
    pub fn attach(
        mut reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<Self, ProtocolError> {
        wait_for_greeting(&mut reader)?;
        let line = Arc::new(Line::new(writer));
        let receiving = Arc::clone(&line);
        thread::spawn(move || {
            // Whoever has a connection sees it end.
            let _ = receiving.receive(reader, |_, _| Err(ProtocolError::Malformed("channel: the agent opens none")));
        });
        Ok(Self(line))
    }

    /// Carries a connection over the line from now on.
    ///
    /// # Errors
    /// If the line is down, or has as many connections as there are numbers.
    pub fn carry(&self, socket: TcpStream) -> io::Result<()> {
        let number = self.0.free_number()?;
        self.0.start(number, socket, Some(Body::Open))
    }
}

impl Line {
    fn new(writer: impl Write + Send + 'static) -> Self {
        Self { writer: Mutex::new(Box::new(writer)), channels: Mutex::default() }
    }

    fn send(&self, channel: u16, body: Body) -> io::Result<()> {
        Packet { channel, body }.write(&mut *self.writer())
    }

    fn free_number(&self) -> io::Result<u16> {
        let mut channels = self.channels();
        for _ in 0..=u16::MAX {
            let number = channels.next;
            channels.next = number.wrapping_add(1);
            if !channels.open.contains_key(&number) {
                return Ok(number);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Begins to carry a connection; the peer is told `first`, and can answer at once.
    fn start(self: &Arc<Self>, number: u16, socket: TcpStream, first: Option<Body>) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let (channel, received) = Channel::new(socket);
        let channel = Arc::new(channel);
        {
            let mut channels = self.channels();
            if channels.down {
                return Err(io::ErrorKind::NotConnected.into());
            }
            channels.open.insert(number, Arc::clone(&channel));
        }
        if let Some(first) = first
            && let Err(error) = self.send(number, first)
        {
            self.channels().open.remove(&number);
            return Err(error);
        }
        let line = Arc::clone(self);
        thread::spawn(move || {
            thread::scope(|scope| {
                scope.spawn(|| channel.read_socket(|body| line.send(number, body)));
                channel.write_socket(&received, |body| line.send(number, body));
            });
            line.channels().open.remove(&number);
        });
        Ok(())
    }

    /// Hands out what comes, until the line ends. Never waits for a socket. The client's end does not send here either: if both
    /// did, they could wait for each other.
    fn receive(
        self: &Arc<Self>,
        reader: impl Read,
        open: impl Fn(&Arc<Self>, u16) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        let mut reader = BufReader::new(reader);
        let ended = loop {
            let received = Packet::read(&mut reader).and_then(|Packet { channel: number, body }| {
                let channel = self.channels().open.get(&number).cloned();
                match (channel, body) {
                    (Some(channel), body) => channel.receive(body),
                    (None, Body::Open) => open(self, number),
                    // It is gone here, and the peer has not heard of that yet.
                    (None, _) => Ok(()),
                }
            });
            if let Err(error) = received {
                break error;
            }
        };
        let mut channels = self.channels();
        channels.down = true;
        channels.open.values().for_each(|channel| channel.close());
        Err(ended)
    }

    fn writer(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_for_greeting(reader: &mut impl Read) -> Result<(), ProtocolError> {
    let mut last = [0; GREETING.len()];
    for _ in 0..NOISE {
        last.copy_within(1.., 0);
        reader.read_exact(&mut last[GREETING.len() - 1..])?;
        if last == GREETING {
            return Ok(());
        }
    }
    Err(ProtocolError::Malformed("greeting: something else came"))
}
