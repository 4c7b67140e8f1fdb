//! Where a VM is sent to, and the connection to it.

use super::wire::failed;
use crate::error::VmError;
use guest_debug_gdb::{ListenAddress, Listener, Stream};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// What epoll tells of.
const SOURCE: u64 = 0;
const QUIT: u64 = 1;

/// How long a peer may neither send nor take anything.
const TIMEOUT: Duration = Duration::from_secs(60);

/// `unix:PATH`, `tcp:PORT` on 127.0.0.1, or `tcp:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A host by name or address, and a port.
    Tcp(String, u16),
}

impl FromStr for MigrationAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no address; it can be unix:PATH, tcp:PORT or tcp:HOST:PORT");
        if text.starts_with("unix:") {
            // One check of paths is enough.
            return match text.parse() {
                Ok(ListenAddress::Unix(path)) => Ok(Self::Unix(path)),
                Ok(ListenAddress::Tcp(_)) => Err(bad()),
                Err(error) => Err(error.to_string()),
            };
        }
        let place = text.strip_prefix("tcp:").ok_or_else(bad)?;
        let (host, port) = place.rsplit_once(':').unwrap_or(("127.0.0.1", place));
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match port.parse() {
            Ok(port) if !host.is_empty() => Ok(Self::Tcp(host.to_owned(), port)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for MigrationAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// A socket that one source connects to.
#[derive(Debug)]
pub struct MigrationListener(Listener);

impl MigrationListener {
    /// Opens the address. A unix socket gets mode 0600. TCP carries guest memory in the clear, to and from whoever is
    /// there.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`].
    pub fn bind(address: &MigrationAddress) -> Result<Self, VmError> {
        let listener = match address {
            MigrationAddress::Unix(path) => {
                Listener::bind(&ListenAddress::Unix(path.clone())).map_err(|error| failed(error.to_string()))
            }
            MigrationAddress::Tcp(host, port) => TcpListener::bind((host.as_str(), *port))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| Listener::Tcp(listener)))
                .map_err(|error| failed(format!("{address}: {error}"))),
        };
        listener.map(Self)
    }

    /// The address, with the port that was found for port 0.
    pub fn address(&self) -> MigrationAddress {
        match &self.0 {
            Listener::Unix(..) => match self.0.address() {
                ListenAddress::Unix(path) => MigrationAddress::Unix(path),
                ListenAddress::Tcp(port) => MigrationAddress::Tcp("127.0.0.1".to_owned(), port),
            },
            Listener::Tcp(listener) => {
                let address = listener.local_addr();
                address.map_or(MigrationAddress::Tcp(String::new(), 0), |address| {
                    MigrationAddress::Tcp(address.ip().to_string(), address.port())
                })
            }
        }
    }

    /// Waits for a source, and closes the socket to any other. `None` when `quit` becomes readable before.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`].
    pub fn accept(self, quit: &EventFd) -> Result<Option<Connection>, VmError> {
        let accept = || {
            let epoll = Epoll::new()?;
            for (fd, token) in [(self.0.as_raw_fd(), SOURCE), (quit.as_raw_fd(), QUIT)] {
                epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
            }
            let mut ready = [EpollEvent::default(); 2];
            loop {
                let count = match epoll.wait(-1, &mut ready) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    count => count?,
                };
                if ready.iter().take(count).any(|event| event.data() == QUIT) {
                    return Ok(None);
                }
                if let Some(stream) = self.0.accept()? {
                    return Connection::new(stream).map(Some);
                }
            }
        };
        accept().map_err(|error: io::Error| failed(format!("accepting a connection: {error}")))
    }
}

/// A connection to the other side.
#[derive(Debug)]
pub struct Connection(Stream);

impl Connection {
    /// Connects to a destination.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`].
    pub fn open(address: &MigrationAddress) -> Result<Self, VmError> {
        let stream = match address {
            MigrationAddress::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            MigrationAddress::Tcp(host, port) => TcpStream::connect((host.as_str(), *port)).map(Stream::Tcp),
        };
        stream.and_then(Self::new).map_err(|error| failed(format!("connecting to {address}: {error}")))
    }

    /// Uses this stream from now on.
    ///
    /// # Errors
    ///
    /// Whatever the system answers.
    pub fn new(stream: Stream) -> io::Result<Self> {
        match &stream {
            Stream::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
            }
            Stream::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
            }
        }
        Ok(Self(stream))
    }

    /// The same connection, for another thread.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`] when there is no descriptor left.
    pub fn try_clone(&self) -> Result<Self, VmError> {
        let stream = match &self.0 {
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
        };
        stream.map(Self).map_err(|error| failed(format!("duplicating the connection: {error}")))
    }

    /// Ends it for both sides, whoever is reading or writing.
    pub fn close(&self) {
        // It may be closed already, which is what is wanted.
        let _ = match &self.0 {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Stream::Unix(stream) => (&mut &*stream).write(buffer),
            Stream::Tcp(stream) => (&mut &*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |host: &str, port| Ok(MigrationAddress::Tcp(host.to_owned(), port));
        assert_eq!("tcp:5000".parse(), tcp("127.0.0.1", 5000));
        assert_eq!("tcp:host:5000".parse(), tcp("host", 5000));
        assert_eq!("tcp:[::1]:5000".parse(), tcp("::1", 5000));
        assert_eq!("unix:/x".parse(), Ok(MigrationAddress::Unix("/x".into())));
        for bad in ["", "/x", "unix:", "tcp:", "tcp:host:", "tcp::5000", "tcp:host:70000", "udp:1"] {
            assert!(bad.parse::<MigrationAddress>().is_err(), "{bad}");
        }
        for text in ["unix:/x", "tcp:127.0.0.1:5000", "tcp:[::1]:5000"] {
            assert_eq!(text.parse::<MigrationAddress>().unwrap().to_string(), text);
        }
    }
}
