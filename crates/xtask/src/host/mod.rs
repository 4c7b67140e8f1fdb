//! The KVM host: this machine where it is one of the architecture, or else an emulated one.
//!
//! Both are driven by the same agent (see the `kvm-agent` crate): in the emulated host over a line of the emulator's, on this
//! machine on a thread of this process. What differs is only how the agent is started and whether files need uploading.

mod bochs;
mod client;
mod disk;
mod emulator;
mod forward;
mod image;
mod line;
mod process;
mod qemu;

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use kvm_agent::{Endpoint, Exit, ServerConfig, Stream};

pub use client::Output;
pub use emulator::tied;
pub use forward::Forward;
pub use process::{HostInput, HostProcess};

use crate::arch::Arch;
use crate::assets::without_debug_info;
use crate::context::Context;
use crate::paths;
use crate::progress::note;
use crate::x86_64::Emulator;
use bochs::Bochs;
use client::Client;
use disk::UploadDisk;
use qemu::Qemu;

/// Tells a runner which host `cargo xtask test` has booted: address, token, directory and, if emulated, upload disk.
pub const HOST_VARIABLE: &str = "XTASK_KVM_HOST";

/// The most bytes of a file that go over a serial line.
const LONG: u64 = 64 << 10;

/// A command for the host.
pub type HostCommand = kvm_agent::Command;

/// Program, arguments; the environment is the agent's own, and there is no input.
pub fn command<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> HostCommand {
    HostCommand { argv: argv.into_iter().map(Into::into).collect(), ..HostCommand::default() }
}

/// A KVM host that answers. Dropped, it and everything in it ends.
pub struct KvmHost {
    arch: Arch,
    client: Client,
    machine: Machine,
    /// Where uploads and sockets go, inside the host.
    directory: String,
}

enum Machine {
    /// This machine; the agent is a thread of this process.
    Native { directory: PathBuf },
    /// An emulator, ours.
    Emulated { disk: UploadDisk, emulator: Emulated },
    /// Started by the process that started this one.
    Borrowed { disk: Option<UploadDisk> },
}

