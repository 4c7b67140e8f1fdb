//! What can go wrong in a session.

use crate::arch::PlaceError;
use crate::arm64::dbgreg::DbgRegError;
use crate::arm64::exception::ExceptionError;
use crate::arm64::translate::TranslateError;
use crate::arm64::watch::WatchError;
use crate::state::{MAX_EXPRESSIONS, MAX_RULES, MAX_RULES_BYTES, StateError};
use crate::x86_64;
use crate::{Gva, RamError, Unsupported, VcpuError, VcpuId};
use thiserror::Error;

/// Why the session refused or failed. The guest and the session are as they were before the call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The host's KVM can't debug guests.
    #[error("the host can't debug guests: KVM_CAP_SET_GUEST_DEBUG is missing")]
    NoGuestDebug,
    /// A session needs a vCPU.
    #[error("a session needs at least one vCPU")]
    NoVcpus,
    /// There is no such vCPU.
    #[error("there is no {vcpu}, the VM has {count}")]
    NoSuchVcpu {
        /// The vCPU asked for.
        vcpu: VcpuId,
        /// How many there are.
        count: usize,
    },
    /// The call needs the vCPU stopped by the debugger.
    #[error("{0} is not stopped by the debugger")]
    NotStopped(VcpuId),
    /// A vCPU did not leave guest code after it was kicked.
    #[error("{0} did not stop in time; its thread may be blocked in the VMM")]
    Stuck(VcpuId),
    /// A call that only an attached client may make.
    #[error("no client is attached")]
    NotAttached,
    /// Only one client at a time owns the session.
    #[error("a client is attached already")]
    AlreadyAttached,
    /// The session is frozen, so that the VM can be saved.
    #[error("the VM is being saved; nothing may change until it goes on")]
    Frozen,
    /// [`super::DebugSession::arm_ahead`] has armed the session and [`super::DebugSession::arm`] was not called yet: its VM is still on
    /// its way.
    #[error("the VM is still on its way here; a client can attach when it has arrived")]
    Arriving,
    /// The session is armed, or was never restored; only one that waits to be armed can be given another state.
    #[error("the debug session is in force; only one that waits to be armed can be given another state")]
    InForce,
    /// The session can't be restored.
    #[error("the debug session can't be restored: {0}")]
    State(#[from] StateError),
    /// There are more conditions and messages than a session keeps.
    #[error(
        "no room for the rule: {MAX_RULES} breakpoints can have one, each {MAX_EXPRESSIONS} conditions and as many commands, \
         {MAX_RULES_BYTES} bytes in all"
    )]
    TooManyRules,
    /// Every hardware breakpoint slot is taken.
    #[error("no hardware breakpoint slot left: all {available} are in use")]
    NoBreakpointSlot {
        /// Slots that the host has.
        available: usize,
    },
    /// The watch does not fit in the watchpoint slots.
    #[error("the watch needs {needed} watchpoint slots, {free} of {available} are free")]
    NoWatchpointSlot {
        /// Slots that this watch needs.
        needed: usize,
        /// Slots that are free.
        free: usize,
        /// Slots that the host has.
        available: usize,
    },
    /// The address is not one that a breakpoint can have.
    #[error(transparent)]
    Address(#[from] DbgRegError),
    /// The range is not one that can be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// x86_64: the address is not one that a breakpoint can have.
    #[error(transparent)]
    X86Address(#[from] x86_64::slot::SlotError),
    /// x86_64: the range is not one that can be watched.
    #[error(transparent)]
    X86Watch(#[from] x86_64::watch::WatchError),
    /// Nothing of that kind is inserted there.
    #[error("no breakpoint of that kind at {0}")]
    NoSuchBreakpoint(Gva),
    /// The range reaches beyond the last address that there is.
    #[error("{length} bytes from {address} reach beyond the end of the address space")]
    Wraps {
        /// First address of the range.
        address: Gva,
        /// Its length in bytes.
        length: usize,
    },
    /// The guest-virtual address has no translation.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// x86_64: the guest-virtual address has no translation.
    #[error(transparent)]
    X86Translate(#[from] x86_64::translate::TranslateError),
    /// The guest-physical memory is not RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// An exception could not be given to the guest.
    #[error(transparent)]
    Exception(#[from] ExceptionError),
    /// The hypervisor refused.
    #[error("{vcpu}: {source}")]
    Vcpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// What it answered.
        source: VcpuError,
    },
    /// The guest is of a kind that can't be debugged.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The session's event could not be created or signalled.
    #[error("the session's event failed: {0}")]
    Event(std::io::Error),
    /// [`super::VmHost`] was set twice, or never.
    #[error("the VM's host interface must be set exactly once before a client attaches")]
    Host,
}

impl From<PlaceError> for SessionError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Arm64Address(error) => error.into(),
            PlaceError::Arm64Watch(error) => error.into(),
            PlaceError::X86Address(error) => error.into(),
            PlaceError::X86Watch(error) => error.into(),
        }
    }
}
