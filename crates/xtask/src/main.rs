//! `cargo xtask`: the commands of this repository. `cargo xtask help` lists them.

#![forbid(unsafe_code)]

mod arch;
#[allow(dead_code, reason = "in part only for demo, scenarios and bench")]
mod assets;
mod bench;
mod console;
mod context;
mod cpio;
mod demo;
#[allow(dead_code, reason = "in part only for demo, scenarios and bench")]
mod host;
mod modules;
mod packages;
mod patches;
mod paths;
mod peer;
mod progress;
mod relay;
mod report;
mod run;
mod runner;
mod rust_version;
mod scenarios;
mod symbols;
mod test;
mod toolchain;
#[allow(dead_code, reason = "in part only for demo, scenarios and bench")]
mod vmm;
mod x86_64;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::{Parser, Subcommand};

use arch::Arch;
use context::{Context, HostOptions};
use x86_64::Emulator;

/// Commands of the guest-debug repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Install missing Debian packages without asking
    #[arg(long, global = true)]
    yes: bool,
    #[command(flatten)]
    host: HostOptions,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Boot a Linux guest, attach gdb to it and show what the debugger can do
    Demo(demo::DemoOptions),
    /// Check everything: format, lints, tests here, tests and scenarios on KVM hosts
    Test(test::TestOptions),
    /// Start a Linux guest and print the line that attaches gdb to it
    Run(run::RunOptions),
    /// Run the scenario suite: gdb against running guests
    Scenarios(scenarios::ScenarioOptions),
    /// Measure
    Bench(bench::BenchOptions),
    /// Run an arm64 program on the KVM host (cargo's runner)
    Runner(runner::RunnerOptions),
    /// Run a static x86_64 program on KVM in an emulator (cargo's runner for x86_64 tests)
    X86Runner(x86_64::RunnerOptions),
    /// Print shell exports with which `cargo test --target aarch64-unknown-linux-gnu` works: eval "$(cargo xtask env)"
    Env,
    /// Make the file with the guest kernel's symbols and print its path
    Symbols,
    /// Run a command in the KVM host: cargo xtask host -- uname -a
    Host(runner::HostOptions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.yes, cli.host);
    match possible(&context.host, &cli.task).and_then(|()| run(&context, cli.task)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Refuses what there is not.
fn possible(host: &HostOptions, task: &Task) -> Result<()> {
    let arch = host.arch;
    if arch == Arch::Arm64 {
        ensure!(host.host_emulator == Emulator::Qemu, "Bochs emulates x86_64 machines: --arch x86_64");
        return Ok(());
    }
    ensure!(arch.is_here(), "--arch {} is for machines of that architecture", arch.name());
    let other = match task {
        Task::Test(_) => "test, which tests both",
        Task::Bench(_) => "bench",
        Task::Runner(_) | Task::Env => "cargo's runner, whose counterpart is x86-runner",
        _ => return Ok(()),
    };
    bail!("--arch {} is not for {other}", arch.name())
}

fn run(context: &Context, task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo(options) => demo::demo(context, &options),
        Task::Test(options) => test::test(context, &options),
        Task::Run(options) => run::run(context, &options),
        Task::Scenarios(options) => scenarios::main(context, &options),
        Task::Bench(options) => bench::bench(context, &options),
        Task::Runner(options) => runner::runner(context, options),
        Task::X86Runner(options) => x86_64::runner(&context.of(Arch::X86_64), &options),
        Task::Env => runner::env(context),
        Task::Symbols => {
            println!("{}", symbols::kernel_symbols(context, None)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Host(options) => runner::host(context, options),
    }
}
