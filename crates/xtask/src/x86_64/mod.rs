//! x86_64 KVM hosts for tests, emulated: QEMU, which has AMD's SVM, and Bochs, which has Intel's VMX.
//!
//! `/dev/kvm` of an x86_64 machine is often KVM in a guest, and then not all of it works. Nor does all of it in these two; but
//! between the three of them nearly everything does. Each boots Debian's amd64 kernel for one program, prints what that
//! prints, and ends. With an agent inside they are hosts for scenarios: `crate::host`.

pub mod bochs;
mod image;
mod machine;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::arch::Arch;
use crate::assets::{self, GuestFile, guest_initramfs};
use crate::context::Context;
use crate::packages::Tool;
use crate::paths;
use crate::progress::note;
use crate::runner::FILE_VARIABLE;
use crate::toolchain::cargo;
use machine::Machine;

/// Nothing of the kernel's on the console but a panic, which ends the machine. The TSC of Bochs does not run evenly.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=0 nokaslr mitigations=off tsc=unstable panic=-1";

/// For a kernel in QEMU whose KVM is used: a timer that ticks by itself, instead of one that is set anew at each tick. TCG loses
/// an interrupt now and then, because its helpers of VMRUN and of exits write the flags of what is pending without the lock that the
/// timer's thread has. With a one-shot timer that was the last one, and KVM never leaves a guest again that waits with interrupts off.
pub const QEMU_TICK: &str = "nohz=off highres=off";

/// Init of the Linux guest: says that it is there and how many processors it has, and goes after a while.
const GUEST_INIT: &str = r"#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo guest is ready with $(/bin/busybox grep -c ^processor /proc/cpuinfo) processors
/bin/busybox sleep 3
/bin/busybox poweroff -f
";

/// What the host is emulated by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Emulator {
    /// QEMU, whose CPU has SVM
    #[default]
    Qemu,
    /// Bochs, whose CPU has VMX
    Bochs,
}

impl Emulator {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Qemu, Self::Bochs];

    /// What it is, for messages.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Qemu => "KVM in QEMU's SVM",
            Self::Bochs => "KVM in Bochs' VMX",
        }
    }

    /// What it needs of Debian.
    pub const fn tool(self) -> Tool {
        match self {
            Self::Qemu => Tool::QemuX86,
            Self::Bochs => Tool::Bochs,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }
}

/// Options of `x86-runner`.
#[derive(Args, Debug)]
pub struct RunnerOptions {
    /// Where
    emulator: Emulator,
    /// The program, linked statically
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Gets everything that comes from Debian.
///
/// # Errors
/// If it cannot be had.
pub fn prepare(context: &Context) -> Result<()> {
    context.prepare(&Emulator::ALL.map(Emulator::tool))?;
    assets::kernel(&context.packages)?;
    assets::busybox(&context.packages).map(drop)
}

/// Runs a program in a host that is booted for it.
///
/// # Errors
/// If something is missing that cannot be had, or the host does not boot; with the end of its console.
pub fn runner(context: &Context, options: &RunnerOptions) -> Result<ExitCode> {
    context.packages.ensure(&[options.emulator.tool()])?;
    let kernel = assets::kernel(&context.packages)?;
    let busybox = assets::busybox(&context.packages)?;
    let directory = RunDirectory::new()?;
    let initramfs = directory.0.join("initramfs");
    let contents = image::Contents {
        busybox: &busybox,
        program: &options.program,
        arguments: &options.arguments,
        files: &files(),
    };
    image::write(options.emulator, &kernel, &contents, &initramfs)?;
    let mut machine = Machine::boot(options.emulator, &kernel, &initramfs, &directory.0)?;
    let code = machine.follow()?;
    note(format!("{}: the program ended with {code}", options.emulator.describe()));
    Ok(ExitCode::from(code))
}

/// The files that the program wants, by the variables that name them.
fn files() -> Vec<(String, PathBuf)> {
    let files = std::env::vars().filter(|(name, _)| name.starts_with(FILE_VARIABLE));
    files.map(|(name, path)| (name, path.into())).collect()
}

/// The tests of x86_64 guests on KVM, with this program as cargo's runner; what is slow there only where `all` are asked for.
///
/// # Errors
/// If this program's path can't be one of a runner, or the guest's files can't be had.
pub fn tests(context: &Context, emulator: Emulator, all: bool) -> Result<Command> {
    let executable = std::env::current_exe()?;
    let path = executable.to_str().context("the path of this program is no text")?;
    if path.contains(char::is_whitespace) {
        bail!("{path} contains a blank, which cargo's runner cannot have");
    }
    let variable = Arch::X86_64.target().replace('-', "_").to_uppercase();
    let mut command = cargo();
    command
        .args(["test", "--no-fail-fast", "--target", Arch::X86_64.target()])
        .args(["--package", "guest-debug", "--test", "kvm_x86_64", "--package", "reference-vmm", "--test", "pc"])
        .args(["--", "--test-threads=1"])
        // They would win over the target's own flags.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // The host has no C library.
        .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), "-C target-feature=+crt-static")
        .env(format!("CARGO_TARGET_{variable}_RUNNER"), format!("{path} x86-runner {}", emulator.name()));
    command.args(left_out(emulator, all).iter().flat_map(|test| ["--skip", test]));
    if emulator == Emulator::Qemu {
        // In Bochs scenarios have a Linux guest, and it boots slowly.
        command.env(format!("{FILE_VARIABLE}KERNEL"), assets::kernel(&context.packages)?.image).env(
            format!("{FILE_VARIABLE}INITRD"),
            guest_initramfs(&context.packages, &[GuestFile::script("/init", GUEST_INIT)])?,
        );
    }
    Ok(command)
}

/// Tests of reference-vmm that are not tried on an emulator whose CPU takes minutes for them, unless `all` are asked for.
pub fn left_out(emulator: Emulator, all: bool) -> &'static [&'static str] {
    match emulator {
        _ if all => &[],
        Emulator::Qemu => &[],
        Emulator::Bochs => &[
            "moving::a_step_goes_on_after_the_move",
            "moving::a_stop_is_told_again_after_the_move_and_the_guest_goes_on",
            "moving::what_a_debugger_armed_hits_after_the_move_while_the_guest_runs",
            "moving::what_the_guest_has_in_its_debug_registers_moves",
        ],
    }
}

/// A directory for one run, removed at its end.
struct RunDirectory(PathBuf);

impl RunDirectory {
    fn new() -> Result<Self> {
        let directory = paths::cache().join("x86_64").join(format!("run-{}", std::process::id()));
        paths::remove(&directory)?;
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self(directory))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if let Err(error) = paths::remove(&self.0) {
            note(format!("{error:#}"));
        }
    }
}
