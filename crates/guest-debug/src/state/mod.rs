//! A debug session as a piece of VM state: what is saved, what comes back, and what is believed of it.
//!
//! Everything here is logical: addresses, lengths, original bytes, what each vCPU was doing. There are no debug register
//! bits and no slot numbers in it, since the host that restores it assigns slots of its own. Lists are sorted, so that
//! equal sessions have equal states.
//!
//! A state that comes back is untrusted. [`check`] looks at every field of it and [`fits`] at the host; whoever restores
//! a session gets both from [`crate::DebugSession::from_state`].
//!
//! # Versions
//!
//! A field that is added later has a serde default, a `version(start = N)` for versionize, and raises
//! [`STATE_VERSION`]. So a newer reader understands an older state, and an older one refuses a newer state by its
//! [`GuestDebugState::version`] instead of dropping what it does not know.
//!
//! Three formats are written and read: any of serde's, JSON as a rule; an `envelope` around JSON, with a checksum; and
//! `versioned`, which is versionize's. Each is a feature. docs/state-format.md has them byte by byte.

mod check;
#[cfg(feature = "envelope")]
pub mod envelope;
mod error;
#[cfg(feature = "serde")]
mod original;
mod rule;
#[cfg(feature = "versionize")]
pub mod versioned;

pub use check::{Fit, check, check_as, fits, fits_as};
pub(crate) use check::{MAX_TOLD, check_but_for_software, fits_host};
pub use error::{FieldError, StateError};
pub use rule::{BreakpointState, RuleState};
pub(crate) use rule::{MAX_EXPRESSIONS, MAX_RULES, MAX_RULES_BYTES};

use crate::{StopReason, Unsupported, WatchKind};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use std::sync::Arc;
#[cfg(feature = "versionize")]
use versionize::{VersionMap, Versionize, VersionizeError, VersionizeResult};
#[cfg(feature = "versionize")]
use versionize_derive::Versionize;

/// Version of the state that this crate writes, and the newest that it reads.
pub const STATE_VERSION: u32 = 2;

/// A guest's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum Architecture {
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit x86.
    X86_64,
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
        })
    }
}

/// Everything that a debugger has set up in a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct GuestDebugState {
    /// [`STATE_VERSION`] of the crate that wrote it.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "known_version"))]
    pub version: u32,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// A client owns the session. It stays so in a state that was restored and saved again without one.
    pub attached: bool,
    /// The VM was made to wait for a client, and none has resumed it yet.
    pub held: bool,
    /// The vCPU that the client has selected.
    pub selected_vcpu: Option<u32>,
    /// Guest-virtual addresses of hardware breakpoints, ascending.
    pub hardware: Vec<u64>,
    /// Watches, ascending by address, length and kind.
    pub watches: Vec<WatchState>,
    /// Software breakpoints, ascending by physical address.
    pub software: Vec<SoftwareState>,
    /// One for each vCPU, in the order of their numbers.
    pub vcpus: Vec<VcpuDebugState>,
    /// The stop that the client was told of last, if nothing has run since.
    pub reported: Option<StopState>,
    /// Stops that the client has not fetched yet, the oldest first.
    pub pending: Vec<StopState>,
    /// Stops of vCPUs that the client has left stopped; it is told of them when it resumes those.
    pub put_aside: Vec<StopState>,
    /// What becomes of breakpoints' hits, ascending by breakpoint. Since version 2; a session before that had none.
    #[cfg_attr(feature = "versionize", version(start = 2))]
    #[cfg_attr(feature = "serde", serde(default))]
    pub rules: Vec<RuleState>,
}

impl GuestDebugState {
    /// Whether all but the software breakpoints is the same.
    pub(crate) fn is_but_for_software(&self, other: &Self) -> bool {
        let Self {
            version,
            architecture,
            attached,
            held,
            selected_vcpu,
            hardware,
            watches,
            software: _,
            vcpus,
            reported,
            pending,
            put_aside,
            rules,
        } = self;
        *version == other.version
            && *architecture == other.architecture
            && *attached == other.attached
            && *held == other.held
            && *selected_vcpu == other.selected_vcpu
            && *hardware == other.hardware
            && *watches == other.watches
            && *vcpus == other.vcpus
            && *reported == other.reported
            && *pending == other.pending
            && *put_aside == other.put_aside
            && *rules == other.rules
    }
}

/// What a session's state has become since it was sent ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateUpdate {
    /// The software breakpoints are those that were sent; the list in `state` is empty and stands for them.
    pub same_software: bool,
    /// The state as it is now.
    pub state: GuestDebugState,
}

/// A watch, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct WatchState {
    /// Guest-virtual address of the first byte.
    pub address: u64,
    /// Number of bytes.
    pub length: u64,
    /// Accesses that stop.
    pub kind: WatchKind,
}

