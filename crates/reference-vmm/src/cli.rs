//! The command line.

use crate::config::{DEFAULT_CMDLINE, DebugLimits, DebugMode, VmConfig};
use crate::inspect;
use crate::migration::MigrationAddress;
use crate::operations;
use crate::run::{Origin, Surroundings};
use clap::{Args, Parser, Subcommand};
use guest_debug_gdb::ListenAddress;
use std::path::PathBuf;

/// Small VMM with a guest debugger.
#[derive(Debug, Parser)]
#[command(name = "reference-vmm", version)]
pub struct Cli {
    /// Say more on stderr
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest; ends with exit code 0 when the guest powers itself off, or has moved elsewhere.
    Run(RunArgs),
    /// Go on with a VM that was saved, its breakpoints armed where --gdb is given, and asleep where not.
    Restore(RestoreArgs),
    /// Wait for a VM that another process moves here.
    Receive(ReceiveArgs),
    /// Show the VM and the debug session in a snapshot, on any host.
    Inspect(InspectArgs),
    /// Save a running VM in a new directory.
    Snapshot(SnapshotArgs),
    /// Move a running VM to where `receive` waits.
    Migrate(MigrateArgs),
    /// Say what a running VM is doing.
    Status(ControlArgs),
    /// End a running VM.
    Quit(ControlArgs),
}

/// What a command comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Run a VM in this process.
    Run(Origin, Surroundings),
    /// Look at a snapshot.
    Inspect(PathBuf, inspect::Output),
    /// Tell a VM in another process.
    Control(PathBuf, operations::Command),
}

impl Command {
    /// Puts the arguments together.
    pub fn into_task(self) -> Task {
        match self {
            Self::Run(args) => {
                let (config, surroundings) = args.into_parts();
                Task::Run(Origin::Boot(config), surroundings)
            }
            Self::Restore(args) => {
                let surroundings = Surroundings { without_session: args.without_session, ..args.vm.into() };
                Task::Run(Origin::Snapshot(args.directory), surroundings)
            }
            Self::Receive(args) => Task::Run(Origin::Migration(args.address), args.vm.into()),
            Self::Inspect(args) => {
                let output = match (args.gdb, args.json) {
                    (Some(address), _) => inspect::Output::Gdb(address),
                    (None, true) => inspect::Output::Json,
                    (None, false) => inspect::Output::Table,
                };
                Task::Inspect(args.directory, output)
            }
            Self::Snapshot(args) => Task::Control(args.control.control, operations::Command::Snapshot(args.directory)),
            Self::Migrate(args) => Task::Control(args.control.control, operations::Command::Migrate(args.address)),
            Self::Status(args) => Task::Control(args.control, operations::Command::Status),
            Self::Quit(args) => Task::Control(args.control, operations::Command::Quit),
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// arm64: Linux Image, ELF file, or flat binary (loaded and entered at 0x80000000); x86_64: Linux bzImage, ELF file, or
    /// flat binary (at 0x100000)
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// Initramfs for Linux
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STR", default_value = DEFAULT_CMDLINE)]
    cmdline: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    #[command(flatten)]
    vm: VmArgs,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Leave its debug session unread, as a VMM does that knows of none
    #[arg(long)]
    without_session: bool,
    #[command(flatten)]
    vm: VmArgs,
}

/// Arguments of `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Where to wait: unix:PATH, tcp:PORT on the loopback interface, or tcp:HOST:PORT
    #[arg(value_name = "ADDRESS")]
    address: MigrationAddress,
    #[command(flatten)]
    vm: VmArgs,
}

/// Arguments of every command that runs a VM.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// Where gdb connects: unix:PATH, or tcp:PORT on the loopback interface
    #[arg(long, value_name = "ADDRESS")]
    gdb: Option<ListenAddress>,
    /// Execute nothing before gdb has attached and continued
    #[arg(long, requires = "gdb")]
    wait_for_gdb: bool,
    /// Unix socket for `snapshot`, `migrate`, `status` and `quit`
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Use at most so many of the host's hardware breakpoints
    #[arg(long, value_name = "N")]
    max_breakpoints: Option<usize>,
    /// Use at most so many of the host's watchpoints
    #[arg(long, value_name = "N")]
    max_watchpoints: Option<usize>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The snapshot
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
    /// Serve it to gdb instead, read-only: unix:PATH, or tcp:PORT on the loopback interface
    #[arg(long, value_name = "ADDRESS", conflicts_with = "json")]
    gdb: Option<ListenAddress>,
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// The new directory, as the VM's process sees it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    control: ControlArgs,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Where `receive` waits: unix:PATH, tcp:PORT on the loopback interface, or tcp:HOST:PORT
    #[arg(value_name = "ADDRESS")]
    address: MigrationAddress,
    #[command(flatten)]
    control: ControlArgs,
}

