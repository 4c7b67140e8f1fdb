//! What a debugger's client asks for and is told: breakpoints, resume actions, stop events.

use std::fmt;
use std::ops::Range;
#[cfg(feature = "versionize")]
use versionize::{VersionMap, Versionize, VersionizeError, VersionizeResult};
#[cfg(feature = "versionize")]
use versionize_derive::Versionize;

/// Index of a vCPU, from 0, as the VMM counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

/// A guest-virtual address. Guest-physical ones are [`vm_memory::GuestAddress`].
///
/// On x86_64 it is a linear address. An instruction's is not RIP where the code segment has a base, as in real mode, but the
/// base plus RIP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(pub u64);

impl fmt::Debug for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gva({:#x})", self.0)
    }
}

impl fmt::Display for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which accesses a watchpoint stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WatchKind {
    /// Stores.
    Write,
    /// Loads.
    Read,
    /// Both.
    Access,
}

/// What a client can insert and remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breakpoint {
    /// A breakpoint held in a debug register of every vCPU.
    Hardware(Gva),
    /// A breakpoint instruction in guest memory.
    Software(Gva),
    /// A watch over `length` bytes from `address`.
    Watch {
        /// Accesses that stop.
        kind: WatchKind,
        /// First watched byte.
        address: Gva,
        /// Number of watched bytes, at least 1.
        length: u64,
    },
}

impl fmt::Display for Breakpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(address) => write!(f, "hardware breakpoint at {address}"),
            Self::Software(address) => write!(f, "software breakpoint at {address}"),
            Self::Watch { kind, address, length } => {
                let kind = match kind {
                    WatchKind::Write => "write",
                    WatchKind::Read => "read",
                    WatchKind::Access => "access",
                };
                write!(f, "{kind} watchpoint at {address}, {length} bytes")
            }
        }
    }
}

/// What a vCPU does when the VM is resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeAction {
    /// It stays stopped.
    Stay,
    /// It runs until something stops it.
    Continue,
    /// It executes one instruction.
    Step,
    /// It steps for as long as the program counter, as the register [`crate::Arch::PC`] has it, is inside the range.
    StepRange(Range<u64>),
}

/// Why a vCPU stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The step, or the range of steps, that was asked for is done.
    Step,
    /// A hardware breakpoint at this address; its instruction has not executed.
    HardwareBreakpoint(Gva),
    /// A software breakpoint at this address; its instruction has not executed.
    SoftwareBreakpoint(Gva),
    /// A watch matched. The access has not happened yet on arm64; on x86_64 it has, and the vCPU is behind it.
    Watchpoint {
        /// Kind of the watch, as it was asked for.
        kind: WatchKind,
        /// An accessed address inside the watch.
        address: Gva,
    },
    /// The client asked for the stop.
    Interrupt,
    /// The debug session can't go on with this guest.
    Unsupported(Unsupported),
}

/// What the session meets in a guest and can't debug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The vCPU executes AArch32 code.
    #[error("the vCPU executes AArch32 code, which is not supported")]
    AArch32,
    /// The guest enabled a vector catch, an AArch32 facility.
    #[error("a vector catch exception, an AArch32 facility, is not supported")]
    VectorCatch,
}

/// A vCPU stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopEvent {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Why it stopped.
    pub reason: StopReason,
}

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuState {
    /// Its thread has not entered the session: not started, or gone.
    Offline,
    /// It runs guest code, or waits inside the hypervisor to be powered on.
    Running,
    /// It is stopped by the debugger.
    Stopped,
}
