//! Starts a Debian guest under reference-vmm in the KVM host.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvm_agent::Endpoint;

use crate::assets;
use crate::context::Context;
use crate::host::{Forward, HostCommand, HostProcess, KvmHost, command};

/// How long reference-vmm may take to offer its gdb socket.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

/// The guest's kernel command line: no KASLR, so that the symbols fit.
pub const CMDLINE: &str = "console=ttyS0 nokaslr quiet panic=-1";

/// What Linux is told beside that on KVM of an x86_64 machine that is emulated, or a guest itself. Whoever calibrates the TSC with
/// a debugger's stops in between gets it wrong, and mitigations take long to emulate. Where a CPU's delay loop is calibrated
/// (init/calibrate.c), a CPU that comes up waits for another's ticks with interrupts off and without PAUSE: KVM in Bochs does not
/// leave it, and has one CPU for both.
pub const NESTED_CMDLINE: &str = "mitigations=off tsc=reliable lpj=400000";

/// What guest to start.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Kernel; `None` is Debian's.
    pub kernel: Option<PathBuf>,
    /// Initramfs, if it has one.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Execute nothing before a debugger says so.
    pub wait_for_gdb: bool,
    /// Whether its console gets input, which [`HostProcess::input`] takes.
    pub input: bool,
    /// A second VMM beside it, without a guest, for one to be restored or received in. Not every VMM has that.
    pub spare: bool,
    /// Whether it is going to be saved and moved.
    pub moves: bool,
    /// Further arguments for the VMM.
    pub extra: Vec<String>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            cmdline: CMDLINE.to_owned(),
            cpus: 2,
            memory: 512,
            wait_for_gdb: false,
            input: false,
            spare: false,
            moves: false,
            extra: Vec::new(),
        }
    }
}

/// A running guest; dropped, it ends.
pub struct Guest {
    /// The VMM, whose output is the guest's console.
    pub vmm: HostProcess,
    /// The gdb server's socket, on a local port.
    pub gdb: Forward,
    /// Path of that socket in the host.
    pub socket: String,
    /// Path of its control socket in the host.
    pub control: String,
}

impl Guest {
    /// What gdb's `target remote` takes.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.gdb.port())
    }
}

/// Builds reference-vmm for arm64 and makes it available in the host; returns its path there.
///
/// # Errors
/// If it does not build.
pub fn install(context: &Context, host: &KvmHost) -> Result<String> {
    host.upload_program(&context.toolchain()?.build("reference-vmm")?)
}

/// Starts a guest and waits for its gdb socket.
///
/// # Errors
/// If the VMM ends before; with its output.
pub fn start(context: &Context, host: &KvmHost, vmm: &str, options: &GuestOptions) -> Result<Guest> {
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => assets::kernel(&context.packages)?.image,
    };
    let mut arguments = vec!["run".to_owned(), "--kernel".to_owned(), upload(host, &kernel)?];
    if let Some(initrd) = &options.initrd {
        arguments.extend(["--initrd".to_owned(), upload(host, initrd)?]);
    }
    arguments.extend(["--cmdline".to_owned(), options.cmdline.clone()]);
    arguments.extend(["--cpus".to_owned(), options.cpus.to_string()]);
    arguments.extend(["--memory".to_owned(), options.memory.to_string()]);
    if options.wait_for_gdb {
        arguments.push("--wait-for-gdb".to_owned());
    }
    arguments.extend(options.extra.iter().cloned());
    launch(host, vmm, arguments, true, options.input)
}

/// Starts a VMM with these arguments, and sockets for control and, if it is to have one, for gdb. Waits until they are
/// there. With `input`, its standard input is ours to write.
///
/// # Errors
/// If the VMM ends before; with its output.
pub fn launch(host: &KvmHost, vmm: &str, arguments: Vec<String>, gdb: bool, input: bool) -> Result<Guest> {
    static GUESTS: AtomicU32 = AtomicU32::new(0);
    let number = GUESTS.fetch_add(1, Ordering::Relaxed);
    let path = |kind: &str| host.path(&format!("{kind}-{}-{number}.sock", std::process::id()));
    let (socket, control) = (path("gdb"), path("control"));
    let mut argv = vec![vmm.to_owned()];
    argv.extend(arguments);
    argv.extend(["--control".to_owned(), control.clone()]);
    if gdb {
        argv.extend(["--gdb".to_owned(), format!("unix:{socket}")]);
    }
    let vmm = host.spawn(&HostCommand { argv, stdin: input, ..HostCommand::default() })?;
    wait_for_socket(host, &vmm, if gdb { &socket } else { &control })?;
    let gdb = host.forward(Endpoint::Unix(socket.clone()))?;
    Ok(Guest { vmm, gdb, socket, control })
}

/// Path in the host of a file of this machine.
///
/// # Errors
/// If it can't be sent.
pub fn upload(host: &KvmHost, path: &Path) -> Result<String> {
    host.upload(path).with_context(|| format!("making {} available in the host", path.display()))
}

/// Waits for a socket without connecting to it: a connection would be a debugger that attaches.
///
/// # Errors
/// If there is none after a while, or the VMM ends.
pub fn wait_for_socket(host: &KvmHost, vmm: &HostProcess, socket: &str) -> Result<()> {
    let steps = SOCKET_TIMEOUT.as_secs() * 20;
    let script = format!("for i in $(seq {steps}); do [ -S {socket} ] && exit 0; sleep 0.05; done; exit 1");
    let looking = host.spawn(&command(["sh", "-c", &script]))?;
    loop {
        if let Some(exit) = looking.wait(Duration::from_millis(100))? {
            if exit.success() {
                return Ok(());
            }
            anyhow::bail!("no socket after {} s; the VMM says\n{}", SOCKET_TIMEOUT.as_secs(), vmm.output_text());
        }
        if let Some(exit) = vmm.wait(Duration::ZERO)? {
            anyhow::bail!("the VMM ended with {exit}:\n{}", vmm.output_text());
        }
    }
}
