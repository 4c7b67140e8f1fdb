//! Carries bytes between two sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use libc::{MSG_DONTWAIT, MSG_NOSIGNAL};
use socket2::SockRef;

use crate::protocol::Endpoint;

/// A connected socket of either family.
#[derive(Debug)]
pub enum Stream {
    /// TCP
    Tcp(TcpStream),
    /// Unix
    Unix(UnixStream),
}

impl Stream {
    /// Connects to a socket of this machine.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            Endpoint::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Writes what the socket takes without waiting.
    ///
    /// # Errors
    /// As [`Write::write`]; [`io::ErrorKind::WouldBlock`] if it is full.
    pub(crate) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        };
        socket.send_with_flags(bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
    }

    pub(crate) fn shutdown(&self, how: Shutdown) {
        // Fails only if the peer is gone already, which is what a shutdown is for.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(buffer),
            Stream::Unix(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Carries bytes both ways until both sides have finished, or one of them failed.
///
/// # Errors
/// Only if the sockets cannot be duplicated.
pub fn relay(left: Stream, right: Stream) -> io::Result<()> {
    let (left_reader, right_writer) = (left.try_clone()?, right.try_clone()?);
    let there = thread::spawn(move || pump(left_reader, right_writer));
    pump(right, left);
    let _ = there.join();
    Ok(())
}

fn pump(mut from: Stream, mut to: Stream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break to.shutdown(Shutdown::Write),
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break from.shutdown(Shutdown::Both);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A connection that was reset ends the other side as well.
            Err(_) => break to.shutdown(Shutdown::Both),
        }
    }
}
