//! cloud-hypervisor on a KVM host: a binary for arm64 that somebody has built, patched or not.

mod api;
mod mover;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use api::Api;
use kvm_agent::{Endpoint, Signal};
use mover::{ChMover, SECCOMP};

use super::guests::{GuestLayout, Machine};
use super::script::Facts;
use super::vmm::{Mover, RunningGuest, Vmm};
use crate::assets;
use crate::context::Context;
use crate::host::{Forward, HostCommand, HostProcess, KvmHost, command};
use crate::paths;
use crate::progress::output_of;
use crate::vmm::{self, GuestOptions, upload, wait_for_socket};

/// Below this are the interrupt controller's registers (cloud-hypervisor, arch/src/aarch64/layout.rs).
const MAPPED_IO_START: u64 = 0x0900_0000;

/// cloud-hypervisor on a KVM host.
pub(super) struct CloudHypervisor<'a> {
    context: &'a Context,
    launcher: Launcher<'a>,
    mover: ChMover<'a>,
}

impl<'a> CloudHypervisor<'a> {
    /// `pristine` is for VMs that go on without their debug sessions.
    pub(super) fn new(context: &'a Context, host: &'a KvmHost, binary: &Path, pristine: Option<&Path>) -> Result<Self> {
        let pristine = pristine.map(|binary| host.upload_program(binary)).transpose()?;
        let launcher = Launcher { host, program: host.upload_program(binary)?, pristine };
        Ok(Self { context, mover: ChMover::new(launcher.clone()), launcher })
    }

    /// A guest that nothing is to be done with but what gdb does.
    pub(super) fn start_alone(&self, options: &GuestOptions) -> Result<vmm::Guest> {
        let Process { vmm, gdb, gdb_socket, api_socket, .. } = self.launch(options)?;
        Ok(vmm::Guest { vmm, gdb: gdb.context("it has no gdb server")?, socket: gdb_socket, control: api_socket })
    }

    /// A VMM whose guest runs, unless it is to wait for gdb.
    fn launch(&self, options: &GuestOptions) -> Result<Process> {
        let kernel = match &options.kernel {
            Some(kernel) => flat_image(kernel)?,
            None => assets::kernel(&self.context.packages)?.image,
        };
        let host = self.launcher.host;
        let mut argv = vec!["--kernel".to_owned(), upload(host, &kernel)?];
        if let Some(initrd) = &options.initrd {
            argv.extend(["--initramfs".to_owned(), upload(host, initrd)?]);
            argv.extend(["--cmdline".to_owned(), options.cmdline.clone()]);
        }
        argv.extend(["--cpus".to_owned(), format!("boot={}", options.cpus)]);
        // Memory that a migration on this host can hand over as it is.
        let shared = if options.spare { ",shared=on" } else { "" };
        argv.extend(["--memory".to_owned(), format!("size={}M{shared}", options.memory)]);
        argv.extend(["--serial", "tty", "--console", "off"].map(str::to_owned));
        if options.spare || options.moves {
            argv.extend(SECCOMP.map(str::to_owned));
        }
        argv.extend(options.extra.iter().cloned());
        let process = self.launcher.spawn(&self.launcher.program, argv, true)?;
        if !options.wait_for_gdb {
            // With --gdb it waits for a client at boot, whatever one says on its command line.
            Api::new(host, &process.api_socket).put_soon("vm.resume")?;
        }
        Ok(process)
    }
}

impl Vmm for CloudHypervisor<'_> {
    fn layout(&self, cpus: u32) -> GuestLayout {
        let gicd = MAPPED_IO_START - 0x1_0000;
        let gicr = gicd - 0x2_0000 * u64::from(cpus);
        // Device tree and ACPI tables are in front of the kernel.
        let machine = Machine::Gic { distributor: gicd, redistributor: gicr };
        GuestLayout { ram_base: 0x4000_0000, load_offset: 0x40_0000, machine }
    }

    fn console(&self) -> &'static str {
        "ttyAMA0"
    }

    /// v53.0 by itself restores no VM with a virtio device that has no driver, and every VM has a random number generator.
    fn drivers(&self) -> &'static [&'static str] {
        &["virtio_pci", "virtio_rng"]
    }

    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>> {
        let process = self.launch(options)?;
        let spare = match options.spare {
            true => Some(Spare::start(&self.launcher)?),
            false => None,
        };
        Ok(Box::new(Guest { process, spare }))
    }

    fn mover(&self) -> Option<&dyn Mover> {
        Some(&self.mover)
    }
}

/// Starts its processes.
#[derive(Clone)]
struct Launcher<'a> {
    host: &'a KvmHost,
    /// Its path in the host.
    program: String,
    /// The same for one that knows nothing of debug sessions.
    pristine: Option<String>,
}

