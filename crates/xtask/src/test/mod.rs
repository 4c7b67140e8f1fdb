//! `cargo xtask test`: everything that is checked, and the sum of it.

mod follow;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::arch::Arch;
use crate::assets::{guest_initramfs, kernel};
use crate::context::{Context, HostOptions};
use crate::host::{self, HOST_VARIABLE, KvmHost};
use crate::packages::{Declined, Tool};
use crate::patches;
use crate::progress::note;
use crate::report::{CaseResult, Counts, Status};
use crate::runner::{FILE_VARIABLE, runner_variable};
use crate::scenarios::{self, ScenarioOptions};
use crate::toolchain::cargo;
use crate::x86_64::{self, Emulator};
use follow::follow;
use summary::TestName;

/// Options of `test`.
#[derive(Args, Debug)]
pub struct TestOptions {
    /// Leave out what needs an arm64 KVM host; it is counted as skipped
    #[arg(long)]
    no_host: bool,
    /// Leave out the scenarios; they are counted as skipped
    #[arg(long)]
    no_scenarios: bool,
}

/// Crates whose tests run on the KVM host as well: those that do something else on arm64.
const HOST_CRATES: [&str; 2] = ["guest-debug", "reference-vmm"];
/// The CPU of a second emulated host, for the tests of guests: VHE, SVE, atomics, pointer authentication.
const SECOND_CPU: &str = "max";
/// The crate with the tests of guests.
const GUEST_CRATES: [&str; 1] = ["reference-vmm"];

