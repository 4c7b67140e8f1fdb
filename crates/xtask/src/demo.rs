//! `cargo xtask demo`: what the debugger can do, shown on a Linux guest.
//!
//! gdb runs a script of tests/demo, which prints each command with gdb's answer and checks the answer. What came true it
//! leaves in a file, and that file decides.

mod x86_64;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::arch::Arch;
use crate::assets::{GuestFile, compile_guest_program, guest_initramfs, without_debug_info};
use crate::context::Context;
use crate::host::KvmHost;
use crate::packages::Tool;
use crate::paths;
use crate::progress::{Progress, note, tail};
use crate::scenarios::{Fleet, ReferenceMover, RunningGuest};
use crate::symbols::kernel_symbols;
use crate::vmm::{self, Guest, GuestOptions};

/// Memory of the guest in MiB: it is saved and moved.
const MEMORY: u32 = 128;
/// The guest's boot, in an emulated host on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// All that gdb shows. Each command has a limit of its own in demo.py.
const GDB_TIMEOUT: Duration = Duration::from_secs(300);
/// From gdb's end to the guest's next lines.
const GOES_ON_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of `demo`.
#[derive(Args, Debug)]
pub struct DemoOptions {
    /// Show the instructions that are stepped over, the guest's console, and where an error came from
    #[arg(long)]
    verbose: bool,
}

/// Runs the demo; succeeds only if all that it shows came true.
pub fn demo(context: &Context, options: &DemoOptions) -> Result<ExitCode> {
    let started = Instant::now();
    if context.arch() == Arch::X86_64 {
        return x86_64::demo(context, options, started);
    }
    context.prepare(&[Tool::Gdb])?;
    let program = heartbeat(context)?;
    let host = KvmHost::start(context)?;
    let progress = Progress::start("building reference-vmm for arm64");
    let vmm = vmm::install(context, &host)?;
    progress.done();
    let symbols = kernel_symbols(context, Some(&host))?;
    let guest = boot(context, &host, &vmm, &program)?;
    println!("\nThe guest is Debian's arm64 Linux under reference-vmm, on {}.", host.describe()?);
    println!("Its kernel has started one program, tests/demo/heartbeat.c, which prints a line at each heartbeat.");
    println!("Below, a line that starts with (gdb) is what is typed into gdb-multiarch; what follows is gdb's answer.");

    let mover = ReferenceMover::new(&host, &vmm);
    let fleet = Fleet::new(&mover, Arc::new(guest));
    let address = fleet.last()?.address();
    let snapshots = mover.snapshots();
    let mut shown = fleet.serve(|socket| {
        let facts = [
            ("DEMO_TARGET", address.as_str()),
            ("DEMO_SNAPSHOTS", snapshots.as_str()),
            ("FLEET", socket.to_str().context("the socket's path is no text")?),
            ("DEMO_KERNEL", &paths::short(&symbols)),
            ("DEMO_PROGRAM", &paths::short(&program)),
            ("DEMO_CPUS", &GuestOptions::default().cpus.to_string()),
        ];
        show("demo.py", &facts, options)
    })?;
    let guest = fleet.last()?;
    shown.push(goes_on(&*guest));
    Ok(conclude(&shown, &*guest, options, started))
}

