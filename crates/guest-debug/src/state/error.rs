//! What can be wrong with a state that comes back.

use super::{Architecture, MAX_RULES_BYTES, STATE_VERSION};
use crate::agent::ExpressionError;
use crate::arch::PlaceError;
use crate::arm64::dbgreg::DbgRegError;
use crate::arm64::watch::WatchError;
use crate::x86_64;
use thiserror::Error;

/// Why a session can't be restored from a state.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// A newer crate wrote it.
    #[error("version: the state has version {found}, this build reads 1 to {STATE_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It is another architecture's.
    #[error("architecture: the state is of a guest on {found}, this host runs {expected}")]
    Architecture {
        /// The state's.
        found: Architecture,
        /// This host's.
        expected: Architecture,
    },
    /// The VM has another number of vCPUs.
    #[error("vcpus: the state has {found} vCPUs, the VM has {expected}")]
    VcpuCount {
        /// In the state.
        found: usize,
        /// In the VM.
        expected: usize,
    },
    /// A field has a value that it can't have.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field, such as `watches[2].length`.
        field: String,
        /// What is wrong with it, and what would not be.
        problem: FieldError,
    },
    /// The host can't debug guests.
    #[error("the state has an attached debugger, and the host can't debug guests: KVM_CAP_SET_GUEST_DEBUG is missing")]
    NoGuestDebug,
    /// The watches need more slots than the host has.
    #[error("the watches need {needed} watchpoint slots, the host has {available}")]
    WatchpointSlots {
        /// Slots that they need.
        needed: usize,
        /// Slots that the host has.
        available: usize,
    },
    /// There are more hardware breakpoints than slots, and too few of them are on mapped pages, where software
    /// breakpoints can take their place.
    #[error("{needed} hardware breakpoints need a slot, as no vCPU maps their pages; the host has {available}")]
    BreakpointSlots {
        /// Slots that are needed.
        needed: usize,
        /// Slots that the host has.
        available: usize,
    },
}

/// What is wrong with one field.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldError {
    /// It is not an address that a breakpoint can have.
    #[error(transparent)]
    Address(#[from] DbgRegError),
    /// It is not a range that can be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// x86_64: it is not an address that a breakpoint can have.
    #[error(transparent)]
    X86Address(#[from] x86_64::slot::SlotError),
    /// x86_64: it is not a range that can be watched.
    #[error(transparent)]
    X86Watch(#[from] x86_64::watch::WatchError),
    /// x86_64: an instruction of one byte has others behind it.
    #[error("must be one byte and zeros behind it")]
    Original,
    /// It is not an expression that is evaluated.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// The state's version has no such field.
    #[error("must be empty: a state of version {version} has no such field, it came with version {since}")]
    TooNew {
        /// The state's version.
        version: u32,
        /// The first version that has it.
        since: u32,
    },
    /// All expressions together are too long.
    #[error("have {length} bytes of bytecode, {MAX_RULES_BYTES} at most are possible")]
    Bytecode {
        /// How many there are.
        length: usize,
    },
    /// The list is not sorted, or has something twice.
    #[error("not above the one before it; the list must ascend")]
    Order,
    /// The list is longer than any session's.
    #[error("has {count} entries, {most} at most are possible")]
    TooMany {
        /// Its length.
        count: usize,
        /// The longest that there can be.
        most: usize,
    },
    /// The watches need more slots than any vCPU has.
    #[error("need {needed} watchpoint slots, no vCPU has more than {most}")]
    Slots {
        /// Slots that they need.
        needed: usize,
        /// Slots that a vCPU can have.
        most: usize,
    },
    /// The list has it already.
    #[error("is in the list twice")]
    Twice,
    /// The list is empty.
    #[error("empty; at least one is needed")]
    Empty,
    /// The two addresses of a breakpoint are not on the same place of their pages.
    #[error("{name:#x} is not on the same place of its page as physical address {physical:#x}")]
    PageOffset {
        /// Virtual address.
        name: u64,
        /// Physical address.
        physical: u64,
    },
    /// The original instruction is the session's own breakpoint.
    #[error("is the debugger's own BRK; the guest's instruction is needed")]
    OwnBreakpoint,
    /// There is no such vCPU.
    #[error("there is no vCPU {vcpu}, the state has {count}")]
    Vcpu {
        /// Its number.
        vcpu: u32,
        /// How many there are.
        count: usize,
    },
    /// A range ends before it starts.
    #[error("{end:#x} is below the start of the range, {start:#x}")]
    Range {
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
    },
    /// The vCPU can't be doing that.
    #[error("must be stopped, since {because}")]
    NotStopped {
        /// What tells that it is stopped.
        because: &'static str,
    },
    /// The stop can't have been at that address.
    #[error("{pc:#x} is not the address of the breakpoint that was hit, {address:#x}")]
    Pc {
        /// Where the vCPU is said to have stopped.
        pc: u64,
        /// The breakpoint's address.
        address: u64,
    },
    /// A stop that was told is remembered by its vCPU.
    #[error("must be at {pc:#x}, where the stop in reported was")]
    NotTold {
        /// Where the vCPU stopped.
        pc: u64,
    },
    /// That reason is never put aside.
    #[error("a step's or an interrupt's stop is not put aside")]
    Reason,
    /// Nobody could let the vCPU go on.
    #[error("must be running, unless attached or held is true")]
    Stranded,
    /// Only a client can have set that up.
    #[error("must be empty, or attached true")]
    NotAttached,
}

impl From<PlaceError> for FieldError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Arm64Address(error) => error.into(),
            PlaceError::Arm64Watch(error) => error.into(),
            PlaceError::X86Address(error) => error.into(),
            PlaceError::X86Watch(error) => error.into(),
        }
    }
}