/// Runs all steps, also after one has failed, and prints the sum as the last line.
pub fn test(context: &Context, options: &TestOptions) -> Result<ExitCode> {
    let mut report = Report::default();
    let mut host_is_possible = true;
    if !options.no_host {
        // First, so that a question about packages is not asked after minutes of work.
        let started = report.begin("packages");
        match get_packages(context) {
            Ok(()) => report.end("packages", started, Counts::one(Status::Passed)),
            // Who says no expects neither a long run without most of the tests, nor a success.
            Err(error) if error.is::<Declined>() => {
                return Err(
                    error.context("nothing was tested; cargo xtask test --no-host leaves out what needs packages")
                );
            }
            Err(error) => {
                host_is_possible = false;
                report.fail("packages", &format!("{error:#}"));
            }
        }
    }
    report.outcome("patches for hypervisors", patches::check_all);
    report.command("format", cargo().args(["fmt", "--all", "--", "--check"]));
    report.command(
        "lints",
        cargo().args(["clippy", "--quiet", "--workspace", "--all-features", "--all-targets", "--", "-D", "warnings"]),
    );
    report.cargo_test("tests here", cargo().args(["test", "--workspace", "--all-features", "--no-fail-fast"]));
    report.command(
        "documentation",
        cargo().args(["doc", "--quiet", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings"),
    );
    on_x86_64(context, options, host_is_possible, &mut report);
    scenarios_on_x86_64(context, options, host_is_possible, &mut report);
    if options.no_host {
        report.skip("tests on the KVM host", "left out by --no-host");
        report.skip("scenarios", "left out by --no-host");
    } else if !host_is_possible {
        report.skip("tests on the KVM host", "the packages for it cannot be had");
        report.skip("scenarios", "the packages for them cannot be had");
    } else {
        on_host(context, options, &mut report);
    }
    report.print();
    Ok(if report.counts().failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that comes from Debian.
fn get_packages(context: &Context) -> Result<()> {
    context.prepare(&[Tool::Gdb, Tool::Lldb, Tool::Python])?;
    guest_initramfs(&context.packages, &[])?;
    kernel(&context.packages)?;
    if Arch::X86_64.is_here() { x86_64::prepare(&context.of(Arch::X86_64)) } else { Ok(()) }
}

/// The tests of x86_64 sessions on KVM that `/dev/kvm` of this machine, if there is one, has not been enough for.
fn on_x86_64(context: &Context, options: &TestOptions, possible: bool, report: &mut Report) {
    for emulator in Emulator::ALL {
        let name = format!("x86_64 tests, {}", emulator.describe());
        if options.no_host {
            report.skip(&name, "left out by --no-host");
        } else if !Arch::X86_64.is_here() {
            report.skip(&name, "they are built on x86_64 machines only");
        } else if !possible {
            report.skip(&name, "the packages for it cannot be had");
        } else {
            match x86_64::tests(&context.of(Arch::X86_64), emulator) {
                Ok(mut command) => report.cargo_test(&name, &mut command),
                Err(error) => report.fail(&name, &format!("{error:#}")),
            }
        }
    }
}

fn on_host(context: &Context, options: &TestOptions, report: &mut Report) {
    let native = host::is_native(context);
    if !native {
        report.outcome("arm64 lints", || lint_arm64(context).map(drop));
        if context.toolchain().is_ok_and(|toolchain| !toolchain.has_clippy()) {
            let reason = "rustup's clippy cannot read the standard library of Debian's rustc; checked with rustc alone";
            report.skip("arm64 clippy", reason);
        }
    }
    let host = match KvmHost::start(context).and_then(|host| host.describe().map(|text| (host, text))) {
        Ok((host, text)) => {
            note(format!("KVM host: {text}"));
            report.pass("KVM host");
            host
        }
        Err(error) => {
            report.fail("KVM host", &format!("{error:#}"));
            report.skip("tests on the KVM host", "there is no host");
            report.skip("scenarios", "there is no host");
            return;
        }
    };
    // On a native host the tests above were these tests.
    if !native {
        run_host_tests(context, &host, &HOST_CRATES, "tests on the KVM host", report);
        if context.host.cpu() != SECOND_CPU {
            let options = HostOptions { host_cpu: Some(SECOND_CPU.to_owned()), ..context.host.clone() };
            let second = context.with(options);
            let name = format!("tests of guests, CPU {SECOND_CPU}");
            match KvmHost::start_emulated(&second) {
                Ok(host) => run_host_tests(&second, &host, &GUEST_CRATES, &name, report),
                Err(error) => report.fail(&name, &format!("{error:#}")),
            }
        }
    }
    let reason = "cargo xtask scenarios --vmm cloud-hypervisor --binary PATH runs them on an arm64 binary";
    report.skip("scenarios on cloud-hypervisor", reason);
    if options.no_scenarios {
        report.skip("scenarios", "left out by --no-scenarios");
        return;
    }
    report.scenarios("scenarios", || scenarios::run(context, &host, &ScenarioOptions::default()));
}

/// The scenarios of x86_64 guests, each where it can run: on `/dev/kvm` of this machine, or on KVM in QEMU.
fn scenarios_on_x86_64(context: &Context, options: &TestOptions, possible: bool, report: &mut Report) {
    let name = "x86_64 scenarios";
    if options.no_host || options.no_scenarios {
        report.skip(name, if options.no_host { "left out by --no-host" } else { "left out by --no-scenarios" });
    } else if !Arch::X86_64.is_here() {
        report.skip(name, "they run on x86_64 machines only");
    } else if !possible {
        report.skip(name, "the packages for them cannot be had");
    } else {
        let context = context.of(Arch::X86_64);
        report.scenarios(name, || scenarios::run_on_x86_64(&context, &ScenarioOptions::default()));
    }
}

/// clippy for arm64 where it works, or else rustc's own lints.
fn lint_arm64(context: &Context) -> Result<()> {
    let toolchain = context.toolchain()?;
    note(format!("arm64 compiler: {}", toolchain.describe()));
    let mut cargo = toolchain.cargo();
    let clippy = toolchain.has_clippy();
    cargo.args([
        if clippy { "clippy" } else { "check" },
        "--quiet",
        "--workspace",
        "--all-targets",
        "--target",
        Arch::Arm64.target(),
    ]);
    if clippy {
        cargo.args(["--", "-D", "warnings"]);
    } else {
        cargo.args(["--config", &format!("target.{}.rustflags=[\"-Dwarnings\"]", Arch::Arm64.target())]);
    }
    succeed(&mut cargo)
}

fn run_host_tests(context: &Context, host: &KvmHost, crates: &[&str], name: &str, report: &mut Report) {
    match host_tests(context, host, crates) {
        Ok(mut command) => report.cargo_test(name, &mut command),
        Err(error) => report.fail(name, &format!("{error:#}")),
    }
}

/// The tests for arm64, with this program as cargo's runner and `host` to run them on.
fn host_tests(context: &Context, host: &KvmHost, crates: &[&str]) -> Result<Command> {
    let (runner, value) = runner_variable()?;
    let mut command = context.toolchain()?.cargo();
    command.args(["test", "--tests", "--no-fail-fast", "--target", Arch::Arm64.target()]);
    for name in crates {
        command.args(["--package", name]);
    }
    // Property tests have run in full on this machine, many times as fast.
    if host.is_emulated() && env::var_os("PROPTEST_CASES").is_none() {
        command.env("PROPTEST_CASES", "16");
    }
    command
        .env(runner, value)
        .env(HOST_VARIABLE, host.lend())
        .env(format!("{FILE_VARIABLE}KERNEL"), kernel(&context.packages)?.image)
        .env(format!("{FILE_VARIABLE}INITRD"), guest_initramfs(&context.packages, &[])?);
    Ok(command)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "cargo failed ({status})");
    Ok(())
}

/// What happened so far.
#[derive(Default)]
struct Report {
    steps: Vec<Step>,
    explanations: Vec<(Status, String, String)>,
    /// Tests that did not run somewhere, and tests that passed anywhere.
    left_out: BTreeMap<TestName, String>,
    passed: BTreeSet<TestName>,
}

struct Step {
    name: String,
    counts: Counts,
    seconds: f64,
    /// The test runners' own summaries.
    lines: Vec<String>,
}

impl Report {
    fn begin(&self, name: &str) -> Instant {
        note(format!("=== {name}"));
        Instant::now()
    }

    fn end(&mut self, name: &str, started: Instant, counts: Counts) {
        let seconds = started.elapsed().as_secs_f64();
        self.steps.push(Step { name: name.to_owned(), counts, seconds, lines: Vec::new() });
    }

    fn explain(&mut self, status: Status, name: &str, reason: &str) {
        self.explanations.push((status, name.to_owned(), reason.to_owned()));
    }

    fn pass(&mut self, name: &str) {
        self.end(name, Instant::now(), Counts::one(Status::Passed));
    }

    fn fail(&mut self, name: &str, reason: &str) {
        note(format!("{name} failed: {reason}"));
        self.end(name, Instant::now(), Counts::one(Status::Failed));
        self.explain(Status::Failed, name, reason);
    }

    fn skip(&mut self, name: &str, reason: &str) {
        self.end(name, Instant::now(), Counts::one(Status::Skipped));
        self.explain(Status::Skipped, name, reason);
    }

    /// A step that either works or does not.
    fn outcome(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        let started = self.begin(name);
        match step() {
            Ok(()) => self.end(name, started, Counts::one(Status::Passed)),
            Err(error) => self.fail(name, &format!("{error:#}")),
        }
    }

    fn command(&mut self, name: &str, command: &mut Command) {
        self.outcome(name, || succeed(command));
    }

    /// A run of scenarios, which are counted one by one.
    fn scenarios(&mut self, name: &str, run: impl FnOnce() -> Result<Vec<CaseResult>>) {
        let started = self.begin(name);
        let results = match run() {
            Ok(results) => results,
            Err(error) => return self.fail(name, &format!("{error:#}")),
        };
        let mut counts = Counts::default();
        for result in &results {
            counts += Counts::one(result.status);
            if result.status != Status::Passed {
                let name = format!("{name}: {}", result.name);
                self.explain(result.status, &name, result.reason.as_deref().unwrap_or("no reason given"));
            }
        }
        self.end(name, started, counts);
    }

    /// A run of `cargo test`, whose tests are counted one by one.
    fn cargo_test(&mut self, name: &str, command: &mut Command) {
        let started = self.begin(name);
        let output = match follow(command) {
            Ok(output) => output,
            Err(error) => return self.fail(name, &format!("{error:#}")),
        };
        let mut counts = output.counts;
        for test in &output.failed {
            self.explain(Status::Failed, &format!("{name}: {test}"), "see its output above");
        }
        if !output.success && counts.failed == 0 {
            counts.failed = 1;
            self.explain(Status::Failed, name, "cargo test failed without a test that failed: does it compile?");
        }
        self.left_out.extend(output.left_out);
        self.passed.extend(output.passed);
        self.end(name, started, counts);
        if let Some(step) = self.steps.last_mut() {
            step.lines = output.results;
        }
    }

    /// The sum. A test that did not run in one place and has passed in another was not skipped.
    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for step in &self.steps {
            counts += step.counts;
        }
        counts.skipped += self.skipped_tests().count() as u64;
        counts
    }

    fn skipped_tests(&self) -> impl Iterator<Item = (&TestName, &String)> {
        self.left_out.iter().filter(|(test, _)| !self.passed.contains(test))
    }

    fn print(&self) {
        println!("\n=== summary");
        for step in &self.steps {
            println!("{}: {} ({:.1} s)", step.name, step.counts, step.seconds);
            for line in &step.lines {
                println!("    {line}");
            }
        }
        let elsewhere = self.left_out.len() - self.skipped_tests().count();
        if elsewhere > 0 {
            println!("{elsewhere} tests could not run in one place and passed in another: they count as passed");
        }
        for (test, reason) in self.skipped_tests() {
            println!("skipped: {test}: {reason}");
        }
        for (status, name, reason) in &self.explanations {
            let status = if *status == Status::Skipped { "skipped" } else { "FAILED" };
            println!("{status}: {name}: {reason}");
        }
        println!("{}", self.counts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_skipped_only_if_it_passed_nowhere() {
        let mut report = Report::default();
        let here = "test ignored ... ignored, needs KVM\ntest never ... ignored, needs hardware\n\
                    test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let small = "test ignored ... ok\nSKIPPED: sve: no SVE\ntest sve ... ok\ntest never ... ignored, needs hardware\n\
                     test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let large = "test ignored ... ok\ntest sve ... ok\n\
                     test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        for (name, output) in [("here", here), ("cortex-a72", small), ("max", large)] {
            report.cargo_test(name, Command::new("printf").arg("%s\n").arg(output));
        }
        assert_eq!(report.counts(), Counts { passed: 3, failed: 0, skipped: 1 });
        assert_eq!(report.skipped_tests().map(|(test, _)| test.to_string()).collect::<Vec<_>>(), [" never"]);
    }
}
