//! Speaks to the agent: one connection for each request.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use kvm_agent::{
    Command, Endpoint, Exit, Frame, Kind, LineClient, ProtocolError, Request, Stream, decode_exit, encode_hello,
    read_frame, relay, write_frame,
};

/// How long an agent may take to answer the hello. An emulated host that is busy takes its time.
const HELLO: Duration = Duration::from_secs(20);

/// The slowest test takes a minute on a busy machine.
const SILENCE: Duration = Duration::from_secs(300);

/// Where the agent is.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    token: String,
    /// What its connections are carried over, where that is ours.
    line: Option<LineClient>,
    /// How long the answer to the hello may take.
    pub(super) patience: Duration,
    /// How long a command that somebody waits for may print nothing.
    pub(super) silence: Duration,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Client {
    pub(super) fn new(address: SocketAddr, token: String) -> Self {
        Self { address, token, line: None, patience: HELLO, silence: SILENCE }
    }

    pub(super) fn with_line(self, line: LineClient) -> Self {
        Self { line: Some(line), ..self }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Whether the agent answers.
    pub(super) fn ping(&self) -> Result<()> {
        self.hello(self.patience).map(drop)
    }

    /// A connection that the agent has accepted.
    pub(super) fn hello(&self, timeout: Duration) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        write_frame(&mut stream, Kind::Hello, &encode_hello(&self.token))?;
        expect_ok(&mut stream).context("no answer to the hello")?;
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    fn request(&self, request: &Request) -> Result<TcpStream> {
        let mut stream = self.hello(self.patience).context("the KVM host does not answer")?;
        let frame = request.encode();
        write_frame(&mut stream, frame.kind, &frame.payload)?;
        Ok(stream)
    }

    /// Starts a command; the connection carries its output.
    pub(super) fn exec(&self, command: &Command) -> Result<TcpStream> {
        let mut stream = self.request(&Request::Exec(command.clone()))?;
        expect_ok(&mut stream)?;
        Ok(stream)
    }

    /// The same, for one that must not hang. It is killed when the connection ends.
    fn exec_impatiently(&self, command: &Command) -> Result<TcpStream> {
        let stream = self.exec(command)?;
        stream.set_read_timeout(Some(self.silence))?;
        Ok(stream)
    }

    pub(super) fn run(&self, command: &Command) -> Result<Exit> {
        let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
        follow(&mut self.exec_impatiently(command)?, |kind, bytes| {
            if kind == Kind::Stdout {
                stdout.write_all(bytes)?;
                stdout.flush()
            } else {
                stderr.write_all(bytes)
            }
        })
    }

    pub(super) fn output(&self, command: &Command) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = follow(&mut self.exec_impatiently(command)?, |kind, bytes| {
            if kind == Kind::Stdout { &mut stdout } else { &mut stderr }.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Output { exit, stdout, stderr })
    }

    /// Size of a file in bytes, `None` if it is not there.
    pub(super) fn size(&self, path: &str) -> Result<Option<u64>> {
        let frame = next(&mut self.request(&Request::Stat { path: path.to_owned() })?)?;
        Ok((frame.kind == Kind::Ok).then(|| frame.payload.try_into().map(u64::from_le_bytes).unwrap_or_default()))
    }

    /// Makes a file from a piece of a disk of the host.
    pub(super) fn import(&self, path: &str, mode: u32, device: &str, (offset, length): (u64, u64)) -> Result<()> {
        let (path, device) = (path.to_owned(), device.to_owned());
        let mut stream = self.request(&Request::Import { path, mode, device, offset, length })?;
        expect_ok(&mut stream).map(drop)
    }

    pub(super) fn get(&self, path: &str) -> Result<Vec<u8>> {
        let mut stream = self.request(&Request::Get { path: path.to_owned() })?;
        let mut content = Vec::new();
        loop {
            let frame = next(&mut stream)?;
            match frame.kind {
                Kind::Data => content.extend(frame.payload),
                Kind::End => return Ok(content),
                _ => return Err(refusal(&frame)),
            }
        }
    }

    pub(super) fn connect(&self, endpoint: &Endpoint) -> Result<TcpStream> {
        let mut stream = self.request(&Request::Connect(endpoint.clone()))?;
        expect_ok(&mut stream)?;
        Ok(stream)
    }

    /// Carries a connection to that socket: as directly as can be, since a debugger's packets go this way one by one.
    pub(super) fn carry(&self, local: TcpStream, endpoint: &Endpoint) -> Result<()> {
        local.set_nodelay(true)?;
        match &self.line {
            Some(line) => Ok(line.connect(local, endpoint.clone())?),
            None => Ok(relay(Stream::Tcp(local), Stream::Tcp(self.connect(endpoint)?))?),
        }
    }
}

/// Hands on a command's output until it has ended.
pub(super) fn follow(stream: &mut TcpStream, mut sink: impl FnMut(Kind, &[u8]) -> io::Result<()>) -> Result<Exit> {
    loop {
        let frame = next(stream)?;
        match frame.kind {
            Kind::Stdout | Kind::Stderr => sink(frame.kind, &frame.payload).context("cannot write the output")?,
            Kind::Exit => return Ok(decode_exit(&frame.payload)?),
            _ => return Err(refusal(&frame)),
        }
    }
}

fn next(stream: &mut TcpStream) -> Result<Frame> {
    match read_frame(stream) {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => bail!("the KVM host closed the connection"),
        Err(ProtocolError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            let seconds = stream.read_timeout().ok().flatten().unwrap_or_default().as_secs();
            bail!("nothing has come from the KVM host for {seconds} s")
        }
        Err(error) => Err(error.into()),
    }
}

fn expect_ok(stream: &mut TcpStream) -> Result<Frame> {
    let frame = next(stream)?;
    if frame.kind == Kind::Ok { Ok(frame) } else { Err(refusal(&frame)) }
}

fn refusal(frame: &Frame) -> anyhow::Error {
    match frame.kind {
        Kind::Error => anyhow!("KVM host: {}", String::from_utf8_lossy(&frame.payload)),
        kind => anyhow!("the KVM host sent an unexpected {kind:?} frame"),
    }
}
