//! The demo for x86_64: on this machine's KVM if there is one, or else on that of an emulated machine.
//!
//! KVM on such machines is often nested and can't do everything. So its guest is the bare-metal one, which runs anywhere, and
//! what could not be shown is said with the reason.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{DemoOptions, conclude, show};
use crate::context::Context;
use crate::host::KvmHost;
use crate::packages::Tool;
use crate::scenarios::{Fleet, ReferenceMover, bare_guest};
use crate::vmm;

/// Tests of the guest that the demo wants to see; of KVM they need something that it may not have.
const TESTS: [&str; 1] = ["step_syscall"];

/// Runs the demo; succeeds only if all came true that could be shown.
pub(super) fn demo(context: &Context, options: &DemoOptions, started: Instant) -> Result<ExitCode> {
    context.prepare(&[Tool::Gdb, Tool::Python])?;
    let host = KvmHost::start(context)?;
    let (guest, facts) = bare_guest(context, &host, &TESTS)?;
    println!(
        "\nThe guest is a program of tests/guest/bare, on two vCPUs under reference-vmm, on {}.",
        host.describe()?
    );
    println!("Below, a line that starts with (gdb) is what is typed into gdb-multiarch; what follows is gdb's answer.");
    let mover = ReferenceMover::new(&host, &vmm::install(context, &host)?);
    let fleet = Fleet::new(&mover, guest.into());
    let snapshots = mover.snapshots();
    let shown = fleet.serve(|socket| {
        let mut facts: Vec<_> = facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
        facts.push(("DEMO_SNAPSHOTS", &snapshots));
        facts.push(("FLEET", socket.to_str().context("the socket's path is no text")?));
        show("demo_x86_64.py", &facts, options)
    })?;
    Ok(conclude(&shown, &*fleet.last()?, options, started))
}
