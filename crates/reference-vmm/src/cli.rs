//! The command line.

use crate::config::{DEFAULT_CMDLINE, DebugMode, VmConfig};
use clap::{Args, Parser, Subcommand};
use guest_debug_gdb::ListenAddress;
use std::path::PathBuf;

/// Small arm64 VMM with a guest debugger.
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
    /// Boot a guest; ends with exit code 0 when the guest powers itself off.
    Run(RunArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// arm64 Linux Image, ELF file, or flat binary (loaded and entered at 0x80000000)
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
    /// Where gdb connects: unix:PATH, or tcp:PORT on the loopback interface
    #[arg(long, value_name = "ADDRESS")]
    gdb: Option<ListenAddress>,
    /// Execute nothing before gdb has attached and continued
    #[arg(long, requires = "gdb")]
    wait_for_gdb: bool,
}

impl RunArgs {
    /// The VM that is to be run, and where gdb connects to it.
    pub fn into_parts(self) -> (VmConfig, Option<ListenAddress>) {
        let debug = match (&self.gdb, self.wait_for_gdb) {
            (None, _) => DebugMode::Off,
            (Some(_), false) => DebugMode::Run,
            (Some(_), true) => DebugMode::Hold,
        };
        let config = VmConfig {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory_mib: self.memory,
            debug,
        };
        (config, self.gdb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(VmConfig, Option<ListenAddress>), clap::Error> {
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace())?.command;
        Ok(args.into_parts())
    }

    #[test]
    fn everything_given() {
        let config = parse(
            "reference-vmm run --kernel Image --initrd i.cpio --cmdline quiet --cpus 2 --memory 256 \
             --gdb unix:/tmp/gdb --wait-for-gdb",
        )
        .unwrap();
        let expected = VmConfig {
            kernel: "Image".into(),
            initrd: Some("i.cpio".into()),
            cmdline: "quiet".to_owned(),
            cpus: 2,
            memory_mib: 256,
            debug: DebugMode::Hold,
        };
        assert_eq!(config, (expected, Some(ListenAddress::Unix("/tmp/gdb".into()))));
    }

    #[test]
    fn only_the_kernel_is_required() {
        let expected = VmConfig { memory_mib: 512, ..VmConfig::new("k") };
        assert_eq!(parse("reference-vmm run --kernel k").unwrap(), (expected, None));
        let (config, _) = parse("reference-vmm run --kernel k --gdb tcp:1234").unwrap();
        assert_eq!(config.debug, DebugMode::Run);
        assert!(parse("reference-vmm run").is_err());
    }

    #[test]
    fn bad_arguments_say_what_is_acceptable() {
        let error = parse("reference-vmm run --kernel k --gdb 1234").unwrap_err().to_string();
        assert!(error.contains("unix:PATH or tcp:PORT"), "{error}");
        let error = parse("reference-vmm run --kernel k --wait-for-gdb").unwrap_err().to_string();
        assert!(error.contains("--gdb"), "{error}");
    }
}