/// Which VM is meant.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The VM's control socket
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
}

impl RunArgs {
    /// The VM that is to be run, and what is around it.
    fn into_parts(self) -> (VmConfig, Surroundings) {
        let surroundings = Surroundings::from(self.vm);
        let config = VmConfig {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory_mib: self.memory,
            debug: surroundings.debug,
            limits: surroundings.limits,
        };
        (config, surroundings)
    }
}

impl From<VmArgs> for Surroundings {
    fn from(args: VmArgs) -> Self {
        let debug = match (&args.gdb, args.wait_for_gdb) {
            (None, _) => DebugMode::Off,
            (Some(_), false) => DebugMode::Run,
            (Some(_), true) => DebugMode::Hold,
        };
        let limits = DebugLimits { breakpoints: args.max_breakpoints, watchpoints: args.max_watchpoints };
        Self { gdb: args.gdb, control: args.control, debug, limits, without_session: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, clap::Error> {
        Ok(Cli::try_parse_from(line.split_whitespace())?.command.into_task())
    }

    #[test]
    fn everything_given() {
        let task = parse(
            "reference-vmm run --kernel Image --initrd i.cpio --cmdline quiet --cpus 2 --memory 256 \
             --gdb unix:/tmp/gdb --wait-for-gdb --control /tmp/c --max-breakpoints 2 --max-watchpoints 1",
        )
        .unwrap();
        let surroundings = Surroundings {
            gdb: Some(ListenAddress::Unix("/tmp/gdb".into())),
            control: Some("/tmp/c".into()),
            debug: DebugMode::Hold,
            limits: DebugLimits { breakpoints: Some(2), watchpoints: Some(1) },
            without_session: false,
        };
        let config = VmConfig {
            kernel: "Image".into(),
            initrd: Some("i.cpio".into()),
            cmdline: "quiet".to_owned(),
            cpus: 2,
            memory_mib: 256,
            debug: DebugMode::Hold,
            limits: surroundings.limits,
        };
        assert_eq!(task, Task::Run(Origin::Boot(config), surroundings));
    }

    #[test]
    fn only_the_kernel_is_required() {
        let expected = VmConfig { memory_mib: 512, ..VmConfig::new("k") };
        let task = parse("reference-vmm run --kernel k").unwrap();
        assert_eq!(task, Task::Run(Origin::Boot(expected), Surroundings::default()));
        let task = parse("reference-vmm restore dir --gdb tcp:1234").unwrap();
        let Task::Run(Origin::Snapshot(directory), surroundings) = task else { panic!("{task:?}") };
        assert_eq!((directory, surroundings.debug), ("dir".into(), DebugMode::Run));
        assert!(parse("reference-vmm run").is_err());
    }

    #[test]
    fn commands_to_running_vms() {
        let control = |line: &str| match parse(line).unwrap() {
            Task::Control(path, command) => (path, command.to_string()),
            task => panic!("{task:?}"),
        };
        assert_eq!(control("reference-vmm snapshot d --control c"), ("c".into(), "snapshot d".to_owned()));
        assert_eq!(control("reference-vmm migrate tcp:h:1 --control c"), ("c".into(), "migrate tcp:h:1".to_owned()));
        assert_eq!(control("reference-vmm quit --control c"), ("c".into(), "quit".to_owned()));
        assert!(parse("reference-vmm snapshot d").is_err());
        assert!(parse("reference-vmm receive x").unwrap_err().to_string().contains("unix:PATH"));
    }

    #[test]
    fn ways_to_look_at_a_snapshot() {
        let output = |line: &str| match parse(line).unwrap() {
            Task::Inspect(directory, output) if directory.as_os_str() == "d" => output,
            task => panic!("{task:?}"),
        };
        assert_eq!(output("reference-vmm inspect d"), inspect::Output::Table);
        assert_eq!(output("reference-vmm inspect d --json"), inspect::Output::Json);
        let unix = ListenAddress::Unix("/g".into());
        assert_eq!(output("reference-vmm inspect d --gdb unix:/g"), inspect::Output::Gdb(unix));
        assert!(parse("reference-vmm inspect d --json --gdb unix:/g").is_err());
    }

    #[test]
    fn bad_arguments_say_what_is_acceptable() {
        let error = parse("reference-vmm run --kernel k --gdb 1234").unwrap_err().to_string();
        assert!(error.contains("unix:PATH or tcp:PORT"), "{error}");
        let error = parse("reference-vmm run --kernel k --wait-for-gdb").unwrap_err().to_string();
        assert!(error.contains("--gdb"), "{error}");
    }
}
