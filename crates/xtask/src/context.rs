//! What every command needs.

use std::cell::OnceCell;

use anyhow::Result;
use clap::Args;

use crate::host::is_native;
use crate::packages::{Packages, Tool};
use crate::symbols;
use crate::toolchain::CrossToolchain;

/// How the emulated host is made.
#[derive(Args, Clone, Debug)]
pub struct HostOptions {
    /// CPU of the emulated host: cortex-a72 (KVM without VHE), cortex-a76 (with VHE), max (slow)
    #[arg(long, global = true, default_value = "cortex-a72", value_name = "MODEL", help_heading = "Emulated KVM host")]
    pub host_cpu: String,
    /// Number of its CPUs
    #[arg(long, global = true, default_value_t = 2, value_name = "N", help_heading = "Emulated KVM host")]
    pub host_cpus: u32,
    /// Its memory in MiB
    #[arg(long, global = true, default_value_t = 3072, value_name = "MIB", help_heading = "Emulated KVM host")]
    pub host_memory: u32,
    /// Use the emulated host even where this machine is an arm64 KVM host itself
    #[arg(long, global = true, help_heading = "Emulated KVM host")]
    pub emulated: bool,
}

/// Packages, compiler and options, shared by all that a command does.
pub struct Context {
    /// Where missing things come from.
    pub packages: Packages,
    /// How to make the emulated host.
    pub host: HostOptions,
    toolchain: OnceCell<CrossToolchain>,
}

impl Context {
    /// `assume_yes`: install packages without asking.
    pub fn new(assume_yes: bool, host: HostOptions) -> Self {
        Self { packages: Packages::new(assume_yes), host, toolchain: OnceCell::new() }
    }

    /// Makes sure of these tools, and of everything that guests on a KVM host need: all in one question, so that it is not
    /// asked again in the middle of the work.
    ///
    /// # Errors
    /// As [`Packages::ensure`].
    pub fn prepare(&self, tools: &[Tool]) -> Result<()> {
        let mut wanted = vec![Tool::CrossGcc];
        wanted.extend(tools);
        if !is_native(self) || !symbols::any_made() {
            wanted.push(Tool::Qemu);
        }
        if self.toolchain.get().is_none() {
            match CrossToolchain::find()? {
                Some(found) => drop(self.toolchain.set(found)),
                None => wanted.push(Tool::DebianRust),
            }
        }
        self.packages.ensure(&wanted)
    }

    /// The compiler for arm64; looked for at the first call.
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
