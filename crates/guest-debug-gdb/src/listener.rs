//! Sockets to listen on, and the connections that come from them.
//!
//! A VMM that has other sockets can use them for those as well: a unix socket has mode 0600 before anybody can connect, a
//! stale socket file is replaced, and a live one never.

use crate::address::ListenAddress;
use crate::error::ServerError;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A socket that clients connect to, non-blocking.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket, with the file that it removes when it goes.
    Unix(UnixListener, SocketFile),
    /// TCP.
    Tcp(TcpListener),
}

/// A connection to a client, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// A unix socket's.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

impl Listener {
    /// Binds. A socket file that nobody listens on is replaced, anything else at its path is left alone.
    ///
    /// # Errors
    ///
    /// [`ServerError::SocketInUse`], [`ServerError::NotASocket`], and whatever the system answers.
    pub fn bind(address: &ListenAddress) -> Result<Self, ServerError> {
        match address {
            ListenAddress::Unix(path) => bind_unix(path),
            ListenAddress::Tcp(port) => {
                let open = || {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                };
                open().map(Self::Tcp).map_err(|source| ServerError::Tcp { port: *port, source })
            }
        }
    }

    /// The address, with the port that was found for port 0.
    pub fn address(&self) -> ListenAddress {
        match self {
            Self::Unix(_, file) => ListenAddress::Unix(file.path.clone()),
            Self::Tcp(listener) => ListenAddress::Tcp(listener.local_addr().map_or(0, |address| address.port())),
        }
    }

    /// The next connection, if one waits.
    ///
    /// # Errors
    ///
    /// Whatever keeps a connection that waits from being taken.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match self {
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        };
        match stream {
            Ok(stream) => {
                match &stream {
                    Stream::Unix(stream) => stream.set_nonblocking(true)?,
                    Stream::Tcp(stream) => {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                    }
                }
                Ok(Some(stream))
            }
            // The client was gone before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(listener, _) => listener.as_raw_fd(),
            Self::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file of a unix socket, removed with it, unless somebody else's is there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket in a directory that is private, gives it its mode there, and only then its name: nobody can
/// connect before the mode is right, and linking fails if the name is taken.
fn bind_unix(path: &Path) -> Result<Listener, ServerError> {
    let fail = |operation| move |source| ServerError::Socket { path: path.to_owned(), operation, source };
    let private = PrivateDirectory::beside(path).map_err(fail("making a private directory beside it"))?;
    let fresh = private.0.join("s");
    let listener = UnixListener::bind(&fresh).map_err(fail("binding"))?;
    listener.set_nonblocking(true).map_err(fail("setting it up"))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(fail("setting its mode"))?;
    let identity = identity(&fresh).map_err(fail("looking at it"))?;
    if let Err(error) = fs::hard_link(&fresh, path) {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(fail("naming it")(error));
        }
        remove_stale(path, &private)?;
        fs::hard_link(&fresh, path).map_err(fail("naming it"))?;
    }
    Ok(Listener::Unix(listener, SocketFile { path: path.to_owned(), identity }))
}

/// Takes a socket out of the way that nobody listens on.
fn remove_stale(path: &Path, private: &PrivateDirectory) -> Result<(), ServerError> {
    let fail = |operation| move |source| ServerError::Socket { path: path.to_owned(), operation, source };
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("looking at it")(error)),
    };
    if !file_type.is_socket() {
        return Err(ServerError::NotASocket(path.to_owned()));
    }
    if !is_stale(path).map_err(fail("connecting to what is there"))? {
        return Err(ServerError::SocketInUse(path.to_owned()));
    }
    // Between the look and the removal another server may have come up there. So it is moved first, and looked
    // at again where nobody else can change it.
    let aside = private.0.join("o");
    fs::rename(path, &aside).map_err(fail("replacing it"))?;
    if !is_stale(&aside).map_err(fail("connecting to what was there"))? {
        fs::hard_link(&aside, path).map_err(fail("putting it back"))?;
        return Err(ServerError::SocketInUse(path.to_owned()));
    }
    Ok(())
}

/// Whether nobody listens on this socket.
fn is_stale(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A directory of mode 0700, removed at the end with the two names that may be in it.
#[derive(Debug)]
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn beside(path: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = parent.join(format!(".gdb{:x}.{number:x}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&name) {
                Ok(()) => return Ok(Self(name)),
                // Left behind by a process of the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        for name in ["s", "o"] {
            let _ = fs::remove_file(self.0.join(name));
        }
        let _ = fs::remove_dir(&self.0);
    }
}
