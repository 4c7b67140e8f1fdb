//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support")]

pub mod mock;

use guest_debug_gdb::{GdbServer, ListenAddress, ServerOptions};
use mock::MockVm;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A directory of the test's own, removed at its end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("guest-debug-gdb.{}.{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says that a test was skipped. Past libtest, which would keep it to itself.
pub fn skipped(reason: &str) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {reason}", test.name().unwrap_or("a test"));
}

/// What the real gdb prints for these commands to the server at this socket, or `None` if it is not installed.
pub fn gdb_at(path: &Path, commands: &[impl AsRef<str>]) -> Option<String> {
    if Command::new("gdb-multiarch").arg("--version").output().is_err() {
        skipped("gdb-multiarch is not installed");
        return None;
    }
    let mut gdb = Command::new("timeout");
    gdb.args(["60", "gdb-multiarch", "-nx", "-batch", "-ex", "set pagination off"]);
    gdb.arg("-ex").arg(format!("target remote {}", path.display()));
    gdb.args(commands.iter().flat_map(|command| ["-ex", command.as_ref()]));
    let output = gdb.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    // Said to whoever debugs a machine without a program.
    Some(text.replace("warning: No executable has been specified", ""))
}

/// A server in a thread of its own, shut down at the end.
pub struct Server {
    pub path: PathBuf,
    shutdown: EventFd,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Server {
    pub fn start(vm: MockVm) -> Self {
        Self::with_options(vm, ServerOptions::default())
    }

    pub fn with_options(vm: MockVm, options: ServerOptions) -> Self {
        let directory = TempDir::new();
        let path = directory.0.join("gdb");
        let server = GdbServer::bind_with(&ListenAddress::Unix(path.clone()), options).unwrap();
        let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
        let theirs = shutdown.try_clone().unwrap();
        let thread = std::thread::spawn(move || server.run(vm, theirs).unwrap());
        Self { path, shutdown, thread: Some(thread), _directory: directory }
    }

    pub fn connect(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the server panicked");
            assert!(!self.path.exists(), "the socket was left behind");
        }
    }
}

/// A small client of the remote serial protocol.
pub struct Client {
    pub stream: UnixStream,
    buffer: Vec<u8>,
    acknowledge: bool,
    /// What came in front of the last packet.
    notification: Option<String>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, buffer: Vec::new(), acknowledge: true, notification: None }
    }

    /// As gdb begins: features, no acknowledgements.
    pub fn greet(mut self) -> Self {
        assert!(self.ask("qSupported:multiprocess+;swbreak+;hwbreak+").contains("QStartNoAckMode+"));
        self.without_acknowledgements()
    }

    pub fn without_acknowledgements(mut self) -> Self {
        assert_eq!(self.ask("QStartNoAckMode"), "OK");
        self.acknowledge = false;
        self
    }

    pub fn send(&mut self, body: &str) {
        self.send_bytes(body.as_bytes());
    }

    pub fn send_bytes(&mut self, body: &[u8]) {
        let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let mut packet = b"$".to_vec();
        packet.extend_from_slice(body);
        packet.extend_from_slice(format!("#{sum:02x}").as_bytes());
        self.stream.write_all(&packet).unwrap();
    }

    /// The next packet, its run-length encoding undone; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<String> {
        self.receive_bytes().map(|body| String::from_utf8(body).unwrap())
    }

    /// The notification in front of the last packet.
    pub fn notification(&self) -> Option<String> {
        self.notification.clone()
    }

    fn receive_bytes(&mut self) -> Option<Vec<u8>> {
        self.notification = None;
        loop {
            let hash = self.buffer.iter().position(|byte| *byte == b'#');
            if let (Some(b'%'), Some(hash)) = (self.buffer.first(), hash)
                && self.buffer.len() >= hash + 3
            {
                self.notification = Some(String::from_utf8(self.buffer[1..hash].to_vec()).unwrap());
                self.buffer.drain(..hash + 3);
            }
            let start = self.buffer.iter().position(|byte| *byte == b'$');
            let hash = self.buffer.iter().position(|byte| *byte == b'#');
            if let (Some(start), Some(hash)) = (start, hash)
                && self.buffer.len() >= hash + 3
            {
                let body = self.buffer[start + 1..hash].to_vec();
                let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(&self.buffer[hash + 1..hash + 3], format!("{sum:02x}").as_bytes());
                self.buffer.drain(..hash + 3);
                if self.acknowledge {
                    // The server may have said goodbye with this answer.
                    let _ = self.stream.write_all(b"+");
                }
                return Some(expand(&body));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    pub fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.receive().expect("the connection was closed")
    }

    /// The same, for an answer that is no text.
    pub fn ask_bytes(&mut self, body: &str) -> Vec<u8> {
        self.send(body);
        self.receive_bytes().expect("the connection was closed")
    }

    /// Bytes without a frame.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Ctrl-C.
    pub fn interrupt(&mut self) {
        self.raw(&[3]);
    }

    /// target.xml, read as gdb reads it.
    pub fn description(&mut self) -> String {
        let mut xml = String::new();
        loop {
            let answer = self.ask(&format!("qXfer:features:read:target.xml:{:x},ffb", xml.len()));
            match answer.split_at(1) {
                ("m", more) => xml.push_str(more),
                ("l", more) => return xml + more,
                _ => panic!("{answer}"),
            }
        }
    }

    /// A monitor command's output.
    pub fn monitor(&mut self, command: &str) -> String {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(&format!("qRcmd,{hex}"));
        let mut text = String::new();
        loop {
            let answer = self.receive().expect("the connection was closed");
            match answer.strip_prefix('O') {
                Some("K") => return text,
                Some(hex) => text.push_str(&String::from_utf8(unhex(hex)).unwrap()),
                None => panic!("{answer}"),
            }
        }
    }
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len() % 2, 0, "{digits}");
    (0..digits.len()).step_by(2).map(|n| u8::from_str_radix(&digits[n..n + 2], 16).unwrap()).collect()
}

fn expand(body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' => {
                let last = *text.last().unwrap();
                let count = usize::from(bytes.next().unwrap() - 29);
                text.extend(std::iter::repeat_n(last, count));
            }
            b'}' => text.push(bytes.next().unwrap() ^ 0x20),
            byte => text.push(*byte),
        }
    }
    text
}

/// Waits until something is so; panics after ten seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}
