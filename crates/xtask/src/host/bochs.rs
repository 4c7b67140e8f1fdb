//! Boots an x86_64 host in Bochs, whose only way in is a serial line.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kvm_agent::{Capacity, LineClient};

use super::client::Client;
use super::disk::{IDE, UploadDisk};
use super::emulator::{log, run_directory};
use super::image::{self, Link};
use super::line::{self, Boot};
use super::new_token;
use crate::assets;
use crate::context::Context;
use crate::packages::Tool;
use crate::paths;
use crate::progress::Progress;
use crate::x86_64::bochs::Machine;

/// It takes 25 to 90 seconds.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// The line is slow, and so is the machine.
const ANSWER: Duration = Duration::from_secs(60);

/// How many times as long as in QEMU things may take in it.
pub(super) const PATIENCE: u32 = 6;

/// Memory in MiB: for the guests of a scenario, which are bare-metal ones.
const MEMORY: u32 = 768;

/// A running Bochs; killed when dropped, and by the kernel when this process dies.
pub(super) struct Bochs {
    child: Child,
    directory: PathBuf,
}

impl Bochs {
    /// Boots, and waits for the agent.
    ///
    /// # Errors
    /// If something is missing, or the agent does not greet in time; with the end of the console.
    pub(super) fn boot(context: &Context) -> Result<(Self, Client, UploadDisk)> {
        context.prepare(&[Tool::Bochs])?;
        let kernel = assets::kernel(&context.packages)?;
        let directory = run_directory()?;
        let token = new_token()?;
        let disk = UploadDisk::create(&directory, IDE)?;
        let initrd = directory.join("initramfs");
        image::write(context, &kernel, &token, Link::Serial, &initrd)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
        let port = listener.local_addr()?.port();
        let console = directory.join("console.log");
        let emulator_log = File::create(directory.join("bochs-output.log"))?;
        let mut command =
            Machine::new(&directory, &console).with_line(MEMORY, disk.path(), port).command(&kernel, &initrd)?;
        command.current_dir(&directory).stdin(Stdio::null()).stdout(emulator_log.try_clone()?).stderr(emulator_log);
        let progress = Progress::start("booting an x86_64 KVM host in Bochs");
        let child = command.spawn().context("cannot start Bochs")?;
        let mut bochs = Self { child, directory };
        let mut client = line::client(bochs.wait_for_line(&listener)?, token)?;
        client.patience = ANSWER;
        client.ping().context("the agent in Bochs has greeted, and does not answer")?;
        progress.done();
        Ok((bochs, client, disk))
    }

    /// Waits until Bochs has connected its serial port and the agent has greeted.
    fn wait_for_line(&mut self, listener: &TcpListener) -> Result<LineClient> {
        // Bochs is to be asked whether it is there still.
        listener.set_nonblocking(true)?;
        let boot = Boot { name: "Bochs", emulator: &mut self.child, timeout: BOOT_TIMEOUT, capacity: Capacity::SERIAL };
        let line = boot.wait(|| {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            Ok((stream.try_clone()?, stream))
        });
        line.map_err(|error| {
            let text = |name| log(&self.directory, name);
            anyhow!(
                "{error:#}; its output ends with\n{}\nand the console with\n{}",
                text("bochs-output.log"),
                text("console.log")
            )
        })
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Left behind, it is removed by the next run.
        let _ = paths::remove(&self.directory);
    }
}
