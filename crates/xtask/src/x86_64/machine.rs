//! The emulators themselves.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::image::{BEGIN, END};
use super::{Emulator, KERNEL_LINE, QEMU_TICK, bochs};
use crate::assets::Kernel;
use crate::host::tied;
use crate::progress::{Progress, tail};

/// From the start to the program. Bochs takes 20 to 90 seconds for it.
const BOOT_TIMEOUT: Duration = Duration::from_secs(400);
/// How long a program may print nothing.
const SILENCE: Duration = Duration::from_secs(400);
/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A running emulator; killed when dropped, and by the kernel when this process dies.
pub(super) struct Machine {
    emulator: Emulator,
    child: Child,
    directory: PathBuf,
    console: Console,
}

/// Lines of the file that the machine's serial port is.
struct Console {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Machine {
    /// Starts it; [`Machine::follow`] waits for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn boot(emulator: Emulator, kernel: &Kernel, initramfs: &Path, directory: &Path) -> Result<Self> {
        let console = directory.join("console");
        let log = File::create(directory.join("emulator.log"))?;
        let mut command = match emulator {
            Emulator::Qemu => qemu(kernel, initramfs, &console),
            Emulator::Bochs => bochs::Machine::new(directory, &console).command(kernel, initramfs)?,
        };
        command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start the emulator of {}", emulator.describe()))?;
        let console = Console { path: console, file: None, partial: Vec::new() };
        Ok(Self { emulator, child, directory: directory.to_owned(), console })
    }

    /// Prints what the program prints, and returns its exit code.
    ///
    /// # Errors
    /// If the machine ends before the program, or nothing comes for too long; with the end of its console.
    pub(super) fn follow(&mut self) -> Result<u8> {
        let progress = Progress::start(format!("booting a host for {}", self.emulator.describe()));
        self.wait(BOOT_TIMEOUT, |line| (line == BEGIN).then_some(()))?;
        progress.done();
        let mut stdout = std::io::stdout();
        self.wait(SILENCE, |line| match line.strip_prefix(END) {
            Some(code) => Some(code.parse().unwrap_or(u8::MAX)),
            None => {
                // A reader that is gone is no reason to leave the machine half-way.
                let _ = writeln!(stdout, "{line}");
                None
            }
        })
    }

    /// Takes lines until one of them is the answer.
    fn wait<T>(&mut self, silence: Duration, mut answer: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let mut deadline = Instant::now() + silence;
        loop {
            let ended = self.child.try_wait()?;
            let lines = self.console.lines()?;
            if !lines.is_empty() {
                deadline = Instant::now() + silence;
            }
            if let Some(answer) = lines.iter().find_map(|line| answer(line)) {
                return Ok(answer);
            }
            let problem = match ended {
                Some(status) => format!("the emulator ended with {status}"),
                None if Instant::now() > deadline => format!("nothing was printed for {} s", silence.as_secs()),
                None => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            let text =
                |name: &str| tail(&String::from_utf8_lossy(&fs::read(self.directory.join(name)).unwrap_or_default()));
            bail!("{}: {problem}\n{}\n{}", self.emulator.describe(), text("emulator.log"), text("console"));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Console {
    /// The whole lines that have come since the last time.
    fn lines(&mut self) -> Result<Vec<String>> {
        if self.file.is_none() {
            // It is not there before the emulator is.
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.partial).context("cannot read the console")?;
        }
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.partial.drain(..end).collect();
        Ok(String::from_utf8_lossy(&whole).lines().map(|line| line.trim_end_matches('\r').to_owned()).collect())
    }
}

fn qemu(kernel: &Kernel, initramfs: &Path, console: &Path) -> Command {
    // With two CPUs it loses more interrupts.
    let mut command = tied("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-cpu", "EPYC,+svm", "-smp", "1", "-m", "1024", "-accel", "tcg"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("{KERNEL_LINE} {QEMU_TICK}"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_when_it_is_whole() {
        let path = std::env::temp_dir().join(format!("xtask-console-{}", std::process::id()));
        let mut console = Console { path: path.clone(), file: None, partial: Vec::new() };
        assert!(console.lines().unwrap().is_empty(), "there is no file yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(console.lines().unwrap(), ["one"]);
        file.write_all(b"o\n\nthree\n").unwrap();
        assert_eq!(console.lines().unwrap(), ["two", "", "three"]);
        assert!(console.lines().unwrap().is_empty());
        fs::remove_file(path).unwrap();
    }
}