/// A software breakpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct SoftwareState {
    /// Guest-physical address of its instruction.
    pub physical: u64,
    /// The guest's own instruction there; of an x86_64 guest its first byte, and zeros. In JSON, a string of hexadecimal digits.
    #[cfg_attr(feature = "serde", serde(with = "original"))]
    pub original: [u8; 4],
    /// Guest-virtual addresses that it was asked for by, ascending.
    pub names: Vec<u64>,
}

/// One vCPU, as the debugger sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VcpuDebugState {
    /// What it is doing.
    pub mode: VcpuMode,
    /// The stop that the client was told of, until the vCPU executes something.
    pub told: Option<ToldState>,
}

/// What the client has a vCPU do. A step that had not executed yet is still to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum VcpuMode {
    /// It runs.
    Running,
    /// It is stopped.
    Stopped,
    /// It is to execute one instruction.
    Stepping,
    /// It steps for as long as the program counter is inside the range.
    SteppingRange(StepRange),
}

/// Where a range of steps goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct StepRange {
    /// First guest-virtual address inside.
    pub start: u64,
    /// First guest-virtual address behind.
    pub end: u64,
}

/// A stop that the client was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ToldState {
    /// Where the vCPU was.
    pub pc: u64,
    /// Guest-virtual addresses of the watches that its instruction has hit so far, in the order in which they were told,
    /// none of them twice.
    pub watches: Vec<u64>,
}

/// A vCPU's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct StopState {
    /// The vCPU.
    pub vcpu: u32,
    /// Where it stopped. The stop is void once the vCPU is elsewhere.
    pub pc: u64,
    /// Why.
    pub reason: StopReasonState,
}

/// Why a vCPU stopped; see [`StopReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum StopReasonState {
    /// A step, or a range of steps, is done.
    Step,
    /// A hardware breakpoint at this guest-virtual address.
    HardwareBreakpoint(u64),
    /// A software breakpoint at this guest-virtual address.
    SoftwareBreakpoint(u64),
    /// A watch matched.
    Watchpoint(WatchHit),
    /// The client asked for the stop.
    Interrupt,
    /// The session met what it can't debug.
    Unsupported(UnsupportedState),
}

/// Which watch matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct WatchHit {
    /// Kind of the watch.
    pub kind: WatchKind,
    /// An accessed guest-virtual address inside it.
    pub address: u64,
}

/// What the session met and can't debug; see [`Unsupported`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum UnsupportedState {
    /// AArch32 code.
    AArch32,
    /// A vector catch.
    VectorCatch,
}

/// Refuses a newer state by its version, which comes first, before something in it that this crate has no name for.
#[cfg(feature = "serde")]
fn known_version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let found: u32 = Deserialize::deserialize(deserializer)?;
    if (1..=STATE_VERSION).contains(&found) {
        Ok(found)
    } else {
        Err(serde::de::Error::custom(StateError::Version { found }))
    }
}

impl From<&GuestDebugState> for Arc<GuestDebugState> {
    fn from(state: &GuestDebugState) -> Self {
        Self::new(state.clone())
    }
}

impl From<StopReason> for StopReasonState {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Step => Self::Step,
            StopReason::HardwareBreakpoint(at) => Self::HardwareBreakpoint(at.0),
            StopReason::SoftwareBreakpoint(at) => Self::SoftwareBreakpoint(at.0),
            StopReason::Watchpoint { kind, address } => Self::Watchpoint(WatchHit { kind, address: address.0 }),
            StopReason::Interrupt => Self::Interrupt,
            StopReason::Unsupported(Unsupported::AArch32) => Self::Unsupported(UnsupportedState::AArch32),
            StopReason::Unsupported(Unsupported::VectorCatch) => Self::Unsupported(UnsupportedState::VectorCatch),
        }
    }
}

impl From<StopReasonState> for StopReason {
    fn from(reason: StopReasonState) -> Self {
        match reason {
            StopReasonState::Step => Self::Step,
            StopReasonState::HardwareBreakpoint(at) => Self::HardwareBreakpoint(crate::Gva(at)),
            StopReasonState::SoftwareBreakpoint(at) => Self::SoftwareBreakpoint(crate::Gva(at)),
            StopReasonState::Watchpoint(WatchHit { kind, address }) => {
                Self::Watchpoint { kind, address: crate::Gva(address) }
            }
            StopReasonState::Interrupt => Self::Interrupt,
            StopReasonState::Unsupported(UnsupportedState::AArch32) => Self::Unsupported(Unsupported::AArch32),
            StopReasonState::Unsupported(UnsupportedState::VectorCatch) => Self::Unsupported(Unsupported::VectorCatch),
        }
    }
}
