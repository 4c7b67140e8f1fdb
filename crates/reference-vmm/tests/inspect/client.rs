//! A bare client of the gdb protocol, and the snapshot that it talks to.

use guest_debug_gdb::{GdbServer, ListenAddress};
use reference_vmm::inspect;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempdir::TempDir;

/// A snapshot that is served until this is dropped.
pub struct Served {
    pub socket: PathBuf,
    shutdown: EventFd,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Served {
    pub fn start(snapshot: &Path) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.as_path().join("gdb");
        let frozen = inspect::open(snapshot).unwrap();
        let server = GdbServer::bind(&ListenAddress::Unix(socket.clone())).unwrap();
        let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
        let theirs = shutdown.try_clone().unwrap();
        let thread = thread::spawn(move || frozen.serve(server, theirs).unwrap());
        Self { socket, shutdown, thread: Some(thread), _directory: directory }
    }

    /// A client that has greeted.
    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut client = Client { stream, buffer: Vec::new() };
        assert!(client.ask("qSupported:multiprocess+;swbreak+;hwbreak+").contains("QStartNoAckMode+"));
        assert_eq!(client.ask("QStartNoAckMode"), "OK");
        client
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.write(1).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn ask(&mut self, body: &str) -> String {
        let sum = body.bytes().fold(0u8, u8::wrapping_add);
        self.stream.write_all(format!("${body}#{sum:02x}").as_bytes()).unwrap();
        self.receive().unwrap()
    }

    /// The next packet, its run-length encoding undone; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<String> {
        loop {
            let find = |byte| self.buffer.iter().position(|found| *found == byte);
            if let (Some(start), Some(hash)) = (find(b'$'), find(b'#'))
                && self.buffer.len() >= hash + 3
            {
                let body = expand(&self.buffer[start + 1..hash]);
                self.buffer.drain(..hash + 3);
                return Some(body);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).unwrap() {
                0 => return None,
                length => self.buffer.extend_from_slice(&bytes[..length]),
            }
        }
    }

    /// What a monitor command shows.
    pub fn monitor(&mut self, command: &str) -> String {
        let mut answer = self.ask(&format!("qRcmd,{}", hex::encode(command)));
        let mut text = String::new();
        while answer != "OK" {
            text += &console(&answer);
            answer = self.receive().unwrap();
        }
        text
    }
}

/// The text of an `O` packet.
pub fn console(packet: &str) -> String {
    String::from_utf8(hex::decode(packet.strip_prefix('O').unwrap()).unwrap()).unwrap()
}

fn expand(body: &[u8]) -> String {
    let mut text = Vec::new();
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' => {
                let last = *text.last().unwrap();
                let count = usize::from(bytes.next().unwrap() - 29);
                text.extend(std::iter::repeat_n(last, count));
            }
            byte => text.push(*byte),
        }
    }
    String::from_utf8(text).unwrap()
}
