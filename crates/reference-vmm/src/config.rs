//! What a VM is made of.

use crate::error::VmError;
use crate::guest::Guest;
use linux_loader::cmdline::Cmdline;
use std::fmt;
use std::path::PathBuf;

/// Kernel command line of a guest that was given none.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Linux for arm64 takes a command line of 2048 bytes, its final zero included.
pub const CMDLINE_CAPACITY: usize = 2048;

/// The least memory that has room for a payload beside what else is loaded.
pub const MIN_MEMORY_MIB: u64 = 8;
/// Keeps the end of RAM inside 40 bits of guest-physical address, above the gaps that a machine has.
pub const MAX_MEMORY_MIB: u64 = 512 * 1024;

/// A VM, as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// arm64 Linux `Image` or x86_64 `bzImage`, ELF file or flat binary.
    pub kernel: PathBuf,
    /// Initramfs for Linux.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether a debugger can get at it.
    pub debug: DebugMode,
    /// How much of the host's debug hardware it uses.
    pub limits: DebugLimits,
}

impl VmConfig {
    /// One vCPU, 128 MiB, no debugger.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: DEFAULT_CMDLINE.to_owned(),
            cpus: 1,
            memory_mib: 128,
            debug: DebugMode::Off,
            limits: DebugLimits::default(),
        }
    }

    /// Checks the settings that have a range, for a guest of the architecture `G`.
    ///
    /// # Errors
    ///
    /// [`VmError::Setting`] with the first one that is outside its range.
    pub fn check<G: Guest>(&self) -> Result<(), VmError> {
        if !(1..=G::MAX_CPUS).contains(&self.cpus) {
            return Err(setting("--cpus", self.cpus, format!("1 to {}", G::MAX_CPUS)));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(setting("--memory", self.memory_mib, format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")));
        }
        let printable = self.cmdline.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let mut cmdline = Cmdline::new(CMDLINE_CAPACITY).map_err(|error| VmError::Setting {
            name: "--cmdline",
            value: self.cmdline.clone(),
            acceptable: error.to_string(),
        })?;
        if !printable || (!self.cmdline.is_empty() && cmdline.insert_str(&self.cmdline).is_err()) {
            let acceptable = format!("at most {} printable ASCII characters", CMDLINE_CAPACITY - 1);
            return Err(setting("--cmdline", format!("{:?}", self.cmdline), acceptable));
        }
        Ok(())
    }
}

fn setting(name: &'static str, value: impl fmt::Display, acceptable: String) -> VmError {
    VmError::Setting { name, value: value.to_string(), acceptable }
}

/// Fewer debug register slots than the host has: a fleet agrees on what its least host has, so that every session can move
/// to every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DebugLimits {
    /// The most hardware breakpoints.
    pub breakpoints: Option<usize>,
    /// The most watchpoint slots.
    pub watchpoints: Option<usize>,
}

/// Whether a debugger can get at the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DebugMode {
    /// There is no debug session; the guest has its debug registers to itself.
    #[default]
    Off,
    /// There is a session, and the guest runs until a client attaches.
    Run,
    /// No vCPU executes an instruction before a client has attached and continued.
    Hold,
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_debug::{Arm64, X86_64};

    #[test]
    fn bad_settings_are_named() {
        let good = VmConfig::new("Image");
        assert!(good.check::<Arm64>().is_ok());
        let many = VmConfig { cpus: 300, ..good.clone() };
        assert!(many.check::<Arm64>().is_ok());
        assert_eq!(many.check::<X86_64>().unwrap_err().to_string(), "--cpus is 300; it can be 1 to 254");
        let bad = [
            (VmConfig { cpus: 0, ..good.clone() }, "--cpus"),
            (VmConfig { cpus: Arm64::MAX_CPUS + 1, ..good.clone() }, "--cpus"),
            (VmConfig { memory_mib: 1, ..good.clone() }, "--memory"),
            (VmConfig { memory_mib: u64::MAX, ..good.clone() }, "--memory"),
            (VmConfig { cmdline: "x".repeat(CMDLINE_CAPACITY), ..good.clone() }, "--cmdline"),
            (VmConfig { cmdline: "a\0b".to_owned(), ..good }, "--cmdline"),
        ];
        for (config, expected) in bad {
            match config.check::<Arm64>() {
                Err(VmError::Setting { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
