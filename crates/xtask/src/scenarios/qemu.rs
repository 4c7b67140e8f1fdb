//! QEMU and its own gdb server: with KVM in the host, and emulating on this machine.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::guests::{GuestLayout, Machine};
use super::vmm::{RunningGuest, Vmm};
use crate::assets;
use crate::context::Context;
use crate::paths;
use crate::peer::{CONSOLE, Qemu};
use crate::progress::tail;
use crate::vmm::GuestOptions;

/// The machine `virt`, in QEMU's hw/arm/virt.c. The device tree is at the start of RAM.
const VIRT: GuestLayout = GuestLayout {
    ram_base: 0x4000_0000,
    load_offset: 0x20_0000,
    machine: Machine::Gic { distributor: 0x0800_0000, redistributor: 0x080a_0000 },
};

impl Vmm for Qemu<'_> {
    fn layout(&self, _cpus: u32) -> GuestLayout {
        VIRT
    }

    fn console(&self) -> &'static str {
        CONSOLE
    }

    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>> {
        Ok(Box::new(Qemu::start(self, options)?))
    }
}

/// QEMU's own emulation with its own gdb server, on this machine and without KVM: what the scenarios themselves are
/// developed against, and a second opinion on what gdb makes of a server. Where the two differ, tests/README.md says.
pub(super) struct QemuTcg<'a> {
    context: &'a Context,
    program: PathBuf,
}

impl<'a> QemuTcg<'a> {
    pub(super) fn new(context: &'a Context, binary: Option<&Path>) -> Result<Self> {
        let program = binary.unwrap_or(Path::new("qemu-system-aarch64")).to_owned();
        Ok(Self { context, program })
    }
}

impl Vmm for QemuTcg<'_> {
    fn layout(&self, _cpus: u32) -> GuestLayout {
        VIRT
    }

    fn console(&self) -> &'static str {
        CONSOLE
    }

    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let console = paths::cache().join(format!("qemu-tcg-{port}.log"));
        let log = File::create(&console).with_context(|| format!("cannot create {}", console.display()))?;
        let kernel = match &options.kernel {
            Some(kernel) => kernel.clone(),
            None => assets::kernel(&self.context.packages)?.image,
        };
        let mut qemu = Command::new(&self.program);
        qemu.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-display", "none", "-nic", "none"])
            .args(["-serial", "stdio", "-monitor", "none"])
            .args(["-smp", &options.cpus.to_string(), "-m", &options.memory.to_string()])
            .arg("-gdb")
            .arg(format!("tcp:127.0.0.1:{port}"))
            .arg("-kernel")
            .arg(kernel);
        if let Some(initrd) = &options.initrd {
            qemu.arg("-initrd").arg(initrd).args(["-append", &options.cmdline]);
        }
        if options.wait_for_gdb {
            qemu.arg("-S");
        }
        let child = qemu
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut guest = QemuGuest { child, port, console };
        guest.wait_for_port()?;
        Ok(Box::new(guest))
    }
}

struct QemuGuest {
    child: Child,
    port: u16,
    console: PathBuf,
}

impl QemuGuest {
    /// QEMU listens before it does anything else, and connecting to find out would stop the guest: a port that cannot be
    /// bound any more is a port that is listened on.
    fn wait_for_port(&mut self) -> Result<()> {
        for _ in 0..200 {
            if let Some(end) = self.ended() {
                bail!("QEMU ended ({end}):\n{}", tail(&self.output()));
            }
            if TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).is_err() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("QEMU does not listen on port {}", self.port)
    }
}

impl RunningGuest for QemuGuest {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn output(&self) -> String {
        fs::read(&self.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.console);
    }
}
