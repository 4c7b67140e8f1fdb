//! The VMMs that the suite knows: how to start a guest under each.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use kvm_agent::Signal;

use super::fleet::Landing;
use super::guests::{GuestLayout, Machine};
use super::script::Facts;
use super::snapshots::Snapshots;
use crate::arch::Arch;
use crate::context::Context;
use crate::host::{KvmHost, command};
use crate::progress::tail;
use crate::vmm::{self, Guest, GuestOptions};

/// What reference-vmm says when another one can send it a VM, with the address behind it.
const WAITING: &str = "waiting for a VM at ";
const WAITING_TIMEOUT: Duration = Duration::from_secs(60);

/// A VMM under test.
pub(super) trait Vmm {
    /// Where guests with so many vCPUs find things.
    fn layout(&self, cpus: u32) -> GuestLayout;

    /// Name of its serial console, as Linux calls it.
    fn console(&self) -> &'static str;

    /// Kernel modules without which its guests can't be moved.
    fn drivers(&self) -> &'static [&'static str] {
        &[]
    }

    /// What Linux has to be told beside that, on its command line.
    fn cmdline(&self) -> &'static str {
        ""
    }

    /// Starts a guest; its gdb socket is open when this returns.
    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>>;

    /// For saving and moving its guests, if it can.
    fn mover(&self) -> Option<&dyn Mover> {
        None
    }
}

/// How a VMM saves and moves its guests. Snapshots have names, and are wherever the VMM can reach them.
pub(crate) trait Mover: Sync {
    /// Saves a guest; answers what the VMM says of it.
    fn snapshot(&self, guest: &dyn RunningGuest, name: &str) -> Result<String>;

    /// Starts a VMM with a guest that was saved.
    fn restore(&self, name: &str, landing: &Landing) -> Result<Arc<dyn RunningGuest>>;

    /// Starts a VMM that waits for a guest.
    fn receive(&self, landing: &Landing) -> Result<Arc<dyn RunningGuest>>;

    /// Moves a guest to a VMM that waits for one; answers what the VMM says of it.
    fn send(&self, guest: &dyn RunningGuest, to: &dyn RunningGuest) -> Result<String>;

    /// What the VMM says of a guest.
    fn status(&self, guest: &dyn RunningGuest) -> Result<String>;

    /// Tells a VMM to end, with its guest if it has one; answers what it says.
    fn quit(&self, guest: &dyn RunningGuest) -> Result<String>;

    /// Runs a shell command where the snapshots are; answers its exit code and what it printed.
    fn shell(&self, command: &str) -> Result<(u8, String)>;

    /// Copies a snapshot to a new directory on this machine.
    fn fetch(&self, name: &str, directory: &Path) -> Result<()>;

    /// Removes all snapshots but those whose names begin with a dot.
    fn tidy(&self);
}

/// A guest that was started; dropped, it ends.
pub(crate) trait RunningGuest: Send + Sync {
    /// What gdb's `target remote` takes.
    fn address(&self) -> String;

    /// What else scripts need to know of it, as environment variables.
    fn facts(&self) -> Facts {
        Facts::new()
    }

    /// What the guest and the VMM have printed.
    fn output(&self) -> String;

    /// How the VMM ended, if it has.
    fn ended(&mut self) -> Option<String>;

    /// The same, when it ends in this time.
    fn ended_within(&self, _: Duration) -> Option<String> {
        None
    }

    /// Ends the VMM without a warning, as SIGKILL does. It is gone when this returns.
    ///
    /// # Errors
    /// If it can't be.
    fn kill(&self) -> Result<()> {
        bail!("guests of this VMM can't be killed")
    }

    /// Path of the VMM's control socket, where its guests can be moved.
    fn control(&self) -> &str {
        ""
    }

    /// Waits for a text on the console.
    ///
    /// # Errors
    /// If it does not come, with the end of the console.
    fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.output().contains(text) {
            if let Some(end) = self.ended() {
                bail!("the VMM ended ({end}) before the guest printed {text:?}:\n{}", tail(&self.output()));
            }
            if Instant::now() > deadline {
                bail!("the guest has not printed {text:?} after {} s:\n{}", timeout.as_secs(), tail(&self.output()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// reference-vmm on a KVM host.
pub(super) struct ReferenceVmm<'a> {
    context: &'a Context,
    mover: ReferenceMover<'a>,
}

/// The same, as far as it needs no files of this machine.
pub(crate) struct ReferenceMover<'a> {
    host: &'a KvmHost,
    /// Its path in the host.
    program: String,
}

impl<'a> ReferenceVmm<'a> {
    /// Builds it, unless the caller has a binary for arm64.
    pub(super) fn new(context: &'a Context, host: &'a KvmHost, binary: Option<&Path>) -> Result<Self> {
        let program = match binary {
            Some(binary) => host.upload_program(binary)?,
            None => vmm::install(context, host)?,
        };
        Ok(Self { context, mover: ReferenceMover::new(host, &program) })
    }
}

impl Vmm for ReferenceVmm<'_> {
    // The maps of crates/reference-vmm/src/layout.rs and src/pc/layout.rs, each in a part for its architecture only.
    fn layout(&self, _cpus: u32) -> GuestLayout {
        match self.context.arch() {
            Arch::Arm64 => {
                let machine = Machine::Gic { distributor: 0x1000_0000, redistributor: 0x1100_0000 };
                GuestLayout { ram_base: 0x8000_0000, load_offset: 0, machine }
            }
            Arch::X86_64 => {
                GuestLayout { ram_base: 0, load_offset: 0x10_0000, machine: Machine::Pc { apic: 0xfee0_0000 } }
            }
        }
    }

    fn cmdline(&self) -> &'static str {
        match self.context.arch() {
            Arch::Arm64 => "",
            Arch::X86_64 => vmm::NESTED_CMDLINE,
        }
    }

    fn console(&self) -> &'static str {
        "ttyS0"
    }

    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>> {
        Ok(Box::new(vmm::start(self.context, self.mover.host, &self.mover.program, options)?))
    }

