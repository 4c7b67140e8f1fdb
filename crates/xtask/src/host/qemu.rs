//! Boots the emulated host.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kvm_agent::{Capacity, LineClient};

use super::client::Client;
use super::disk::{UploadDisk, VIRTIO};
use super::emulator::{log, run_directory, tied};
use super::image::{self, Link};
use super::line::{self, Boot};
use super::new_token;
use crate::arch::Arch;
use crate::assets::{self, Kernel};
use crate::context::{Context, HostOptions};
use crate::packages::Tool;
use crate::paths;
use crate::progress::Progress;
use crate::x86_64::QEMU_TICK;

/// How long the slowest CPU on a busy machine may take.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// Socket of the line in the host's directory; QEMU connects to it.
const LINE: &str = "line.sock";

/// A running QEMU; killed when dropped, and by the kernel when this process dies.
pub(super) struct Qemu {
    child: Child,
    directory: PathBuf,
}

impl Qemu {
    /// Boots, and waits for the agent.
    ///
    /// # Errors
    /// If something is missing, or the agent does not answer in time; with the end of the console.
    pub(super) fn boot(context: &Context) -> Result<(Self, Client, UploadDisk)> {
        context.prepare(&[Tool::emulator(context.arch())])?;
        let kernel = assets::kernel(&context.packages)?;
        let options = &context.host;
        let directory = run_directory()?;
        let token = new_token()?;
        let disk = UploadDisk::create(&directory, VIRTIO)?;
        let initrd = directory.join("initramfs");
        image::write(context, &kernel, &token, Link::Virtio, &initrd)?;

        let progress = Progress::start(format!(
            "booting the emulated {} KVM host ({}, {} CPUs)",
            options.arch.name(),
            options.cpu(),
            options.cpus()
        ));
        let socket = directory.join(LINE);
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let mut qemu = Self { child: start(options, &kernel, &directory, &disk)?, directory };
        let client = line::client(qemu.wait_for_line(&listener)?, token)?;
        client.ping().context("the agent in QEMU has greeted, and does not answer")?;
        progress.done();
        Ok((qemu, client, disk))
    }

    /// Waits until QEMU has connected its end of the line and the agent has greeted.
    fn wait_for_line(&mut self, listener: &UnixListener) -> Result<LineClient> {
        listener.set_nonblocking(true)?;
        let boot = Boot { name: "QEMU", emulator: &mut self.child, timeout: BOOT_TIMEOUT, capacity: Capacity::VIRTIO };
        let line = boot.wait(|| {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            Ok((stream.try_clone()?, stream))
        });
        line.map_err(|error| {
            let text = |name| log(&self.directory, name);
            anyhow!("{error:#}\n{}the console ends with\n{}", text("qemu.log"), text("console.log"))
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Left behind, it is removed by the next run.
        let _ = paths::remove(&self.directory);
    }
}

fn start(options: &HostOptions, kernel: &Kernel, directory: &Path, disk: &UploadDisk) -> Result<Child> {
    let log = File::create(directory.join("qemu.log"))?;
    let (program, machine, console) = match options.arch {
        Arch::Arm64 => ("qemu-system-aarch64", "virt,virtualization=on,gic-version=3", "console=ttyAMA0".to_owned()),
        Arch::X86_64 => ("qemu-system-x86_64", "q35", format!("console=ttyS0 mitigations=off {QEMU_TICK}")),
    };
    let mut command = tied(program);
    command
        .args(["-M", machine, "-cpu", &cpu(options.cpu())])
        .args(["-smp", &options.cpus().to_string(), "-m", &format!("{}M", options.host_memory)])
        .args(["-accel", "tcg,thread=multi,tb-size=256"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", directory.join("console.log").display()))
        .arg("-chardev")
        .arg(format!("socket,id=line,path={}", directory.join(LINE).display()))
        .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=line"])
        .arg("-drive")
        .arg(format!("if=none,id=uploads,format=raw,readonly=on,file={}", disk.path().display()))
        .args(["-device", "virtio-blk-pci,drive=uploads"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(directory.join("initramfs"))
        .arg("-append")
        .arg(format!("{console} quiet nokaslr panic=-1"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().with_context(|| format!("cannot start {program}"))
}

/// `max` computes pointer authentication codes as the architecture's own algorithm, unless told not to: very slowly.
fn cpu(model: &str) -> String {
    if model == "max" { "max,pauth-impdef=on".to_owned() } else { model.to_owned() }
}
