//! The control socket: commands to a running VM, and the client that sends them.
//!
//! A client sends one line, a [`Command`]. The answer is lines of JSON, each with one member: `progress` any number of
//! times, then `done` or `error`, with text. One client at a time; another one waits for its turn.

use crate::error::VmError;
use crate::operations::{Command, Operations};
use guest_debug_gdb::{ListenAddress, Listener};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The longest command line.
const MAX_LINE: u64 = 8192;
/// How long a client may take to say what it wants, and to take the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Progress(String),
    Done(String),
    Error(String),
}

/// A control socket that was opened.
#[derive(Debug)]
pub struct ControlSocket(Listener);

impl ControlSocket {
    /// Opens it, for its owner only.
    ///
    /// # Errors
    ///
    /// [`VmError::Control`].
    pub fn bind(path: &Path) -> Result<Self, VmError> {
        let listener = Listener::bind(&ListenAddress::Unix(path.to_owned()));
        listener.map(Self).map_err(|error| VmError::Control(error.to_string()))
    }

    /// Serves clients on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn serve(self, vm: Arc<dyn Operations>) -> Result<ControlServer, VmError> {
        let Listener::Unix(listener, file) = self.0 else {
            return Err(VmError::Control("it is no unix socket".to_owned()));
        };
        listener.set_nonblocking(false).map_err(VmError::io("fcntl"))?;
        let server = ControlServer::default();
        let busy = server.0.clone();
        let body = move || {
            // They are for the thread that waits for them, or for the process while there is none.
            crate::signals::block();
            // It goes when the process does, with the listener.
            let _file = file;
            accept(&listener, &*vm, &busy);
        };
        let thread = thread::Builder::new().name("control".to_owned()).spawn(body);
        thread.map(|_| server).map_err(VmError::io("clone"))
    }
}

/// A control socket that is served.
#[derive(Debug, Default)]
pub struct ControlServer(Arc<Mutex<()>>);

impl ControlServer {
    /// Waits until whoever asked last has the answer: the command may be what ends the process.
    pub fn finish(self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn accept(listener: &UnixListener, vm: &dyn Operations, busy: &Mutex<()>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let _busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = serve(&stream, vm) {
                    log::debug!("control socket: {error}");
                }
            }
            Err(error) => {
                log::warn!("control socket: {error}");
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

fn serve(stream: &UnixStream, vm: &dyn Operations) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    let command = match Command::parse(&line) {
        Ok(Some(command)) => command,
        Ok(None) => {
            let known: Vec<_> = Command::HELP.iter().map(|(usage, _)| *usage).collect();
            return answer(stream, &Answer::Error(format!("no such command; there are: {}", known.join(", "))));
        }
        Err(text) => return answer(stream, &Answer::Error(text)),
    };
    let mut progress = |text| {
        log::info!("{command}: {text}");
        // Whether anybody watches does not matter.
        let _ = answer(stream, &Answer::Progress(text));
    };
    let last = match command.run(vm, &mut progress) {
        Ok(text) => Answer::Done(text),
        Err(error) => Answer::Error(error.to_string()),
    };
    answer(stream, &last)
}

fn answer(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Sends a command to the VM behind this socket, and shows its progress.
///
/// # Errors
///
/// [`VmError::Control`] with what the VM answers, or why there is no answer.
pub fn send(socket: &Path, command: &Command, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
    let failed = |text: String| VmError::Control(format!("{}: {text}", socket.display()));
    let line = command.to_string();
    if line.contains('\n') || line.len() as u64 >= MAX_LINE {
        return Err(VmError::Control(format!("the command must be one line of less than {MAX_LINE} bytes")));
    }
    let mut stream = UnixStream::connect(socket).map_err(|error| failed(error.to_string()))?;
    stream.write_all(format!("{line}\n").as_bytes()).map_err(|error| failed(error.to_string()))?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|error| failed(error.to_string()))?;
        match serde_json::from_str(&line).map_err(|error| failed(format!("answers {line:?}: {error}")))? {
            Answer::Progress(text) => progress(text),
            Answer::Done(text) => return Ok(text),
            Answer::Error(text) => return Err(VmError::Control(text)),
        }
    }
    Err(failed("the VM has ended before it answered".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::MigrationAddress;
    use vmm_sys_util::tempdir::TempDir;

    struct Vm;

    impl Operations for Vm {
        fn snapshot(&self, directory: &Path, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
            progress("half".to_owned());
            Ok(format!("in {}", directory.display()))
        }

        fn migrate(&self, _: &MigrationAddress, _: &mut dyn FnMut(String)) -> Result<String, VmError> {
            Err(VmError::Busy("test"))
        }

        fn status(&self) -> Result<String, VmError> {
            Ok("well".to_owned())
        }

        fn quit(&self) {}
    }

    #[test]
    fn commands_and_their_answers() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("control");
        ControlSocket::bind(&path).unwrap().serve(Arc::new(Vm)).unwrap();
        let mut lines = Vec::new();
        let command = Command::Snapshot("/some where".into());
        assert_eq!(send(&path, &command, &mut |line| lines.push(line)).unwrap(), "in /some where");
        assert_eq!(lines, ["half"]);
        assert_eq!(send(&path, &Command::Status, &mut drop).unwrap(), "well");
        let migrate = Command::Migrate("unix:/x".parse().unwrap());
        assert!(send(&path, &migrate, &mut drop).unwrap_err().to_string().contains("can't do that now"));
        for garbage in ["no such thing\n", "\n", "migrate\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(garbage.as_bytes()).unwrap();
            let mut text = String::new();
            BufReader::new(stream).read_line(&mut text).unwrap();
            assert!(matches!(serde_json::from_str(&text), Ok(Answer::Error(_))), "{garbage}: {text}");
        }
        let nobody = directory.as_path().join("nobody");
        assert!(send(&nobody, &Command::Status, &mut drop).unwrap_err().to_string().contains("nobody"));
    }
}
