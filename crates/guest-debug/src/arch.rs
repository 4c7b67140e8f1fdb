//! What a session is generic over: the architecture of the guest it debugs.
//!
//! A type parameter, and not the architecture of the host that the crate is compiled for: a snapshot of an arm64 guest is
//! looked at on an x86_64 host, and the tests run both on any host.

use crate::session::Debugged;
use crate::state::Architecture;
use crate::{arm64, x86_64};
use std::fmt::{Debug, Display};
use thiserror::Error;

/// The architecture of a guest: [`Arm64`] or [`X86_64`]. No other type can implement it.
///
/// [`crate::DebugSession`], [`crate::VcpuDebugger`], [`crate::VmHost`] and [`crate::DebugVcpu`] have one as their parameter;
/// written without it they mean [`Arm64`].
pub trait Arch: Debugged<Self> + Copy + Debug + Default + Eq + Send + Sync + 'static {
    /// Names of a vCPU's registers.
    type Reg: Register;
    /// Settings of the debug registers.
    type Hw: Clone + Debug + Default + Eq + Send + Sync;
    /// What the hypervisor says about a debug exit, undecoded.
    type Exit: Copy + Debug + Eq + Send;
    /// An exception that the hypervisor is asked to give to the guest.
    type Exception: Copy + Debug + Send;
    /// Where a guest-virtual address leads.
    type Translation: Copy + Debug + Eq;

    /// What a saved state calls it.
    const ARCHITECTURE: Architecture;
    /// The program counter.
    const PC: Self::Reg;
}

/// The name of a register.
pub trait Register: Copy + Debug + Display + Into<AnyReg> + Ord + Send + Sync + 'static {
    /// Length in bytes.
    fn size(self) -> usize;
}

/// A register of either architecture, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyReg {
    /// Of an arm64 vCPU.
    Arm64(arm64::Reg),
    /// Of an x86_64 vCPU.
    X86_64(x86_64::Reg),
}

impl Display for AnyReg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Arm64(reg) => Display::fmt(reg, f),
            Self::X86_64(reg) => Display::fmt(reg, f),
        }
    }
}

impl From<arm64::Reg> for AnyReg {
    fn from(reg: arm64::Reg) -> Self {
        Self::Arm64(reg)
    }
}

impl From<x86_64::Reg> for AnyReg {
    fn from(reg: x86_64::Reg) -> Self {
        Self::X86_64(reg)
    }
}

/// 64-bit Arm guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arm64;

/// 64-bit x86 guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct X86_64;

impl Arch for Arm64 {
    type Reg = arm64::Reg;
    type Hw = arm64::HwDebug;
    type Exit = crate::DebugExit;
    type Exception = std::convert::Infallible;
    type Translation = arm64::translate::Translation;

    const ARCHITECTURE: Architecture = Architecture::Aarch64;
    const PC: Self::Reg = arm64::Reg::Pc;
}

impl Arch for X86_64 {
    type Reg = x86_64::Reg;
    type Hw = x86_64::HwDebug;
    type Exit = x86_64::stop::DebugExitArch;
    type Exception = x86_64::stop::Exception;
    type Translation = x86_64::translate::Translation;

    const ARCHITECTURE: Architecture = Architecture::X86_64;
    const PC: Self::Reg = x86_64::Reg::Rip;
}

impl Register for arm64::Reg {
    fn size(self) -> usize {
        self.size()
    }
}

impl Register for x86_64::Reg {
    fn size(self) -> usize {
        self.size()
    }
}

/// A breakpoint or watch that no vCPU of the architecture can have.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum PlaceError {
    /// Not an address that an arm64 breakpoint can have.
    #[error(transparent)]
    Arm64Address(#[from] arm64::dbgreg::DbgRegError),
    /// Not a range that an arm64 vCPU can watch.
    #[error(transparent)]
    Arm64Watch(#[from] arm64::watch::WatchError),
    /// Not an address that an x86_64 breakpoint can have.
    #[error(transparent)]
    X86Address(#[from] x86_64::slot::SlotError),
    /// Not a range that an x86_64 vCPU can watch.
    #[error(transparent)]
    X86Watch(#[from] x86_64::watch::WatchError),
}

impl PlaceError {
    /// Whether it is this address that is not canonical.
    pub(crate) fn is_about(&self, asked: u64) -> bool {
        match self {
            Self::Arm64Watch(arm64::watch::WatchError::NonCanonical { address })
            | Self::X86Watch(x86_64::watch::WatchError::NonCanonical { address, .. }) => *address == asked,
            _ => false,
        }
    }
}
