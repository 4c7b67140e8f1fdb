//! `cargo xtask run`: a guest to debug by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::arch::Arch;
use crate::assets::{debug_vmlinux, guest_initramfs};
use crate::console::Console;
use crate::context::Context;
use crate::host::KvmHost;
use crate::packages::Tool;
use crate::paths;
use crate::progress::note;
use crate::relay;
use crate::symbols::kernel_symbols;
use crate::vmm::{self, CMDLINE, GuestOptions, NESTED_CMDLINE};

/// How soon Ctrl-A x is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// Kernel to boot instead of Debian's: an arm64 Image or an ELF file
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Initramfs instead of one with busybox
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line, instead of one that this host's guests boot with
    #[arg(long)]
    cmdline: Option<String>,
    /// Number of vCPUs
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Have gdb load the kernel's whole debug information, with types, variables and lines: Debian's debug package, 262 MB
    #[arg(long, conflicts_with = "kernel")]
    debug_info: bool,
    /// Execute nothing before gdb has attached and continued
    #[arg(long)]
    wait_for_gdb: bool,
}

/// The command line with which Linux boots in guests of a host.
fn cmdline(context: &Context, host: &KvmHost) -> String {
    match context.arch() {
        Arch::X86_64 if host.is_emulated() => format!("{CMDLINE} {NESTED_CMDLINE}"),
        _ => CMDLINE.to_owned(),
    }
}

/// Starts the guest and is its console until it ends or the user leaves.
pub fn run(context: &Context, options: &RunOptions) -> Result<ExitCode> {
    context.prepare(&[Tool::Gdb])?;
    let host = KvmHost::start(context)?;
    let vmm = vmm::install(context, &host)?;
    let initrd = match (&options.initrd, &options.kernel) {
        (Some(path), _) => Some(path.clone()),
        // A kernel of the caller's may be a payload that knows nothing of an initramfs.
        (None, Some(_)) => None,
        (None, None) => Some(guest_initramfs(&context.packages, &[])?),
    };
    let symbols = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None if options.debug_info => debug_vmlinux(&context.packages)?,
        None => kernel_symbols(context, Some(&host))?,
    };
    let guest = vmm::start(
        context,
        &host,
        &vmm,
        &GuestOptions {
            kernel: options.kernel.clone(),
            initrd,
            cmdline: options.cmdline.clone().unwrap_or_else(|| cmdline(context, &host)),
            cpus: options.cpus,
            memory: options.memory,
            wait_for_gdb: options.wait_for_gdb,
            input: true,
            spare: false,
            moves: false,
            extra: Vec::new(),
        },
    )?;
    note(format!("the guest runs under reference-vmm on {}", host.describe()?));
    note("attach with");
    let target = if host.is_emulated() {
        // A packet takes a millisecond to a guest in there.
        format!("| {} {}", paths::short(&relay::build()?), guest.address())
    } else {
        guest.address()
    };
    println!("\n    gdb-multiarch {} -ex 'target remote {target}'\n", paths::short(&symbols));
    note(format!(
        "{}; the guest's console follows",
        if Console::is_terminal() { "Ctrl-A x ends it" } else { "Ctrl-C ends it" }
    ));
    guest.vmm.echo()?;
    let console = Console::start(guest.vmm.input())?;
    loop {
        if let Some(exit) = guest.vmm.wait(POLL)? {
            drop(console);
            note(format!("the guest ended: {exit}"));
            return Ok(ExitCode::from(exit.shell_code()));
        }
        if console.is_left() {
            drop(console);
            note("ending the guest and its host");
            return Ok(ExitCode::SUCCESS);
        }
    }
}
