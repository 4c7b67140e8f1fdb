//! Accepts connections and serves one request on each.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::exec;
use crate::protocol::{CHUNK, Kind, ProtocolError, Request, VERSION, decode_hello, read_frame, write_frame};
use crate::relay::{Stream, relay};

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What a client has to present.
    pub token: String,
    /// Commands die with this process (through util-linux's `setpriv`). Not needed where the whole machine ends with it.
    pub commands_die_with_agent: bool,
    /// How long a client may take to say who it is; `None` where nobody but the client can connect, or where this machine's time
    /// runs ahead of the client's.
    pub hello_timeout: Option<Duration>,
}

impl ServerConfig {
    /// For a machine that others can reach, and that outlives its server if it likes.
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into(), commands_die_with_agent: false, hello_timeout: Some(Duration::from_secs(10)) }
    }
}

/// Serves connections for ever, each on its own thread.
///
/// # Errors
/// Only if the listening socket fails.
pub fn serve(listener: &TcpListener, config: ServerConfig) -> io::Result<()> {
    let config = Arc::new(config);
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let config = Arc::clone(&config);
        thread::spawn(move || {
            // The client sees the connection end; nobody else is there to be told.
            let _ = connection(stream, &config);
        });
    }
}

fn connection(mut stream: TcpStream, config: &ServerConfig) -> Result<(), ProtocolError> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(config.hello_timeout)?;
    let Some(hello) = read_frame(&mut stream)? else { return Ok(()) };
    if hello.kind != Kind::Hello {
        return Err(ProtocolError::Unexpected(hello.kind));
    }
    let (version, token) = decode_hello(&hello.payload)?;
    if version != VERSION || token != config.token {
        return write_frame(&mut stream, Kind::Error, b"wrong version or token");
    }
    write_frame(&mut stream, Kind::Ok, &[])?;
    stream.set_read_timeout(None)?;

    let Some(frame) = read_frame(&mut stream)? else { return Ok(()) };
    let request = match Request::decode(&frame) {
        Ok(request) => request,
        Err(error) => return write_frame(&mut stream, Kind::Error, error.to_string().as_bytes()),
    };
    match request {
        Request::Exec(command) => exec::run(&stream, &command, config.commands_die_with_agent),
        Request::Put { path, mode } => {
            let result = put(&mut stream, Path::new(&path), mode)?;
            answer(&mut stream, &path, result.map(|()| Vec::new()))
        }
        Request::Import { path, mode, device, offset, length } => {
            let result = import(Path::new(&path), mode, &device, offset, length);
            answer(&mut stream, &path, result.map(|()| Vec::new()))
        }
        Request::Get { path } => get(&mut stream, &path),
        Request::Stat { path } => {
            let size = fs::metadata(&path).map(|metadata| metadata.len().to_le_bytes().to_vec());
            answer(&mut stream, &path, size)
        }
        Request::Connect(endpoint) => match Stream::connect(&endpoint) {
            Ok(socket) => {
                write_frame(&mut stream, Kind::Ok, &[])?;
                Ok(relay(Stream::Tcp(stream), socket)?)
            }
            Err(error) => write_frame(&mut stream, Kind::Error, format!("{endpoint:?}: {error}").as_bytes()),
        },
    }
}

fn answer(stream: &mut TcpStream, path: &str, result: io::Result<Vec<u8>>) -> Result<(), ProtocolError> {
    match result {
        Ok(payload) => write_frame(stream, Kind::Ok, &payload),
        Err(error) => write_frame(stream, Kind::Error, format!("{path}: {error}").as_bytes()),
    }
}

/// Receives a file. All of it is read even when writing fails, so that the client hears the reason.
fn put(stream: &mut TcpStream, path: &Path, mode: u32) -> Result<io::Result<()>, ProtocolError> {
    let mut upload = Upload::start(path, mode);
    loop {
        let frame = read_frame(stream)?.ok_or(ProtocolError::Malformed("upload: connection closed before its end"))?;
        match frame.kind {
            Kind::Data => {
                if let Ok(open) = &mut upload
                    && let Err(error) = open.file.write_all(&frame.payload)
                {
                    upload = Err(error);
                }
            }
            Kind::End => return Ok(upload.and_then(|upload| upload.finish(path, mode))),
            other => return Err(ProtocolError::Unexpected(other)),
        }
    }
}

fn import(path: &Path, mode: u32, device: &str, offset: u64, length: u64) -> io::Result<()> {
    let mut upload = Upload::start(path, mode)?;
    let mut disk = File::open(device)?;
    disk.seek(SeekFrom::Start(offset))?;
    if io::copy(&mut disk.take(length), &mut upload.file)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    upload.finish(path, mode)
}

/// A file that has another name until it is complete, because its presence means that it need not be sent again.
struct Upload {
    file: File,
    partial: PathBuf,
}

impl Upload {
    fn start(path: &Path, mode: u32) -> io::Result<Self> {
        static UPLOADS: AtomicU64 = AtomicU64::new(0);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".part{}", UPLOADS.fetch_add(1, Ordering::Relaxed)));
        let partial = PathBuf::from(partial);
        let file = File::options().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        Ok(Self { file, partial })
    }

    fn finish(self, path: &Path, mode: u32) -> io::Result<()> {
        // What it was opened with went through the umask.
        self.file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&self.partial, path)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // It has its name by now, or it is of no use.
        let _ = fs::remove_file(&self.partial);
    }
}

fn get(stream: &mut TcpStream, path: &str) -> Result<(), ProtocolError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return write_frame(stream, Kind::Error, format!("{path}: {error}").as_bytes()),
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return write_frame(stream, Kind::End, &[]),
            Ok(length) => write_frame(stream, Kind::Data, &buffer[..length])?,
            Err(error) => return write_frame(stream, Kind::Error, format!("{path}: {error}").as_bytes()),
        }
    }
}