impl Launcher<'_> {
    fn spawn(&self, program: &str, arguments: Vec<String>, with_gdb: bool) -> Result<Process> {
        let name = number();
        let (gdb_socket, api) = (self.host.path(&format!("ch-gdb-{name}")), self.host.path(&format!("ch-api-{name}")));
        let mut argv = vec![program.to_owned()];
        argv.extend(["--api-socket".to_owned(), api.clone()]);
        if with_gdb {
            argv.extend(["--gdb".to_owned(), format!("path={gdb_socket}")]);
        }
        argv.extend(arguments);
        let vmm = self.host.spawn(&HostCommand { argv, ..HostCommand::default() })?;
        if with_gdb {
            wait_for_socket(self.host, &vmm, &gdb_socket)?;
        }
        wait_for_socket(self.host, &vmm, &api)?;
        let forward = |socket: &str| self.host.forward(Endpoint::Unix(socket.to_owned()));
        let gdb = if with_gdb { Some(forward(&gdb_socket)?) } else { None };
        Ok(Process { vmm, gdb, gdb_socket, api: forward(&api)?, api_socket: api })
    }

    /// A new directory in the host.
    fn directory(&self) -> Result<String> {
        let path = self.host.path(&format!("ch-{}", number()));
        let made = self.host.output(&command(["mkdir", "-p", &path]))?;
        ensure!(made.exit.success(), "cannot make {path} in the host");
        Ok(path)
    }
}

/// Something that no other name of this run has in it.
fn number() -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed))
}

/// A cloud-hypervisor, with a VM or without.
struct Process {
    vmm: HostProcess,
    gdb: Option<Forward>,
    gdb_socket: String,
    api: Forward,
    api_socket: String,
}

impl Process {
    /// What gdb's `target remote` takes.
    fn address(&self) -> String {
        self.gdb.as_ref().map(|gdb| format!("127.0.0.1:{}", gdb.port())).unwrap_or_default()
    }

    /// How it ended, if it does in this time.
    fn ended_within(&self, time: Duration) -> Option<String> {
        match self.vmm.wait(time) {
            Ok(exit) => exit.map(|exit| exit.to_string()),
            Err(error) => Some(format!("{error:#}")),
        }
    }

    fn kill(&self) -> Result<()> {
        self.vmm.signal(Signal::Kill)?;
        self.vmm.wait(Duration::from_secs(60))?.context("it is still there after 60 s")?;
        Ok(())
    }
}

/// Another VMM beside a guest's, without a VM.
struct Spare {
    process: Process,
    /// In the host, for snapshots and sockets.
    directory: String,
    /// To the socket there on which it receives a VM.
    arrival: Forward,
}

impl Spare {
    fn start(launcher: &Launcher<'_>) -> Result<Self> {
        let process = launcher.spawn(&launcher.program, Vec::new(), true)?;
        let directory = launcher.directory()?;
        let arrival = launcher.host.forward(Endpoint::Unix(format!("{directory}/migration.sock")))?;
        Ok(Self { process, directory, arrival })
    }
}

struct Guest {
    process: Process,
    spare: Option<Spare>,
}

impl RunningGuest for Guest {
    fn address(&self) -> String {
        self.process.address()
    }

    fn facts(&self) -> Facts {
        let mut facts = vec![("VMM_API", self.process.api.port().to_string())];
        if let Some(Spare { process, directory, arrival }) = &self.spare {
            facts.push(("SPARE_API", process.api.port().to_string()));
            facts.push(("SPARE_GDB", process.address()));
            facts.push(("SPARE_ARRIVAL", arrival.port().to_string()));
            facts.push(("HOST_DIRECTORY", directory.clone()));
        }
        facts
    }

    fn output(&self) -> String {
        let spare = self.spare.as_ref().map(|spare| spare.process.vmm.output_text()).filter(|text| !text.is_empty());
        let spare = spare.map(|text| format!("\nthe spare VMM:\n{text}")).unwrap_or_default();
        self.process.vmm.output_text() + &spare
    }

    fn ended(&mut self) -> Option<String> {
        self.ended_within(Duration::ZERO)
    }

    fn ended_within(&self, time: Duration) -> Option<String> {
        self.process.ended_within(time)
    }

    fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    fn control(&self) -> &str {
        &self.process.api_socket
    }
}

/// The bare-metal guest as an Image, the only kind of kernel that cloud-hypervisor loads on arm64.
fn flat_image(elf: &Path) -> Result<PathBuf> {
    const OBJCOPY: &str = "aarch64-linux-gnu-objcopy";
    let target = paths::cache().join("flat").join(paths::file_fingerprint(elf)?).join("Image");
    if !fs::exists(&target).with_context(|| format!("cannot look at {}", target.display()))? {
        paths::create_atomically(&target, |partial| {
            output_of(Command::new(OBJCOPY).args(["-O", "binary"]).arg(elf).arg(partial)).map(drop)
        })?;
    }
    Ok(target)
}
