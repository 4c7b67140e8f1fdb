//! `cargo xtask bench`: how fast it is.
//!
//! Times depend on the machine, and an emulated host is slow, so what can be told as a share of something else in the
//! same run is: of KVM alone, or of the way that the bytes take anyway. Nothing here fails for being slow.

mod figure;
mod gdb;
mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::arch::Arch;
use crate::context::Context;
use crate::host::{KvmHost, command};
use crate::packages::Tool;
use crate::paths;
use crate::progress::{Progress, note, tail};
use crate::scenarios;
use figure::{Figure, middle, table};

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only this part; may be given more than once
    #[arg(long, value_name = "PART")]
    pub only: Vec<Part>,
    /// Measure another VMM's gdb server beside ours, in turns; only for what gdb sees
    #[arg(long, value_name = "VMM", requires_if("cloud-hypervisor", "binary"))]
    pub peer: Option<Peer>,
    /// The peer's program for arm64, where it is not fetched
    #[arg(long, value_name = "PATH", requires = "peer")]
    pub binary: Option<PathBuf>,
}

/// What can be measured beside reference-vmm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// QEMU, Debian's unless --binary says otherwise, with KVM in the same host
    Qemu,
    /// The cloud-hypervisor that --binary names
    CloudHypervisor,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Steps inside the VMM
    Steps,
    /// What gdb sees
    Gdb,
    /// What a session adds to a migration
    Migration,
}

/// Runs the benchmark; prints a table.
pub fn bench(context: &Context, options: &BenchOptions) -> Result<ExitCode> {
    context.prepare(&[Tool::Gdb, Tool::Python])?;
    let programs = build(context)?;
    let host = KvmHost::start(context)?;
    note(format!("KVM host: {}", host.describe()?));
    let mut figures = Vec::new();
    for part in [Part::Steps, Part::Gdb, Part::Migration] {
        if options.only.is_empty() || options.only.contains(&part) {
            figures.extend(match part {
                Part::Steps => in_vmm(&host, &programs.stepbench)?,
                Part::Gdb => gdb::measure(context, &host, &programs.vmm, options)?,
                Part::Migration => migration(context, &host, &programs.vmm)?,
            });
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", table(&figures));
    Ok(ExitCode::SUCCESS)
}

struct Programs {
    stepbench: PathBuf,
    vmm: PathBuf,
}

/// Optimised as those who ship a VMM do it: nobody would run the other kind.
fn build(context: &Context) -> Result<Programs> {
    let progress = Progress::start("building reference-vmm and its benchmark for arm64, optimised");
    let mut cargo = context.toolchain()?.cargo();
    let target = Arch::Arm64.target();
    cargo.args(["build", "--quiet", "--profile", "bench", "--target", target, "--package", "reference-vmm"]);
    let status = cargo.args(["--bin", "reference-vmm", "--example", "stepbench"]).status()?;
    if !status.success() {
        bail!("reference-vmm does not build for arm64");
    }
    progress.done();
    let directory = paths::root().join("target/arm64").join(target).join("release");
    Ok(Programs { stepbench: directory.join("examples/stepbench"), vmm: directory.join("reference-vmm") })
}

/// How often stepbench is started. In an emulated host one start in six has a figure that is a tenth of the others', for as long as the
/// program lives. Perhaps its memory is where QEMU has seen code, which makes stores slow.
const STARTS: usize = 3;

/// What the example stepbench of reference-vmm measures: of each figure the one of the median start.
fn in_vmm(host: &KvmHost, stepbench: &Path) -> Result<Vec<Figure>> {
    let program = host.upload_program(stepbench)?;
    let mut starts = Vec::new();
    for start in 1..=STARTS {
        let progress =
            Progress::start(format!("stepping inside the VMM, and with KVM alone, in turns, {start} of {STARTS}"));
        let output = host.output(&command([program.clone()]))?;
        if !output.exit.success() {
            bail!("stepbench failed ({}):\n{}", output.exit, tail(&output.stderr_text()));
        }
        progress.done();
        starts.push(output.stdout_text().lines().map(Figure::parse).collect::<Result<Vec<_>>>()?);
    }
    middle(starts)
}

/// What tests/demo/bench_migration.py measures.
fn migration(context: &Context, host: &KvmHost, vmm: &Path) -> Result<Vec<Figure>> {
    let script = paths::root().join("tests/demo/bench_migration.py");
    let progress = Progress::start("migrating a guest with software breakpoints");
    let output = scenarios::measure(context, host, vmm, &script)?;
    progress.done();
    output.lines().map(Figure::parse).collect()
}