/// Prints what came true.
fn conclude(shown: &[Shown], guest: &dyn RunningGuest, options: &DemoOptions, started: Instant) -> ExitCode {
    if options.verbose {
        println!("\n--- The end of the guest's console\n{}", tail(&guest.output()));
    }
    println!("\n--- What came true");
    for line in shown {
        println!("{line}");
    }
    let absent = shown.iter().filter(|shown| shown.absent.is_some()).count();
    let (shown, failed) = (shown.len() - absent, shown.iter().filter(|shown| shown.reason.is_some()).count());
    let rest = if absent > 0 { format!("; {absent} can't be shown here") } else { String::new() };
    println!("{} of {shown}, in {} s{rest}", shown - failed, started.elapsed().as_secs());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The guest's program, with its debug information.
pub(crate) fn heartbeat(context: &Context) -> Result<PathBuf> {
    let flags = ["-no-pie", "-O1", "-fno-omit-frame-pointer"];
    compile_guest_program(&context.packages, &directory().join("heartbeat.c"), &flags)
}

/// A guest that runs it.
pub(crate) fn boot(context: &Context, host: &KvmHost, vmm: &str, program: &Path) -> Result<Guest> {
    let init = GuestFile::program("/init", &without_debug_info(context.arch(), program)?)?;
    let initrd = guest_initramfs(&context.packages, &[init])?;
    let progress = Progress::start("booting Debian's arm64 kernel as a guest");
    let guest = vmm::start(
        context,
        host,
        vmm,
        &GuestOptions { initrd: Some(initrd), memory: MEMORY, ..GuestOptions::default() },
    )?;
    guest.vmm.wait_for("heartbeat 1 ", 0, BOOT_TIMEOUT).context("the guest's program does not start")?;
    progress.done();
    Ok(guest)
}

fn directory() -> PathBuf {
    paths::root().join("tests/demo")
}

/// One thing that was to be shown.
#[derive(Debug, Deserialize)]
struct Shown {
    what: String,
    /// Why it did not come true.
    reason: Option<String>,
    /// What it takes that is not there.
    #[serde(default)]
    absent: Option<String>,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.reason, &self.absent) {
            (None, None) => write!(f, "✓ {}", self.what),
            (None, Some(absent)) => write!(f, "- {}: not shown, {absent}", self.what),
            (Some(reason), _) => write!(f, "✗ {}: {reason}", self.what),
        }
    }
}

/// gdb's part.
fn show(script: &str, facts: &[(&str, &str)], options: &DemoOptions) -> Result<Vec<Shown>> {
    let results = paths::cache().join(format!("demo-{}.json", std::process::id()));
    paths::remove(&results)?;
    let mut gdb = gdb(&directory().join(script));
    gdb.envs(facts.iter().copied()).env("DEMO_RESULTS", &results);
    if options.verbose {
        gdb.env("DEMO_VERBOSE", "1");
    }
    let mut child = gdb.spawn().context("cannot start gdb-multiarch")?;
    let ended = wait(&mut child)?;
    let text = fs::read(&results);
    paths::remove(&results)?;
    let Ok(text) = text else { bail!("gdb ended before it had shown everything ({ended})") };
    let shown: Vec<Shown> = serde_json::from_slice(&text).context("gdb's results cannot be read")?;
    if ended != "success" && shown.iter().all(|shown| shown.reason.is_none()) {
        bail!("gdb ended with an error ({ended}) although all came true");
    }
    Ok(shown)
}

/// gdb with a script, in the workspace's directory, with what the scenarios' scripts share.
pub(crate) fn gdb(script: &Path) -> Command {
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-x"])
        .arg(script)
        .current_dir(paths::root())
        .env("PYTHONPATH", format!("{}:{}", paths::root().join("tests/scenarios/lib").display(), directory().display()))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    gdb
}

/// How gdb ended, in words.
fn wait(gdb: &mut Child) -> Result<String> {
    let deadline = Instant::now() + GDB_TIMEOUT;
    loop {
        if let Some(status) = gdb.try_wait()? {
            return Ok(if status.success() { "success".to_owned() } else { status.to_string() });
        }
        if Instant::now() > deadline {
            gdb.kill()?;
            gdb.wait()?;
            return Ok(format!("not over after {} s", GDB_TIMEOUT.as_secs()));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the guest runs on without gdb: its program has more to say.
fn goes_on(guest: &dyn RunningGuest) -> Shown {
    let what = "after that it runs on by itself".to_owned();
    let beats = || guest.output().matches("heartbeat ").count();
    let (before, deadline) = (beats(), Instant::now() + GOES_ON_TIMEOUT);
    while beats() < before + 2 {
        if guest.ended_within(Duration::from_millis(50)).is_some() || Instant::now() > deadline {
            let reason = format!("its console ends with\n{}", tail(&guest.output()));
            return Shown { what, reason: Some(reason), absent: None };
        }
    }
    note("ending the guest and its host");
    Shown { what, reason: None, absent: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_shown() {
        let text = r#"[{"what": "a", "reason": null}, {"what": "b", "reason": "c is 1"},
                       {"what": "d", "reason": null, "absent": "no e"}]"#;
        let shown: Vec<Shown> = serde_json::from_str(text).unwrap();
        assert_eq!(
            shown.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["✓ a", "✗ b: c is 1", "- d: not shown, no e"]
        );
    }
}
