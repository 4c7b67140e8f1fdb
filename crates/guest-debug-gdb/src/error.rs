//! What can go wrong before a client is served.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why the server could not be started, or could not go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A server that is alive listens on that socket.
    #[error("{}: a server is listening there already", .0.display())]
    SocketInUse(PathBuf),
    /// Something that is not a socket is in the way; it is not touched.
    #[error("{}: exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("{}: {operation}: {source}", .path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What was done with it.
        operation: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The TCP port on 127.0.0.1 could not be opened.
    #[error("127.0.0.1:{port}: {source}")]
    Tcp {
        /// The port.
        port: u16,
        /// What the system answered.
        source: io::Error,
    },
    /// Waiting for events failed.
    #[error("{operation}: {source}")]
    Events {
        /// What was done.
        operation: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

/// Why a text is not an address to listen on.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// It begins with neither `unix:` nor `tcp:`.
    #[error("\"{0}\" is not an address: unix:PATH or tcp:PORT")]
    UnknownScheme(String),
    /// There is no path behind `unix:`.
    #[error("unix: needs a path behind it")]
    EmptyPath,
    /// A socket's path has a limit, which the kernel sets.
    #[error("a socket's path may have {limit} bytes, this one has {length}")]
    PathTooLong {
        /// Length of the path.
        length: usize,
        /// Greatest length.
        limit: usize,
    },
    /// A path can't hold a NUL byte.
    #[error("a socket's path can't hold a NUL byte")]
    NulInPath,
    /// What is behind `tcp:` is not a port.
    #[error("\"{0}\" is not a TCP port: 0 to 65535; the host is always 127.0.0.1")]
    BadPort(String),
}
