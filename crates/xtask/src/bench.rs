//! `cargo xtask bench`: how fast it is.
//!
//! Times depend on the machine, and an emulated host is slow, so what can be told as a share of something else in the
//! same run is: of KVM alone, or of the way that the bytes take anyway. Nothing here fails for being slow.

mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::demo;
use crate::host::{KvmHost, command};
use crate::packages::Tool;
use crate::paths;
use crate::progress::{Progress, note, tail};
use crate::scenarios;
use crate::symbols::kernel_symbols;
use crate::toolchain::TARGET;

/// The part with gdb, on a busy machine.
const GDB_TIMEOUT: Duration = Duration::from_secs(300);
/// From the guest's first heartbeat to its thirtieth.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// tests/demo/bench.py dumps so much.
const DUMP_BYTES: u64 = 4 << 20;

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only this part; may be given more than once
    #[arg(long, value_name = "PART")]
    pub only: Vec<Part>,
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

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    /// Share of the best that is possible here: of KVM's own speed, or of the transport's. 1 is as fast as that.
    floor_ratio: Option<f64>,
    /// The same beside another debugger server.
    peer_ratio: Option<f64>,
}

impl Figure {
    fn new(name: &str, value: f64, unit: &str, floor_ratio: Option<f64>) -> Self {
        Self { name: name.to_owned(), value, unit: unit.to_owned(), floor_ratio, peer_ratio: None }
    }
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
                Part::Gdb => with_gdb(context, &host, &programs.vmm)?,
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

/// Optimised: nobody would run the other kind.
fn build(context: &Context) -> Result<Programs> {
    let progress = Progress::start("building reference-vmm and its benchmark for arm64, optimised");
    let mut cargo = context.toolchain()?.cargo();
    cargo.args(["build", "--quiet", "--release", "--target", TARGET, "--package", "reference-vmm"]);
    let status = cargo.args(["--bin", "reference-vmm", "--example", "stepbench"]).status()?;
    if !status.success() {
        bail!("reference-vmm does not build for arm64");
    }
    progress.done();
    let directory = paths::root().join("target/arm64").join(TARGET).join("release");
    Ok(Programs { stepbench: directory.join("examples/stepbench"), vmm: directory.join("reference-vmm") })
}

/// What the example stepbench of reference-vmm measures.
fn in_vmm(host: &KvmHost, stepbench: &Path) -> Result<Vec<Figure>> {
    let program = host.upload_program(stepbench)?;
    let progress = Progress::start("stepping inside the VMM, and with KVM alone, in turns");
    let output = host.output(&command([program]))?;
    if !output.exit.success() {
        bail!("stepbench failed ({}):\n{}", output.exit, tail(&output.stderr_text()));
    }
    progress.done();
    output.stdout_text().lines().map(parse).collect()
}

/// A line of either script or example: name, value, unit and ratio or a dash, separated by tabs.
fn parse(line: &str) -> Result<Figure> {
    let bad = || format!("{line:?} is no figure");
    let fields: Vec<_> = line.split('\t').collect();
    let [name, value, unit, ratio] = fields[..] else { bail!(bad()) };
    let ratio = if ratio == "-" { None } else { Some(ratio.parse().with_context(bad)?) };
    Ok(Figure::new(name, value.parse().with_context(bad)?, unit, ratio))
}

/// What a gdb outside sees of a Linux guest.
fn with_gdb(context: &Context, host: &KvmHost, vmm: &Path) -> Result<Vec<Figure>> {
    let vmm = host.upload_program(vmm)?;
    let symbols = kernel_symbols(context, Some(host))?;
    let program = demo::heartbeat(context)?;
    let guest = demo::boot(context, host, &vmm, &program)?;
    // Behind the bustle of its start.
    guest.vmm.wait_for("heartbeat 30 ", 0, SETTLE_TIMEOUT)?;
    let alone = usage::measure(host, &guest)?;

    let name = |suffix: &str| paths::cache().join(format!("bench-{}.{suffix}", std::process::id()));
    let (results, dump) = (name("json"), name("dump"));
    let progress = Progress::start("stepping, dumping memory and watching with gdb");
    let mut gdb = demo::gdb(&paths::root().join("tests/demo/bench.py"));
    gdb.env("BENCH_TARGET", guest.address())
        .env("BENCH_KERNEL", &symbols)
        .env("BENCH_DUMP", &dump)
        .env("BENCH_RESULTS", &results)
        // It reports every stop, whether asked to or not.
        .stdout(Stdio::null());
    let mut gdb = gdb.spawn().context("cannot start gdb-multiarch")?;
    let measured = wait_for_results(&mut gdb, &results).and_then(|figures| {
        let attached = usage::measure(host, &guest)?;
        Ok((figures, attached, fs::metadata(&dump)?.len()))
    });
    // That is also what gdb waits for.
    paths::remove(&results)?;
    paths::remove(&dump)?;
    if measured.is_err() {
        gdb.kill()?;
    }
    gdb.wait()?;
    let (figures, attached, dumped) = measured?;
    if dumped != DUMP_BYTES {
        bail!("gdb dumped {dumped} bytes of {DUMP_BYTES}");
    }
    progress.done();

    let transport = transport(host)?;
    let dump = figures.dump_mib_per_second;
    Ok(vec![
        // At best a step is one request and one answer.
        Figure::new(
            "gdb stepi",
            figures.steps_per_second,
            "1/s",
            Some(figures.steps_per_second / figures.round_trips_per_second),
        ),
        Figure::new("gdb dump memory", dump, "MiB/s", Some(dump / transport)),
        Figure::new("CPU of the gdb server's thread, guest running", attached.gdb_thread, "%", None),
        Figure::new("CPU of the VMM, guest running, gdb attached", attached.process, "%", None),
        Figure::new("CPU of the VMM, guest running, no gdb", alone.process, "%", None),
    ])
}

/// What tests/demo/bench_migration.py measures.
fn migration(context: &Context, host: &KvmHost, vmm: &Path) -> Result<Vec<Figure>> {
    let script = paths::root().join("tests/demo/bench_migration.py");
    let progress = Progress::start("migrating a guest with software breakpoints");
    let output = scenarios::measure(context, host, vmm, &script)?;
    progress.done();
    output.lines().map(parse).collect()
}

/// What tests/demo/bench.py measures.
#[derive(Debug, Deserialize)]
struct GdbFigures {
    steps_per_second: f64,
    round_trips_per_second: f64,
    dump_mib_per_second: f64,
}

fn wait_for_results(gdb: &mut Child, results: &Path) -> Result<GdbFigures> {
    let deadline = Instant::now() + GDB_TIMEOUT;
    while !results.exists() {
        if let Some(status) = gdb.try_wait()? {
            bail!("gdb ended before it had measured everything ({status})");
        }
        if Instant::now() > deadline {
            bail!("gdb has not measured everything after {} s", GDB_TIMEOUT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    serde_json::from_slice(&fs::read(results)?).context("gdb's results cannot be read")
}

/// MiB/s that the same number of bytes needs from the host to here as a plain file: gdb's bytes come the same way.
fn transport(host: &KvmHost) -> Result<f64> {
    let path = host.path("bench-transport");
    let script = format!("head -c {DUMP_BYTES} /dev/zero > {path}");
    if !host.output(&command(["sh", "-c", &script]))?.exit.success() {
        bail!("cannot write {path} in the host");
    }
    let started = Instant::now();
    let length = host.download(&path)?.len();
    let seconds = started.elapsed().as_secs_f64();
    host.output(&command(["rm", &path]))?;
    Ok(length as f64 / f64::from(1 << 20) / seconds)
}

fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let mut text = format!("{:width$}  {:>10} {:7} {:>8} {:>8}\n", "", "value", "unit", "of floor", "of peer");
    for Figure { name, value, unit, floor_ratio, peer_ratio } in figures {
        let value = if *value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let (floor, peer) = (ratio(*floor_ratio), ratio(*peer_ratio));
        text += &format!("{name:width$}  {value:>10} {unit:7} {floor:>8} {peer:>8}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_stepbench_are_figures() {
        assert_eq!(parse("a b\t2.5\t1/s\t0.9").unwrap(), Figure::new("a b", 2.5, "1/s", Some(0.9)));
        assert_eq!(parse("a\t2\tioctls\t-").unwrap(), Figure::new("a", 2.0, "ioctls", None));
        for bad in ["", "a\t1\ts", "a\tx\ts\t-", "a\t1\ts\tx"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_json_has_null_for_what_there_is_not() {
        let text = serde_json::to_string(&[Figure::new("a", 1.0, "s", None)]).unwrap();
        assert_eq!(text, r#"[{"name":"a","value":1.0,"unit":"s","floor_ratio":null,"peer_ratio":null}]"#);
    }

    #[test]
    fn the_table_is_aligned() {
        let text =
            table(&[Figure::new("short", 1.0, "s", None), Figure::new("a longer one", 12345.6, "1/s", Some(0.5))]);
        let lengths: Vec<_> = text.lines().map(str::len).collect();
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("12346") && text.contains("0.50"));
    }
}
