//! Boots the emulated host.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::client::Client;
use super::disk::{UploadDisk, VIRTIO};
use super::emulator::{log, run_directory, tied};
use super::image::{self, Link};
use super::new_token;
use crate::arch::Arch;
use crate::assets::{self, Kernel};
use crate::context::{Context, HostOptions};
use crate::packages::Tool;
use crate::paths;
use crate::progress::Progress;

/// How long the slowest CPU on a busy machine may take.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// How often the agent is asked whether it is there, and how long it may take to answer then.
const POLL: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_millis(500);

/// How often another port is tried when somebody else took ours.
const ATTEMPTS: u32 = 3;

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
        image::write(context, &kernel, &token, Link::Network, &initrd)?;

        let progress = Progress::start(format!(
            "booting the emulated {} KVM host ({}, {} CPUs)",
            options.arch.name(),
            options.cpu(),
            options.cpus()
        ));
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            let mut qemu =
                Self { child: start(options, &kernel, &directory, &disk, port)?, directory: directory.clone() };
            let client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), token.clone());
            match qemu.wait_for_agent(&client) {
                Ok(()) => {
                    progress.done();
                    return Ok((qemu, client, disk));
                }
                // Between our look and QEMU's start another program can take a port.
                Err(_) if attempt < ATTEMPTS && qemu.said("Could not set up host forwarding") => {
                    attempt += 1;
                    qemu.stop();
                    // The next attempt keeps the directory.
                    qemu.directory = PathBuf::new();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_for_agent(&mut self, client: &Client) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended with {status}\n{}{}", self.log("qemu.log"), self.log("console.log"));
            }
            if client.hello(ANSWER).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent in the emulated host did not answer within {} s; the console ends with\n{}",
                    BOOT_TIMEOUT.as_secs(),
                    self.log("console.log")
                );
            }
            thread::sleep(POLL);
        }
    }

    fn log(&self, name: &str) -> String {
        log(&self.directory, name)
    }

    fn said(&self, text: &str) -> bool {
        self.log("qemu.log").contains(text)
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop();
        if self.directory.is_dir() {
            // Left behind, it is removed by the next run.
            let _ = paths::remove(&self.directory);
        }
    }
}

fn start(options: &HostOptions, kernel: &Kernel, directory: &Path, disk: &UploadDisk, port: u16) -> Result<Child> {
    let log = File::create(directory.join("qemu.log"))?;
    let (program, machine, console) = match options.arch {
        Arch::Arm64 => ("qemu-system-aarch64", "virt,virtualization=on,gic-version=3", "console=ttyAMA0"),
        Arch::X86_64 => ("qemu-system-x86_64", "q35", "console=ttyS0 mitigations=off"),
    };
    let mut command = tied(program);
    command
        .args(["-M", machine, "-cpu", &cpu(options.cpu())])
        .args(["-smp", &options.cpus().to_string(), "-m", &format!("{}M", options.host_memory)])
        .args(["-accel", "tcg,thread=multi,tb-size=256"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", directory.join("console.log").display()))
        .arg("-netdev")
        .arg(format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{}", image::AGENT_PORT))
        // The option ROM is in a package that is not needed for anything else.
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
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

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on the loopback address")?;
    Ok(listener.local_addr()?.port())
}
