//! A command that runs in the host beside us.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kvm_agent::{Exit, Kind, Signal, encode_signal, write_frame};

use super::client::follow;
use crate::progress::tail;

/// A running command; killed, with its children, when this is dropped.
pub struct HostProcess {
    stream: TcpStream,
    input: HostInput,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    output: Vec<u8>,
    echo: bool,
    ended: Option<Result<Exit, String>>,
}

impl HostProcess {
    pub(super) fn start(stream: TcpStream) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut from = stream.try_clone()?;
        let writer = Arc::clone(&shared);
        let input = HostInput(Arc::new(Mutex::new(stream.try_clone()?)));
        let reader = thread::spawn(move || {
            let ended = follow(&mut from, |_, bytes: &[u8]| {
                let mut state = writer.lock();
                state.output.extend_from_slice(bytes);
                writer.changed.notify_all();
                if state.echo { print(bytes) } else { Ok(()) }
            });
            writer.lock().ended = Some(ended.map_err(|error| format!("{error:#}")));
            writer.changed.notify_all();
        });
        Ok(Self { stream, input, shared, reader: Some(reader) })
    }

    /// The way for its input, if it was started with one.
    pub fn input(&self) -> HostInput {
        self.input.clone()
    }

    /// All that it has printed so far, standard output and standard error as they came.
    pub fn output(&self) -> Vec<u8> {
        self.shared.lock().output.clone()
    }

    /// [`HostProcess::output`] as text.
    pub fn output_text(&self) -> String {
        String::from_utf8_lossy(&self.output()).into_owned()
    }

    /// Prints everything that came so far, and from now on everything as it comes.
    ///
    /// # Errors
    /// If our standard output is closed.
    pub fn echo(&self) -> Result<()> {
        let mut state = self.shared.lock();
        state.echo = true;
        Ok(print(&state.output)?)
    }

    /// Waits until the output contains `text`, searching from byte `start` on; returns the offset behind it.
    ///
    /// # Errors
    /// If the command ends before, or the time is over; the message has the end of the output.
    pub fn wait_for(&self, text: &str, start: usize, timeout: Duration) -> Result<usize> {
        let deadline = Instant::now() + timeout;
        let wanted = text.as_bytes();
        let mut state = self.shared.lock();
        let mut searched = start;
        loop {
            let rest = state.output.get(searched..).unwrap_or_default();
            if let Some(position) = rest.windows(wanted.len().max(1)).position(|window| window == wanted) {
                return Ok(searched + position + wanted.len());
            }
            // The text may have come in part.
            searched = searched.max((state.output.len() + 1).saturating_sub(wanted.len()));
            let problem = match &state.ended {
                Some(Ok(exit)) => format!("it ended with {exit}"),
                Some(Err(error)) => error.clone(),
                None if Instant::now() >= deadline => format!("it is not there after {} s", timeout.as_secs()),
                None => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            bail!(
                "waiting for {text:?}: {problem}; the output ends with\n{}",
                tail(&String::from_utf8_lossy(&state.output))
            );
        }
    }

    /// Waits until it has ended; `None` if the time is over before.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Exit>> {
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, timeout, |state| state.ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &state.ended {
            None => Ok(None),
            Some(Ok(exit)) => Ok(Some(*exit)),
            Some(Err(error)) => bail!("{error}"),
        }
    }

    /// Sends a signal to it and its children. One that has ended already gets nothing.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.shared.lock().ended.is_some() {
            return Ok(());
        }
        self.input.send(Kind::Signal, &encode_signal(signal)).context("cannot send a signal")
    }
}

/// What goes to a running command.
#[derive(Clone)]
pub struct HostInput(Arc<Mutex<TcpStream>>);

impl HostInput {
    /// Sends a piece of its standard input; an empty one is the end of it.
    ///
    /// # Errors
    /// If the command or the host is gone.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.send(Kind::Stdin, bytes).context("cannot send input")
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(write_frame(&mut *stream, kind, payload)?)
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // The agent kills a command whose connection ends.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(bytes)?;
    stdout.flush()
}
