//! Runs one scenario's script against a guest that is up.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::catalog::{Interpreter, Scenario};
use crate::paths;
use crate::report::Status;

/// Exit code of a script that could not try.
const EXIT_SKIPPED: i32 = 77;

/// Exit code of gdb when its script has ended without saying how.
const EXIT_BROKEN: i32 = 70;

/// How long a script whose time is over has to say where it is.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a script gets to know, as environment variables.
pub(super) type Facts = Vec<(&'static str, String)>;

/// How a script ended.
pub(super) struct Outcome {
    pub status: Status,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// What it printed.
    pub output: String,
}

/// Runs the script; kills it, with its children, when its time is over, and says at which of its lines it was.
///
/// # Errors
/// If it cannot be started.
pub(super) fn run(scenario: &Scenario, facts: &Facts) -> Result<Outcome> {
    let logs = paths::root().join("target/scenarios");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let log_path = logs.join(format!("{}.log", scenario.name));
    let log = File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
    let mut command = match scenario.interpreter {
        Interpreter::Gdb => {
            let mut gdb = Command::new("gdb-multiarch");
            gdb.args(["-nx", "-batch", "-x"]).arg(&scenario.path);
            // A script ends gdb itself. gdb would go on after one that is broken, and end well.
            gdb.args(["-ex", &format!("quit {EXIT_BROKEN}")]);
            gdb
        }
        Interpreter::Python => {
            let mut python = Command::new("python3");
            python.arg(&scenario.path);
            python
        }
    };
    let library = paths::root().join("tests/scenarios/lib");
    let mut child = command
        .envs(facts.iter().map(|(name, value)| (*name, value)))
        .env("PYTHONPATH", library)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let ended = wait(&mut child, scenario.timeout)?;
    let output = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
    let (status, reason) = match ended {
        None => {
            let place = place(&output, &scenario.path).map_or_else(String::new, |place| format!(", at {place}"));
            (Status::Failed, Some(format!("not over after {} s{place}", scenario.timeout.as_secs())))
        }
        Some(exit) if exit.success() => (Status::Passed, None),
        Some(exit) if exit.code() == Some(EXIT_SKIPPED) => {
            (Status::Skipped, Some(said(&output, "SKIPPED: ").unwrap_or("it gave no reason").to_owned()))
        }
        Some(exit) if exit.code() == Some(EXIT_BROKEN) => {
            (Status::Failed, Some("it did not come to its end; see what it printed".to_owned()))
        }
        Some(exit) => {
            let reason = said(&output, "FAILED: ").map_or_else(|| format!("it ended with {exit}"), str::to_owned);
            (Status::Failed, Some(reason))
        }
    };
    Ok(Outcome { status, reason, output })
}

/// `None` if the time was over.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            // What it does with that is in tests/scenarios/lib/sitecustomize.py.
            signal("-USR1", &child.id().to_string());
            thread::sleep(LAST_WORDS);
            // The whole group: a script may have a debugger as its child.
            signal("-KILL", &format!("-{}", child.id()));
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whoever is gone by then needs no signal.
fn signal(name: &str, whom: &str) {
    let _ = Command::new("kill").args([name, "--", whom]).stderr(Stdio::null()).status();
}

/// The innermost line in the last traceback that a script has printed, and the script's own that led there.
fn place(output: &str, script: &Path) -> Option<String> {
    let traceback = output.rsplit_once("(most recent call first):")?.1;
    let frames: Vec<_> = traceback.lines().skip(1).map_while(Frame::parse).collect();
    let innermost = frames.first()?;
    let own = frames.iter().find(|frame| frame.path == script).filter(|own| *own != innermost);
    let from = own.map_or_else(String::new, |own| format!(", for {own}"));
    Some(format!("{innermost}{from}"))
}

/// A line of a traceback.
#[derive(PartialEq)]
struct Frame<'a> {
    path: &'a Path,
    line: usize,
}

