//! Lines on standard error that say what is going on, so that nobody wonders about a silent minute.

use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often a long step says that it is still at work.
const REMINDER: Duration = Duration::from_secs(10);

/// Lines of a failed command's output that its error shows.
const TAIL: usize = 40;

/// Prints one line.
pub fn note(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// A step under way; says so at its start, every ten seconds, and when [`Progress::done`] is called.
pub struct Progress {
    what: String,
    started: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Says that `what` begins.
    pub fn start(what: impl Into<String>) -> Self {
        let (what, started) = (what.into(), Instant::now());
        note(format!("{what} ..."));
        let (sender, receiver) = mpsc::channel();
        let text = what.clone();
        let thread = thread::spawn(move || {
            while receiver.recv_timeout(REMINDER) == Err(RecvTimeoutError::Timeout) {
                note(format!("{text} ... {} s", started.elapsed().as_secs()));
            }
        });
        Self { what, started, ticker: Some((sender, thread)) }
    }

    /// Says how long it took.
    pub fn done(self) {
        note(format!("{}: {:.1} s", self.what, self.started.elapsed().as_secs_f64()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.ticker.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// Runs a command with its output kept back; shows the end of it if the command fails.
///
/// # Errors
/// The command's name, how it ended, and the last lines it printed.
pub fn run_quietly(what: &str, command: &mut Command) -> Result<()> {
    let progress = Progress::start(what);
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{what}: {program} failed ({})\n{}", output.status, tail(&String::from_utf8_lossy(&text)));
    }
    progress.done();
    Ok(())
}

/// Standard output of a command that has little to say.
///
/// # Errors
/// The command's name, how it ended, and what it printed as errors.
pub fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({})\n{}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed something that is no text"))
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
