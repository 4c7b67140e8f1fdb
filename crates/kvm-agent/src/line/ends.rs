//! The two ends of the line.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Capacity;
use super::channel::{Channel, Errand};
use super::packet::{Body, Packet};
use crate::protocol::{Endpoint, ProtocolError};
use crate::relay::Stream;

/// What the agent says first.
const GREETING: &[u8] = b"kvm-agent: line 2\n";
/// Most bytes in front of it: a machine may print something while it starts.
const NOISE: usize = 64 << 10;

/// One end.
struct Line {
    capacity: Capacity,
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

/// Serves the line: each channel is a connection to `server`, or to the socket that it names.
///
/// # Errors
/// When the line ends, and why.
pub fn serve_line(
    reader: impl Read,
    writer: impl Write + Send + 'static,
    capacity: Capacity,
    server: SocketAddr,
) -> Result<(), ProtocolError> {
    let line = Arc::new(Line::new(writer, capacity));
    {
        let mut writer = line.writer();
        writer.write_all(GREETING)?;
        writer.flush()?;
    }
    line.receive(reader, |line, number, endpoint| {
        let Some(endpoint) = endpoint else {
            return match TcpStream::connect(server) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    Ok(line.start(number, Stream::Tcp(socket), None)?)
                }
                // A server that is gone is no reason to end the others.
                Err(_) => Ok(line.send(number, Body::Reset)?),
            };
        };
        // Whoever listens there may take its time.
        let line = Arc::clone(line);
        thread::spawn(move || match Stream::connect(&endpoint) {
            Ok(socket) => line.start(number, socket, Some(Body::Opened)),
            Err(error) => line.send(number, Body::Refused(format!("{endpoint:?}: {error}"))),
        });
        Ok(())
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
        capacity: Capacity,
    ) -> Result<Self, ProtocolError> {
        wait_for_greeting(&mut reader)?;
        let line = Arc::new(Line::new(writer, capacity));
        let receiving = Arc::clone(&line);
        thread::spawn(move || {
            // Whoever has a connection sees it end.
            let _ = receiving.receive(reader, |_, _, _| Err(ProtocolError::Malformed("channel: the agent opens none")));
        });
        Ok(Self(line))
    }

    /// Carries a connection to the agent's server from now on.
    ///
    /// # Errors
    /// If the line is down, or has as many connections as there are numbers.
    pub fn carry(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        self.0.start(self.0.free_number()?, Stream::Tcp(socket), Some(Body::Open(None)))
    }

    /// Carries a connection to a socket of the agent's machine from now on.
    ///
    /// # Errors
    /// As [`LineClient::carry`], and what the agent says if it cannot connect.
    pub fn connect(&self, socket: TcpStream, endpoint: Endpoint) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let number = self.0.free_number()?;
        let (opening, answer) = mpsc::channel();
        let (channel, received) = Channel::new(Stream::Tcp(socket), self.0.capacity, Some(opening));
        // It is known before the answer can come, and what comes behind that.
        let channel = self.0.insert(number, channel)?;
        let opened = self.0.send(number, Body::Open(Some(endpoint))).and_then(|()| match answer.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(text)) => Err(io::Error::new(io::ErrorKind::ConnectionRefused, text)),
            Err(_) => Err(io::ErrorKind::NotConnected.into()),
        });
        if let Err(error) = opened {
            self.0.channels().open.remove(&number);
            return Err(error);
        }
        self.0.run(number, channel, received);
        Ok(())
    }
}

impl Line {
    fn new(writer: impl Write + Send + 'static, capacity: Capacity) -> Self {
        Self { capacity, writer: Mutex::new(Box::new(writer)), channels: Mutex::default() }
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
    fn start(self: &Arc<Self>, number: u16, socket: Stream, first: Option<Body>) -> io::Result<()> {
        let (channel, received) = Channel::new(socket, self.capacity, None);
        let channel = self.insert(number, channel)?;
        if let Some(first) = first
            && let Err(error) = self.send(number, first)
        {
            self.channels().open.remove(&number);
            return Err(error);
        }
        self.run(number, channel, received);
        Ok(())
    }

    fn insert(&self, number: u16, channel: Channel) -> io::Result<Arc<Channel>> {
        let channel = Arc::new(channel);
        let mut channels = self.channels();
        if channels.down {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if channels.open.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        channels.open.insert(number, Arc::clone(&channel));
        Ok(channel)
    }

    /// On threads of its own, until it has ended.
    fn run(self: &Arc<Self>, number: u16, channel: Arc<Channel>, received: Receiver<Errand>) {
        let line = Arc::clone(self);
        thread::spawn(move || {
            thread::scope(|scope| {
                scope.spawn(|| channel.read_socket(|body| line.send(number, body)));
                channel.write_socket(&received, |body| line.send(number, body));
            });
            line.channels().open.remove(&number);
        });
    }

    /// Hands out what comes, until the line ends. Never waits for a socket. The client's end does not send here either: if both
    /// did, they could wait for each other.
    fn receive(
        self: &Arc<Self>,
        reader: impl Read,
        open: impl Fn(&Arc<Self>, u16, Option<Endpoint>) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        let mut reader = BufReader::with_capacity(self.capacity.chunk(), reader);
        let ended = loop {
            let received = Packet::read(&mut reader, self.capacity).and_then(|Packet { channel: number, body }| {
                let channel = self.channels().open.get(&number).cloned();
                match (channel, body) {
                    (Some(channel), body) => channel.receive(body),
                    (None, Body::Open(endpoint)) => open(self, number, endpoint),
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
