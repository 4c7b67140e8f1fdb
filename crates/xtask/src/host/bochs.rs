//! Boots an x86_64 host in Bochs, whose only way in is a serial line.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kvm_agent::LineClient;

use super::client::Client;
use super::disk::{IDE, UploadDisk};
use super::emulator::{log, run_directory};
use super::image::{self, Link};
use super::new_token;
use crate::assets;
use crate::context::Context;
use crate::packages::Tool;
use crate::paths;
use crate::progress::Progress;
use crate::x86_64::bochs::Machine;

/// It takes 25 to 90 seconds.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);
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
        let (line, port) = listen()?;
        // Bochs is to be asked whether it is there still.
        line.set_nonblocking(true)?;
        let console = directory.join("console.log");
        let emulator_log = File::create(directory.join("bochs-output.log"))?;
        let mut command =
            Machine::new(&directory, &console).with_line(MEMORY, disk.path(), port).command(&kernel, &initrd)?;
        command.current_dir(&directory).stdin(Stdio::null()).stdout(emulator_log.try_clone()?).stderr(emulator_log);
        let progress = Progress::start("booting an x86_64 KVM host in Bochs");
        let child = command.spawn().context("cannot start Bochs")?;
        let mut bochs = Self { child, directory };
        let line = bochs.wait_for_line(&line)?;
        let mut client = Client::new(carry(line)?, token);
        client.patience = ANSWER;
        client.ping().context("the agent in Bochs has greeted, and does not answer")?;
        progress.done();
        Ok((bochs, client, disk))
    }

    /// Waits until Bochs has connected its serial port and the agent has greeted.
    fn wait_for_line(&mut self, listener: &TcpListener) -> Result<LineClient> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let stream = self.poll(deadline, || match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("waiting for Bochs' serial port"),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let (sender, receiver) = mpsc::channel();
        let reader = stream.try_clone()?;
        // It ends with Bochs.
        thread::spawn(move || sender.send(LineClient::attach(reader, stream)));
        self.poll(deadline, || match receiver.try_recv() {
            Ok(line) => Ok(Some(line.context("waiting for the agent's greeting")?)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("nobody waits for the agent's greeting"),
        })
    }

    fn poll<T>(&mut self, deadline: Instant, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            let problem = match (self.child.try_wait()?, look()) {
                (_, Ok(Some(found))) => return Ok(found),
                (Some(status), _) => format!("Bochs ended with {status}"),
                (None, Err(error)) => format!("{error:#}"),
                (None, Ok(None)) if Instant::now() > deadline => {
                    format!("the agent in Bochs did not greet within {} s", BOOT_TIMEOUT.as_secs())
                }
                (None, Ok(None)) => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            let text = |name| log(&self.directory, name);
            bail!(
                "{problem}; its output ends with\n{}\nand the console with\n{}",
                text("bochs-output.log"),
                text("console.log")
            );
        }
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

/// An address whose connections go over the line, until that ends.
fn carry(line: LineClient) -> Result<SocketAddr> {
    let (listener, port) = listen()?;
    thread::spawn(move || {
        for accepted in listener.incoming() {
            // A line that is down shows in the connection's end.
            let _: io::Result<()> = accepted.and_then(|stream: TcpStream| line.carry(stream));
        }
    });
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}