/// What runs the host; ends when it is dropped.
enum Emulated {
    Qemu(#[allow(dead_code, reason = "dropped in time")] Qemu),
    Bochs(#[allow(dead_code, reason = "dropped in time")] Bochs),
}

impl KvmHost {
    /// The host that the environment names, this machine if it is a KVM host, or else an emulated one.
    ///
    /// # Errors
    /// If something is missing that cannot be had, or the emulated host does not boot; the message has the end of its
    /// console then.
    pub fn start(context: &Context) -> Result<Self> {
        if let Ok(value) = env::var(HOST_VARIABLE) {
            return Self::borrow(context.arch(), &value).with_context(|| format!("{HOST_VARIABLE}={value}"));
        }
        if is_native(context) { Self::start_native(context.arch()) } else { Self::start_emulated(context) }
    }

    /// An emulated host, whatever this machine is.
    ///
    /// # Errors
    /// As [`KvmHost::start`].
    pub fn start_emulated(context: &Context) -> Result<Self> {
        let (emulated, client, disk) = match (context.arch(), context.host.host_emulator) {
            (Arch::X86_64, Emulator::Bochs) => {
                let (bochs, client, disk) = Bochs::boot(context)?;
                (Emulated::Bochs(bochs), client, disk)
            }
            _ => {
                let (qemu, client, disk) = Qemu::boot(context)?;
                (Emulated::Qemu(qemu), client, disk)
            }
        };
        let machine = Machine::Emulated { disk, emulator: emulated };
        let host = Self { arch: context.arch(), client, machine, directory: "/tmp/host".to_owned() };
        let check = host.output(&command(["sh", "-c", "[ -c /dev/kvm ] || { dmesg | grep -i kvm; exit 1; }"]))?;
        if !check.exit.success() {
            bail!("the emulated host has no /dev/kvm; its kernel says:\n{}", check.stdout_text());
        }
        Ok(host)
    }

    /// This machine, whatever it can do.
    ///
    /// # Errors
    /// If its agent has no port to listen on.
    pub fn start_native(arch: Arch) -> Result<Self> {
        static NATIVE_HOSTS: AtomicU32 = AtomicU32::new(0);
        let directory = paths::cache().join(format!(
            "native-{}-{}",
            std::process::id(),
            NATIVE_HOSTS.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&directory)?;
        let token = new_token()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
        let client = Client::new(listener.local_addr()?, token.clone());
        thread::spawn(move || {
            kvm_agent::serve(&listener, ServerConfig { commands_die_with_agent: true, ..ServerConfig::new(token) })
        });
        let text = directory.display().to_string();
        Ok(Self { arch, client, machine: Machine::Native { directory }, directory: text })
    }

    fn borrow(arch: Arch, value: &str) -> Result<Self> {
        let fields: Vec<_> = value.splitn(4, ',').collect();
        let [address, token, directory, disk] = fields[..] else {
            bail!("not of the form address,token,directory,disk");
        };
        let client = Client::new(address.parse().context("address")?, token.to_owned());
        client.ping().context("the host of the surrounding command does not answer")?;
        let disk = (!disk.is_empty()).then(|| UploadDisk::open(Path::new(disk), disk::VIRTIO));
        let machine = Machine::Borrowed { disk };
        Ok(Self { arch, client, machine, directory: directory.to_owned() })
    }

    /// Value of [`HOST_VARIABLE`] that lets a child process use this host.
    pub fn lend(&self) -> String {
        let disk = self.disk().map_or(String::new(), |disk| disk.path().display().to_string());
        format!("{},{},{},{disk}", self.client.address(), self.client.token(), self.directory)
    }

    /// Whether it is another machine than this one.
    pub fn is_emulated(&self) -> bool {
        self.disk().is_some()
    }

    /// The way for files, where they have to travel.
    fn disk(&self) -> Option<&UploadDisk> {
        match &self.machine {
            Machine::Native { .. } => None,
            Machine::Emulated { disk, .. } => Some(disk),
            Machine::Borrowed { disk } => disk.as_ref(),
        }
    }

    /// Path inside the host for a socket or a file; its directory exists.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Makes a file of this machine available in the host and returns its path there. The same content is sent once.
    ///
    /// # Errors
    /// If the file cannot be read or the host has no room.
    pub fn upload(&self, local: &Path) -> Result<String> {
        let local = fs::canonicalize(local).with_context(|| format!("cannot find {}", local.display()))?;
        let Some(disk) = self.disk() else { return Ok(local.display().to_string()) };
        let name = local.file_name().unwrap_or_default().to_string_lossy();
        let remote = self.path(&format!("{}/{name}", paths::file_fingerprint(&local)?));
        let file = File::open(&local).with_context(|| format!("cannot open {}", local.display()))?;
        let size = file.metadata()?.len();
        if self.client.size(&remote)? != Some(size) {
            let place = disk.add(file, size)?;
            let imported = self.client.import(&remote, 0o755, disk.device(), place);
            imported.with_context(|| format!("uploading {}", local.display()))?;
        }
        Ok(remote)
    }

    /// [`KvmHost::upload`] for a program: without debug information where it has to travel.
    ///
    /// # Errors
    /// As [`KvmHost::upload`].
    pub fn upload_program(&self, local: &Path) -> Result<String> {
        if self.is_emulated() { self.upload(&without_debug_info(self.arch, local)?) } else { self.upload(local) }
    }

    /// Content of a file of the host, also of files that have no size, as in /proc.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn download(&self, remote: &str) -> Result<Vec<u8>> {
        match &self.machine {
            Machine::Emulated { disk, emulator: Emulated::Bochs(_) } => match self.client.size(remote)? {
                Some(length) if length > LONG => self.download_over(disk, remote, length),
                _ => self.client.get(remote),
            },
            _ => self.client.get(remote),
        }
    }

    /// The way of uploads, in the other direction.
    fn download_over(&self, disk: &UploadDisk, remote: &str, length: u64) -> Result<Vec<u8>> {
        let place = disk.reserve(length)?;
        let argv = ["dd".to_owned(), format!("if={remote}"), format!("of={}", disk.device())];
        let blocks = [format!("bs={}", disk::ALIGNMENT), format!("seek={}", place / disk::ALIGNMENT)];
        let output = self.output(&command(argv.into_iter().chain(blocks).chain(["conv=notrunc,fsync".to_owned()])))?;
        if !output.exit.success() {
            bail!("{remote} cannot be written to the disk: {}", output.stderr_text().trim());
        }
        disk.read(place, length)
    }

    /// Runs a command with its output on ours, and returns how it ended.
    ///
    /// # Errors
    /// If it cannot be started, or the host is gone.
    pub fn run(&self, command: &HostCommand) -> Result<Exit> {
        self.client.run(command)
    }

    /// Runs a command and collects its output.
    ///
    /// # Errors
    /// If it cannot be started, or the host is gone.
    pub fn output(&self, command: &HostCommand) -> Result<Output> {
        self.client.output(command)
    }

    /// Starts a command that goes on beside us. It is killed when the [`HostProcess`] is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: &HostCommand) -> Result<HostProcess> {
        HostProcess::start(self.client.exec(command)?)
    }

    /// Connects to a socket inside the host.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(&self, endpoint: &Endpoint) -> Result<Stream> {
        self.client.connect(endpoint).map(Stream::Tcp)
    }

    /// A port of this machine's loopback address, each connection to which goes to that socket inside the host.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn forward(&self, endpoint: Endpoint) -> Result<Forward> {
        Forward::start(self.client.clone(), endpoint)
    }

    /// What this host is, for messages.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn describe(&self) -> Result<String> {
        let kind = match (self.is_emulated(), self.arch) {
            (true, Arch::Arm64) => "emulated arm64 KVM host".to_owned(),
            (true, Arch::X86_64) => format!("emulated x86_64 KVM host, {}", self.kvm()),
            (false, _) => "this machine".to_owned(),
        };
        let uname = self.output(&command(["uname", "-rm"]))?;
        Ok(format!("{kind}, Linux {}", uname.stdout_text().trim()))
    }

    /// Whose KVM it has, for messages.
    pub fn kvm(&self) -> &'static str {
        match (&self.machine, self.arch) {
            (Machine::Emulated { emulator: Emulated::Bochs(_), .. }, _) => Emulator::Bochs.describe(),
            (_, Arch::X86_64) if self.is_emulated() => Emulator::Qemu.describe(),
            (_, Arch::Arm64) if self.is_emulated() => "KVM in QEMU's EL2",
            _ => "this machine's KVM",
        }
    }

    /// How many times as long as elsewhere things may take here.
    pub fn patience(&self) -> u32 {
        match &self.machine {
            Machine::Emulated { emulator: Emulated::Bochs(_), .. } => bochs::PATIENCE,
            _ => 1,
        }
    }
}

impl Drop for KvmHost {
    fn drop(&mut self) {
        if let Machine::Native { directory } = &self.machine
            && let Err(error) = paths::remove(directory)
        {
            note(format!("{error:#}"));
        }
    }
}

/// Whether everything runs on this machine itself.
pub fn is_native(context: &Context) -> bool {
    context.arch().is_here()
        && !context.host.emulated
        && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// A secret for one host: whoever has it can run commands there.
fn new_token() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
