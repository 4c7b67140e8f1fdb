//! Runs one scenario's script against a guest that is up.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::catalog::{Interpreter, Scenario};
use crate::paths;
use crate::report::Status;

/// Exit code of a script that could not try.
const EXIT_SKIPPED: i32 = 77;

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

/// Runs the script; kills it, with its children, when its time is over.
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
        None => (Status::Failed, Some(format!("not over after {} s", scenario.timeout.as_secs()))),
        Some(exit) if exit.success() => (Status::Passed, None),
        Some(exit) if exit.code() == Some(EXIT_SKIPPED) => {
            (Status::Skipped, Some(said(&output, "SKIPPED: ").unwrap_or("it gave no reason").to_owned()))
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
            // The whole group: a script may have a debugger as its child.
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
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
            interpreter: Interpreter::Python,
            last: false,
            moves: false,
            needs: Vec::new(),
            drives_vmm: false,
        };
        run(&scenario, &vec![("FACT", "a fact".to_owned())]).unwrap()
    }

    /// Says so where there is no interpreter, past libtest, which would keep it to itself.
    fn is_skipped(test: &str) -> bool {
        use std::io::Write as _;
        let missing = !crate::packages::on_path("python3");
        if missing {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: python3 is not installed");
        }
        missing
    }

    #[test]
    fn exit_codes_and_last_lines_are_the_result() {
        if is_skipped("exit_codes_and_last_lines_are_the_result") {
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
    fn what_hangs_is_killed() {
        if is_skipped("what_hangs_is_killed") {
            return;
        }
        let hung = outcome("self-test-hangs", "import time; time.sleep(1000)", Duration::from_millis(500));
        assert_eq!(hung.status, Status::Failed);
        assert!(hung.reason.unwrap().contains("not over"));
    }
}
