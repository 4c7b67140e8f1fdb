//! Runs one command for one connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::protocol::{
    CHUNK, Command, Exit, Kind, ProtocolError, Signal, decode_signal, encode_exit, read_frame, write_frame,
};

/// Runs `command`, streams its output and sends how it ended. The command has a process group of its own, which gets
/// the client's signals and is killed when the client closes the connection or the command itself has ended.
///
/// Input that the command does not read holds up what the client sends behind it, signals too.
pub(crate) fn run(stream: &TcpStream, command: &Command, die_with_agent: bool) -> Result<(), ProtocolError> {
    let mut child = match spawn(command, die_with_agent) {
        Ok(child) => child,
        Err(error) => {
            let program = command.argv.first().map_or("", String::as_str);
            return write_frame(&mut &*stream, Kind::Error, format!("{program}: {error}").as_bytes());
        }
    };
    write_frame(&mut &*stream, Kind::Ok, &child.id().to_le_bytes())?;

    let group = child.id();
    let running = Arc::new(AtomicBool::new(true));
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let readers: Vec<_> = [
        child.stdout.take().map(|pipe| forward(pipe, Kind::Stdout, &writer)),
        child.stderr.take().map(|pipe| forward(pipe, Kind::Stderr, &writer)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let control = {
        let (mut reader, running, mut stdin) = (stream.try_clone()?, Arc::clone(&running), child.stdin.take());
        thread::spawn(move || {
            while let Ok(Some(frame)) = read_frame(&mut reader) {
                match (frame.kind, decode_signal(&frame.payload)) {
                    (Kind::Signal, Ok(signal)) if running.load(Ordering::SeqCst) => kill_group(group, signal),
                    (Kind::Stdin, _) => {
                        let wanted = stdin.as_mut().is_some_and(|pipe| pipe.write_all(&frame.payload).is_ok());
                        if frame.payload.is_empty() || !wanted {
                            stdin = None;
                        }
                    }
                    _ => break,
                }
            }
            if running.load(Ordering::SeqCst) {
                kill_group(group, Signal::Kill);
            }
        })
    };

    let status = child.wait()?;
    running.store(false, Ordering::SeqCst);
    // Whatever the command left behind would keep the pipes open.
    kill_group(group, Signal::Kill);
    for reader in readers {
        let _ = reader.join();
    }
    let exit = match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    };
    let sent = write_frame(&mut &*stream, Kind::Exit, &encode_exit(exit));
    // Ends the control thread; the client gets everything that was written before.
    let _ = stream.shutdown(Shutdown::Both);
    let _ = control.join();
    sent
}

fn spawn(command: &Command, die_with_agent: bool) -> io::Result<Child> {
    let mut argv: Vec<&str> = Vec::new();
    if die_with_agent {
        argv.extend(["setpriv", "--pdeathsig", "KILL", "--"]);
    }
    argv.extend(command.argv.iter().map(String::as_str));
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Process::new(program)
        .args(arguments)
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .stdin(if command.stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

fn forward(mut pipe: impl Read + Send + 'static, kind: Kind, writer: &Arc<Mutex<TcpStream>>) -> thread::JoinHandle<()> {
    let writer = Arc::clone(writer);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                    if write_frame(&mut *writer, kind, &buffer[..length]).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    })
}

/// Signals a process group through the shell, which has `kill` built in: the standard library cannot signal a group,
/// and this crate does without unsafe code. A group that is gone already is no error.
fn kill_group(group: u32, signal: Signal) {
    let _ = Process::new("sh")
        .args(["-c", &format!("kill -s {} -- -{group}", signal.name())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
