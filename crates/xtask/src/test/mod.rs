//! `cargo xtask test`: everything that is checked, and the sum of it.

mod follow;
mod report;
mod summary;

use std::env;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::arch::Arch;
use crate::assets::{guest_initramfs, kernel};
use crate::context::{Context, HostOptions};
use crate::host::{self, HOST_VARIABLE, KvmHost};
use crate::packages::{Declined, Tool};
use crate::patches;
use crate::progress::note;
use crate::report::{Counts, Status};
use crate::runner::{FILE_VARIABLE, runner_variable};
use crate::scenarios::{self, ScenarioOptions};
use crate::toolchain::cargo;
use crate::x86_64::{self, Emulator};
use report::Report;

/// Options of `test`.
#[derive(Args, Debug)]
pub struct TestOptions {
    /// Leave out what needs an arm64 KVM host; it is counted as skipped
    #[arg(long)]
    no_host: bool,
    /// Leave out the scenarios; they are counted as skipped
    #[arg(long)]
    no_scenarios: bool,
    /// Leave out nothing for being slow or large: scenarios with a Linux guest, and tests, that take minutes in Bochs, an hour longer, and
    /// scenarios that want the kernel's debug information, 262 MB
    #[arg(long)]
    all: bool,
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
            match x86_64::tests(&context.of(Arch::X86_64), emulator, options.all) {
                Ok(mut command) => report.cargo_test(&name, &mut command),
                Err(error) => report.fail(&name, &format!("{error:#}")),
            }
            for test in x86_64::left_out(emulator, options.all) {
                report.skip(&format!("{name}: {test}"), "slow there; --all runs it");
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
    let scenario_options = ScenarioOptions { all: options.all, ..ScenarioOptions::default() };
    report.scenarios("scenarios", || scenarios::run(context, &host, &scenario_options));
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
        let scenario_options = ScenarioOptions { all: options.all, ..ScenarioOptions::default() };
        report.scenarios(name, || scenarios::run_on_x86_64(&context, &scenario_options));
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
