//! Where the server listens, as a user writes it.

use crate::error::AddressError;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;

/// Room for a path in `struct sockaddr_un`, less the NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// An address to listen on: `unix:PATH`, or `tcp:PORT` on 127.0.0.1.
///
/// ```
/// use guest_debug_gdb::ListenAddress;
///
/// let address: ListenAddress = "unix:/run/vm/gdb.sock".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/vm/gdb.sock");
/// assert!("tcp:0.0.0.0:1234".parse::<ListenAddress>().is_err());
/// # Ok::<(), guest_debug_gdb::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket at this path, for its owner only.
    Unix(PathBuf),
    /// A port on 127.0.0.1; 0 for any that is free. Every user of the machine can connect to it.
    Tcp(u16),
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            check_path(&path)?;
            return Ok(Self::Unix(path));
        }
        if let Some(port) = text.strip_prefix("tcp:") {
            let all_digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|_| all_digits);
            return port.map(Self::Tcp).ok_or_else(|| AddressError::BadPort(text.to_owned()));
        }
        Err(AddressError::UnknownScheme(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
        }
    }
}

fn check_path(path: &std::path::Path) -> Result<(), AddressError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(AddressError::EmptyPath);
    }
    if bytes.contains(&0) {
        return Err(AddressError::NulInPath);
    }
    if bytes.len() > MAX_SOCKET_PATH {
        return Err(AddressError::PathTooLong { length: bytes.len(), limit: MAX_SOCKET_PATH });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_address_has_its_error() {
        let error = |text: &str| text.parse::<ListenAddress>().expect_err(text);
        assert_eq!(error("localhost:1234"), AddressError::UnknownScheme("localhost:1234".to_owned()));
        assert_eq!(error("unix:"), AddressError::EmptyPath);
        assert_eq!(error("unix:/a\0b"), AddressError::NulInPath);
        let long = format!("unix:/{}", "a".repeat(107));
        assert_eq!(error(&long), AddressError::PathTooLong { length: 108, limit: 107 });
        for port in ["tcp:", "tcp:65536", "tcp:+1", "tcp:-1", "tcp:127.0.0.1:1", "tcp: 1"] {
            assert_eq!(error(port), AddressError::BadPort(port.to_owned()));
        }
    }

    #[test]
    fn right_addresses_are_printed_as_they_were_written() {
        for text in ["unix:gdb.sock", "unix:/tmp/x y", "tcp:0", "tcp:65535"] {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
    }
}