    fn mover(&self) -> Option<&dyn Mover> {
        Some(&self.mover)
    }
}

impl<'a> ReferenceMover<'a> {
    /// For the program at this path in the host.
    pub(crate) fn new(host: &'a KvmHost, program: &str) -> Self {
        Self { host, program: program.to_owned() }
    }

    /// The directory for snapshots, in the host.
    pub(crate) fn snapshots(&self) -> String {
        Snapshots::new(self.host).directory()
    }

    fn land(&self, mut arguments: Vec<String>, landing: &Landing) -> Result<Guest> {
        if landing.hold {
            arguments.push("--wait-for-gdb".to_owned());
        }
        for (option, limit) in [("--max-watchpoints", landing.watchpoints), ("--max-breakpoints", landing.breakpoints)]
        {
            arguments.extend(limit.into_iter().flat_map(|limit| [option.to_owned(), limit.to_string()]));
        }
        vmm::launch(self.host, &self.program, arguments, landing.gdb, false)
    }

    fn tell(&self, guest: &dyn RunningGuest, words: &[&str]) -> Result<String> {
        let argv = [&[self.program.as_str()], words, &["--control", guest.control()]].concat();
        let output = self.host.output(&command(argv))?;
        if !output.exit.success() {
            bail!("{}", output.stderr_text().trim());
        }
        Ok(output.stdout_text().trim().to_owned())
    }
}

impl Mover for ReferenceMover<'_> {
    fn snapshot(&self, guest: &dyn RunningGuest, name: &str) -> Result<String> {
        self.shell("true")?;
        self.tell(guest, &["snapshot", &Snapshots::new(self.host).path(name)])
    }

    fn restore(&self, name: &str, landing: &Landing) -> Result<Arc<dyn RunningGuest>> {
        let mut arguments = vec!["restore".to_owned(), Snapshots::new(self.host).path(name)];
        if landing.plain {
            arguments.push("--without-session".to_owned());
        }
        Ok(Arc::new(self.land(arguments, landing)?))
    }

    fn receive(&self, landing: &Landing) -> Result<Arc<dyn RunningGuest>> {
        static ADDRESSES: AtomicU32 = AtomicU32::new(0);
        let number = ADDRESSES.fetch_add(1, Ordering::Relaxed);
        let address = if landing.tcp {
            // It says which port it has got.
            "tcp:0".to_owned()
        } else {
            format!("unix:{}", self.host.path(&format!("move-{}-{number}", std::process::id())))
        };
        let guest = self.land(vec!["receive".to_owned(), address], landing)?;
        guest.vmm.wait_for(WAITING, 0, WAITING_TIMEOUT)?;
        Ok(Arc::new(guest))
    }

    fn send(&self, guest: &dyn RunningGuest, to: &dyn RunningGuest) -> Result<String> {
        let output = to.output();
        let address = output.lines().find_map(|line| line.split_once(WAITING)).map(|(_, at)| at.trim());
        self.tell(guest, &["migrate", address.with_context(|| format!("the destination is not waiting:\n{output}"))?])
    }

    fn status(&self, guest: &dyn RunningGuest) -> Result<String> {
        self.tell(guest, &["status"])
    }

    fn quit(&self, guest: &dyn RunningGuest) -> Result<String> {
        self.tell(guest, &["quit"])
    }

    fn shell(&self, text: &str) -> Result<(u8, String)> {
        Snapshots::new(self.host).shell(text)
    }

    fn fetch(&self, name: &str, directory: &Path) -> Result<()> {
        Snapshots::new(self.host).fetch(name, &["state.json"], "memory", directory)
    }

    fn tidy(&self) {
        Snapshots::new(self.host).tidy();
    }
}

impl RunningGuest for Guest {
    fn address(&self) -> String {
        Guest::address(self)
    }

    fn output(&self) -> String {
        self.vmm.output_text()
    }

    fn ended(&mut self) -> Option<String> {
        self.ended_within(Duration::ZERO)
    }

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

    fn control(&self) -> &str {
        &self.control
    }
}
