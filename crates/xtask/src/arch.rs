//! The architectures of guests, and of the KVM hosts that run them.

use clap::ValueEnum;

/// What is debugged, and what debugs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// 64-bit Arm
    #[default]
    Arm64,
    /// 64-bit x86; on x86_64 machines only
    #[value(name = "x86_64")]
    X86_64,
}

impl Arch {
    /// Its name here.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "x86_64",
        }
    }

    /// Its name in Debian.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "amd64",
        }
    }

    /// Rust's target triple.
    pub const fn target(self) -> &'static str {
        match self {
            Self::Arm64 => "aarch64-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// One of GNU's tools for it; Debian has them by these names where they are native, too.
    pub fn gnu(self, tool: &str) -> String {
        match self {
            Self::Arm64 => format!("aarch64-linux-gnu-{tool}"),
            Self::X86_64 => format!("x86_64-linux-gnu-{tool}"),
        }
    }

    /// `e_machine` of its ELF files.
    pub const fn elf_machine(self) -> u16 {
        match self {
            Self::Arm64 => 183,
            Self::X86_64 => 62,
        }
    }

    /// Whether this machine is one.
    pub const fn is_here(self) -> bool {
        match self {
            Self::Arm64 => cfg!(target_arch = "aarch64"),
            Self::X86_64 => cfg!(target_arch = "x86_64"),
        }
    }
}
