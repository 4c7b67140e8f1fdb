//! What every command needs.

use std::cell::OnceCell;

use anyhow::Result;
use clap::Args;

use crate::arch::Arch;
use crate::host::is_native;
use crate::packages::{Packages, Tool};
use crate::symbols;
use crate::toolchain::CrossToolchain;
use crate::x86_64::Emulator;

/// How the emulated host is made.
#[derive(Args, Clone, Debug)]
pub struct HostOptions {
    /// Architecture of guests and of the KVM host
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "KVM host")]
    pub arch: Arch,
    /// CPU of the emulated host. arm64: cortex-a72 (KVM without VHE, the default), cortex-a76 (with VHE), max (slow).
    /// x86_64: EPYC,+svm
    #[arg(long, global = true, value_name = "MODEL", help_heading = "Emulated KVM host")]
    pub host_cpu: Option<String>,
    /// Number of its CPUs; 2 on arm64. On x86_64 it is 1: with more of them QEMU loses more interrupts
    #[arg(long, global = true, value_name = "N", help_heading = "Emulated KVM host")]
    pub host_cpus: Option<u32>,
    /// Its memory in MiB
    #[arg(long, global = true, default_value_t = 3072, value_name = "MIB", help_heading = "Emulated KVM host")]
    pub host_memory: u32,
    /// What emulates an x86_64 host: QEMU has AMD's SVM, Bochs has Intel's VMX, and is slow
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "qemu",
        value_name = "PROGRAM",
        help_heading = "Emulated KVM host"
    )]
    pub host_emulator: Emulator,
    /// Use the emulated host even where this machine is a KVM host itself
    #[arg(long, global = true, help_heading = "Emulated KVM host")]
    pub emulated: bool,
}

impl HostOptions {
    /// The CPU of the emulated host.
    pub fn cpu(&self) -> &str {
        let default = match self.arch {
            Arch::Arm64 => "cortex-a72",
            Arch::X86_64 => "EPYC,+svm",
        };
        self.host_cpu.as_deref().unwrap_or(default)
    }

    /// The number of its CPUs.
    pub fn cpus(&self) -> u32 {
        // With two, KVM in QEMU's SVM loses more interrupts (x86_64::QEMU_TICK).
        self.host_cpus.unwrap_or(if self.arch == Arch::X86_64 { 1 } else { 2 })
    }
}

/// Packages, compiler and options, shared by all that a command does.
pub struct Context {
    /// Where missing things come from.
    pub packages: Packages,
    /// How to make the emulated host.
    pub host: HostOptions,
    assume_yes: bool,
    toolchain: OnceCell<CrossToolchain>,
}

impl Context {
    /// `assume_yes`: install packages without asking.
    pub fn new(assume_yes: bool, host: HostOptions) -> Self {
        Self { assume_yes, packages: Packages::new(assume_yes, host.arch), host, toolchain: OnceCell::new() }
    }

    /// The same for hosts that are made otherwise.
    pub fn with(&self, host: HostOptions) -> Self {
        Self::new(self.assume_yes, host)
    }

    /// The same for an architecture, with a host as it is by itself where that is another one.
    pub fn of(&self, arch: Arch) -> Self {
        let host = if arch == self.arch() {
            self.host.clone()
        } else {
            HostOptions { arch, host_cpu: None, host_cpus: None, ..self.host.clone() }
        };
        self.with(host)
    }

    /// Of guests and of the KVM host.
    pub fn arch(&self) -> Arch {
        self.host.arch
    }

    /// Makes sure of these tools, and of everything that guests on a KVM host need: all in one question, so that it is not
    /// asked again in the middle of the work.
    ///
    /// # Errors
    /// As [`Packages::ensure`].
    pub fn prepare(&self, tools: &[Tool]) -> Result<()> {
        let mut wanted = vec![Tool::compiler(self.arch())];
        wanted.extend(tools);
        if !is_native(self) || !symbols::any_made(self.arch()) {
            wanted.push(Tool::emulator(self.arch()));
        }
        if self.toolchain.get().is_none() {
            match CrossToolchain::find(self.arch())? {
                Some(found) => drop(self.toolchain.set(found)),
                None => wanted.push(Tool::DebianRust),
            }
        }
        self.packages.ensure(&wanted)
    }

    /// The compiler for the architecture; looked for at the first call.
    ///
    /// # Errors
    /// If there is none and none can be had.
    pub fn toolchain(&self) -> Result<&CrossToolchain> {
        if let Some(found) = self.toolchain.get() {
            return Ok(found);
        }
        let found = CrossToolchain::get(&self.packages)?;
        Ok(self.toolchain.get_or_init(|| found))
    }
}
