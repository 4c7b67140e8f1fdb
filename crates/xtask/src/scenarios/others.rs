//! What the demo and the benchmark use of the suite: its guests, and scripts that move them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::abilities::{Abilities, Ability};
use super::cloud_hypervisor::CloudHypervisor;
use super::script::Facts;
use super::vmm::{ReferenceVmm, RunningGuest};
use super::{AGENT_READY, BOOT_TIMEOUT, MOVING_MEMORY, Suite, catalog, guests};
use crate::context::Context;
use crate::host::KvmHost;
use crate::report::Status;
use crate::symbols::kernel_symbols;
use crate::vmm::{Guest, GuestOptions};

/// Runs a script that moves a Linux guest from VMM to VMM and measures something; answers what it prints.
///
/// # Errors
/// If it fails.
pub(crate) fn measure(context: &Context, host: &KvmHost, binary: &Path, script: &Path) -> Result<String> {
    let vmm = ReferenceVmm::new(context, host, Some(binary))?;
    let scenario = catalog::load_file(script)?;
    let mut suite = Suite::new(context, Some(host), &vmm, Abilities::All);
    let outcome = suite.moves(&scenario)?.context("this VMM's guests can't be moved")?;
    if outcome.status != Status::Passed {
        bail!("{}: {}", script.display(), outcome.reason.unwrap_or_default());
    }
    Ok(outcome.output)
}

/// A bare-metal guest on two vCPUs that has executed nothing yet, and what scripts want to know of it and of the host, which
/// may not be able to do everything. `tests` are tests of the guest that are tried out for that.
///
/// # Errors
/// If a part of it cannot be had.
pub(crate) fn bare_guest(context: &Context, host: &KvmHost, tests: &[&str]) -> Result<(Box<dyn RunningGuest>, Facts)> {
    let vmm = ReferenceVmm::new(context, host, None)?;
    let mut suite = Suite::new(context, Some(host), &vmm, Abilities::Found(BTreeMap::new()));
    suite.try_out()?;
    for test in tests {
        suite.can(&Ability::Test((*test).to_owned()))?;
    }
    let (guest, mut facts) = suite.bare(&GuestOptions { cpus: 2, ..GuestOptions::default() })?;
    facts.extend(suite.facts(&*guest, 2));
    Ok((guest, facts))
}

/// The files of the Linux guest with the agent, for whoever starts it without the suite.
pub(crate) struct AgentGuest {
    agent: PathBuf,
    initrd: PathBuf,
    symbols: PathBuf,
}

/// Builds them.
///
/// # Errors
/// If a part of it cannot be had.
pub(crate) fn agent_guest(context: &Context, host: &KvmHost) -> Result<AgentGuest> {
    let (agent, initrd) = guests::agent(context, &[])?;
    Ok(AgentGuest { agent, initrd, symbols: kernel_symbols(context, Some(host))? })
}

/// Starts a guest under somebody's cloud-hypervisor.
///
/// # Errors
/// If the VMM ends before it serves gdb; with its output.
pub(crate) fn cloud_hypervisor_guest(
    context: &Context,
    host: &KvmHost,
    binary: &Path,
    options: &GuestOptions,
) -> Result<Guest> {
    CloudHypervisor::new(context, host, binary, None)?.start_alone(options)
}

impl AgentGuest {
    /// How to start it, with little memory.
    pub(crate) fn options(&self, cmdline: &str) -> GuestOptions {
        let (initrd, cmdline) = (Some(self.initrd.clone()), cmdline.to_owned());
        GuestOptions { initrd, cmdline, memory: MOVING_MEMORY, ..GuestOptions::default() }
    }

    /// Waits until the agent is there.
    ///
    /// # Errors
    /// If it does not come, with the end of the console.
    pub(crate) fn wait(&self, guest: &Guest) -> Result<()> {
        guest.vmm.wait_for(AGENT_READY, 0, BOOT_TIMEOUT).map(drop)
    }

    /// What scripts want to know of it.
    pub(crate) fn facts(&self, guest: &Guest) -> [(&'static str, String); 4] {
        [
            ("GDB_TARGET", guest.address()),
            ("GDB_CPUS", GuestOptions::default().cpus.to_string()),
            ("GUEST_ELF", self.agent.display().to_string()),
            ("KERNEL_ELF", self.symbols.display().to_string()),
        ]
    }
}