impl<'a> Frame<'a> {
    /// As Python's faulthandler writes it.
    fn parse(text: &'a str) -> Option<Self> {
        let (path, rest) = text.trim_start().strip_prefix("File \"")?.split_once("\", line ")?;
        Some(Self { path: Path::new(path), line: rest.split(' ').next()?.parse().ok()? })
    }
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.file_name().unwrap_or_default().display();
        let source = fs::read_to_string(self.path).unwrap_or_default();
        let text = self.line.checked_sub(1).and_then(|line| source.lines().nth(line)).unwrap_or("?");
        write!(f, "{name}:{}: {}", self.line, text.trim())
    }
}

/// The last line that starts so, without the start.
fn said<'a>(output: &'a str, start: &str) -> Option<&'a str> {
    output.lines().rev().find_map(|line| line.strip_prefix(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::catalog::GuestKind;

    fn outcome(name: &str, code: &str, timeout: Duration) -> Outcome {
        outcome_in(Interpreter::Python, name, code, timeout)
    }

    fn outcome_in(interpreter: Interpreter, name: &str, code: &str, timeout: Duration) -> Outcome {
        let directory = std::env::temp_dir().join(format!("xtask-script-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{name}.py"));
        fs::write(&path, code).unwrap();
        let scenario = Scenario {
            name: name.to_owned(),
            path,
            guest: GuestKind::Bare,
            cpus: 1,
            timeout,
            interpreter,
            last: false,
            moves: false,
            debug_info: false,
            needs: Vec::new(),
            drives_vmm: false,
        };
        run(&scenario, &vec![("FACT", "a fact".to_owned())]).unwrap()
    }

    /// Says so where there is no interpreter, past libtest, which would keep it to itself.
    fn is_skipped(test: &str, interpreter: &str) -> bool {
        use std::io::Write as _;
        let missing = !crate::packages::on_path(interpreter);
        if missing {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {interpreter} is not installed");
        }
        missing
    }

    #[test]
    fn exit_codes_and_last_lines_are_the_result() {
        if is_skipped("exit_codes_and_last_lines_are_the_result", "python3") {
            return;
        }
        const LONG: Duration = Duration::from_secs(60);
        let passed = outcome("self-test-passes", "import os; print(os.environ['FACT'])", LONG);
        assert_eq!((passed.status, passed.output.trim()), (Status::Passed, "a fact"));
        let failed = outcome("self-test-fails", "print('FAILED: x is 1'); raise SystemExit(1)", LONG);
        assert_eq!((failed.status, failed.reason.as_deref()), (Status::Failed, Some("x is 1")));
        let skipped = outcome("self-test-skips", "print('SKIPPED: no y here'); raise SystemExit(77)", LONG);
        assert_eq!((skipped.status, skipped.reason.as_deref()), (Status::Skipped, Some("no y here")));
        let broken = outcome("self-test-breaks", "no python", LONG);
        assert_eq!(broken.status, Status::Failed);
    }

    #[test]
    fn what_hangs_is_killed_and_says_where_it_was() {
        if is_skipped("what_hangs_is_killed_and_says_where_it_was", "python3") {
            return;
        }
        let code = "import time\ndef wait():\n    time.sleep(1000)\nwait()";
        let hung = outcome("self-test-hangs", code, Duration::from_secs(5));
        assert_eq!(hung.status, Status::Failed);
        assert_eq!(hung.reason.as_deref(), Some("not over after 5 s, at self-test-hangs.py:3: time.sleep(1000)"));
    }

    #[test]
    fn a_script_of_gdb_that_breaks_or_never_ends_gdb_has_not_passed() {
        if is_skipped("a_script_of_gdb_that_breaks_or_never_ends_gdb_has_not_passed", "gdb-multiarch") {
            return;
        }
        let status = |name, code| outcome_in(Interpreter::Gdb, name, code, Duration::from_secs(60)).status;
        assert_eq!(status("self-test-gdb-passes", "gdb.execute('quit 0')"), Status::Passed);
        assert_eq!(status("self-test-gdb-breaks", "no python"), Status::Failed);
        assert_eq!(status("self-test-gdb-ends", "pass"), Status::Failed);
    }
}
