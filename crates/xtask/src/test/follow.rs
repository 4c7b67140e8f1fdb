//! Runs `cargo test`, shows what it prints and reads it, and ends it if it hangs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::summary::TestOutput;

/// How long nothing may be printed before a test is taken to hang. Compiling is silent for half of that on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);

/// Runs a command with both of its outputs in one pipe, in order, shown and read line by line.
///
/// # Errors
/// If it cannot be started. One that hangs is killed and is a failure in the output.
pub(super) fn follow(command: &mut Command) -> Result<TestOutput> {
    follow_for(command, SILENCE)
}

fn follow_for(command: &mut Command, silence: Duration) -> Result<TestOutput> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot start cargo")?;
    // Or the pipe would never end: the command holds its writing ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(length) if length > 0 && sender.send(line).is_ok() => {}
                _ => break,
            }
        }
    });
    let mut output = TestOutput::default();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                let text = String::from_utf8_lossy(&line);
                print!("{text}");
                output.feed(text.trim_end());
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                output.hung(silence);
                kill(&descendants(child.id()));
                break;
            }
        }
    }
    output.success = child.wait()?.success();
    Ok(output)
}

/// A process and all that it has started, directly or not.
fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // "pid (name) state parent ...", and a name may contain anything.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    found
}

fn kill(pids: &[u32]) {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -s KILL \"$@\"", "kill"]).args(pids.iter().map(u32::to_string));
    // Some may have ended meanwhile.
    let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let started = Instant::now();
        let script = "echo 'test one ... ok'; sleep 100 & sh -c 'sleep 100; true'";
        let output = follow_for(Command::new("sh").args(["-c", script]), Duration::from_millis(500)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(50));
        assert!(!output.success);
        assert_eq!((output.passed.len(), output.failed.len(), output.counts.failed), (1, 1, 1));
    }

    #[test]
    fn both_outputs_are_read() {
        let script = "echo 'test one ... ok'; echo 'test two ... ok' >&2";
        let output = follow_for(Command::new("sh").args(["-c", script]), Duration::from_secs(20)).unwrap();
        assert!(output.success);
        assert_eq!(output.passed.len(), 2);
    }
}
