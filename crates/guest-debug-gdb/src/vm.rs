//! What a VMM hands to the server.

use guest_debug::{
    AnyReg, Arch, Arm64, Breakpoint, DebugCaps, Gva, HitRule, Messages, ResumeAction, RuleInfo, StopEvent, VcpuId,
    VcpuState,
};
use thiserror::Error;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// Why a VM could not do what the server asked. The guest is as it was before the call.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmError {
    /// There is no such vCPU.
    #[error("there is no {0}")]
    NoSuchVcpu(VcpuId),
    /// The call needs stopped vCPUs.
    #[error("{0} is not stopped by the debugger")]
    NotStopped(VcpuId),
    /// The guest-virtual address has no translation, or one that leaves the guest's RAM.
    #[error("{0}")]
    Unmapped(String),
    /// The guest-physical address is not RAM.
    #[error("guest-physical address {:#x} is not RAM", .0.0)]
    NotRam(GuestAddress),
    /// No debug register slot is left, or the watch needs more than there are. The text says how many there are.
    #[error("{0}")]
    NoSlot(String),
    /// The address or length is not one that the host can break on or watch.
    #[error("{0}")]
    BadBreakpoint(String),
    /// Nothing of that kind is inserted there.
    #[error("no breakpoint of that kind at {0}")]
    NoSuchBreakpoint(Gva),
    /// The vCPU has no such register, or refused the value.
    #[error("register {reg}: {message}")]
    Register {
        /// The register.
        reg: AnyReg,
        /// What the hypervisor answered.
        message: String,
    },
    /// The host, or this guest, can't be debugged so.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// What is looked at is a saved VM: it can be read, and neither runs nor changes.
    #[error("this is a snapshot: {0}")]
    ReadOnly(&'static str),
    /// The VM is gone: nothing will work any more.
    #[error("the VM is gone")]
    Gone,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl VmError {
    /// The error number that gdb is told, as in errno.h.
    pub(crate) fn errno(&self) -> u8 {
        match self {
            Self::NoSuchVcpu(_) | Self::Gone => 3,                // ESRCH
            Self::NotStopped(_) => 16,                            // EBUSY
            Self::Unmapped(_) | Self::NotRam(_) => 14,            // EFAULT
            Self::NoSlot(_) => 28,                                // ENOSPC
            Self::BadBreakpoint(_) | Self::Register { .. } => 22, // EINVAL
            Self::NoSuchBreakpoint(_) => 2,                       // ENOENT
            Self::Unsupported(_) => 95,                           // EOPNOTSUPP
            Self::ReadOnly(_) => 30,                              // EROFS
            Self::Other(_) => 5,                                  // EIO
        }
    }
}

fn no_rules() -> VmError {
    VmError::Unsupported("conditions and messages are not evaluated beside the vCPU".to_owned())
}

/// Something that happened in the VM while it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmEvent {
    /// A vCPU stopped, and all others with it.
    Stopped(StopEvent),
    /// The guest ended, with the code that the client is told (0 for an orderly power-off).
    Ended(u8),
    /// The VM goes on in another process. The protocol has no word for it: the client is told an end, and with a text what
    /// it is.
    Moved,
}

/// Where memory is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryAddress {
    /// As this vCPU translates it now.
    Virtual(VcpuId, Gva),
    /// Guest-physical.
    Physical(GuestAddress),
}

/// A breakpoint or watchpoint that is inserted, as `monitor breakpoints` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsertedBreakpoint {
    /// The breakpoint, as the client asked for it.
    pub breakpoint: Breakpoint,
    /// Debug register slots that it takes; 0 for a software breakpoint.
    pub slots: usize,
    /// Anything else worth telling, such as the physical address of a software breakpoint. May be empty.
    pub note: String,
}

/// A virtual machine, as the gdb server sees it.
///
/// Every call is coarse, takes and returns owned values, and borrows no guest memory, so that an implementation
/// may send it over a channel to the thread that owns the VM. The server makes all calls from the thread that
/// [`GdbServer::run`](crate::GdbServer::run) was called on, one at a time, and none of them from within another.
///
/// Between [`attach`](Self::attach) and [`detach`](Self::detach) the VM is either stopped or running.
/// [`resume`](Self::resume) makes it run; the next event of [`take_event`](Self::take_event) says that it is
/// stopped again. Registers and memory are asked for only while it is stopped.
///
/// # Errors
///
/// Every call answers a [`VmError`] and leaves the guest as it was. The server tells the client and goes on,
/// except for [`VmError::Gone`], which ends the connection.
pub trait DebugVm<A: Arch = Arm64> {
    /// The state of every vCPU, in the order of their numbers.
    fn vcpu_states(&self) -> Result<Vec<VcpuState>, VmError>;

    /// What the host can do: how many slots there are.
    fn capabilities(&self) -> Result<DebugCaps, VmError>;

    /// Stops all vCPUs and takes the guest's debug exceptions. Returns when they are stopped.
    fn attach(&self) -> Result<(), VmError>;

    /// Removes every breakpoint, gives the guest its debug exceptions back and lets all vCPUs run.
    fn detach(&self) -> Result<(), VmError>;

    /// An eventfd that becomes readable when [`take_event`](Self::take_event) may have something new.
    ///
    /// It stays the same from one attach to the detach. The server only waits for it: reading is up to the
    /// implementation. A signal while it is still readable counts as well.
    fn event(&self) -> &EventFd;

    /// The next event, if there is one. Does not wait.
    ///
    /// All vCPUs are stopped when it returns [`VmEvent::Stopped`]. Stops that happened at the same time stay
    /// queued, and are returned after the next [`resume`](Self::resume).
    fn take_event(&self) -> Result<Option<VmEvent>, VmError>;

    /// Asks for a stop; a [`VmEvent::Stopped`] follows. Does not wait. Harmless when all vCPUs are stopped.
    fn interrupt(&self) -> Result<(), VmError>;

    /// Lets the VM run. vCPUs that are not named continue.
    fn resume(&self, actions: Vec<(VcpuId, ResumeAction)>) -> Result<(), VmError>;

    /// The client has selected this vCPU; a VM that saves its debug session keeps that.
    fn select(&self, vcpu: VcpuId) -> Result<(), VmError> {
        let _ = vcpu;
        Ok(())
    }

    /// Inserts a breakpoint or watchpoint on all vCPUs. `vcpu` is the one whose address space counts.
    fn insert(&self, vcpu: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError>;

    /// Removes what [`insert`](Self::insert) inserted.
    fn remove(&self, vcpu: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError>;

    /// Everything that is inserted.
    fn breakpoints(&self) -> Result<Vec<InsertedBreakpoint>, VmError>;

    /// Whether conditions and messages are evaluated beside the vCPU, so that clients are told to send them.
    fn has_rules(&self) -> bool {
        false
    }

    /// Sets what becomes of a breakpoint's hits, whether it is inserted or not.
    fn set_rule(&self, breakpoint: Breakpoint, rule: HitRule) -> Result<(), VmError> {
        let _ = (breakpoint, rule);
        Err(no_rules())
    }

    /// Has so many hits of a breakpoint passed.
    fn set_ignore_count(&self, breakpoint: Breakpoint, count: u64) -> Result<(), VmError> {
        let _ = (breakpoint, count);
        Err(no_rules())
    }

    /// Every breakpoint with such a rule, and what was counted.
    fn rules(&self) -> Result<Vec<RuleInfo>, VmError> {
        Ok(Vec::new())
    }

    /// What breakpoints have printed since the last call. [`event`](Self::event) becomes readable for it as for a stop.
    fn take_messages(&self) -> Result<Messages, VmError> {
        Ok(Messages::default())
    }

    /// The registers that the vCPU has.
    fn registers(&self, vcpu: VcpuId) -> Result<Vec<A::Reg>, VmError>;

    /// Reads registers, each little-endian and [`guest_debug::Register::size`] bytes long, in the order asked for; `None` for one
    /// that can't be read.
    fn read_registers(&self, vcpu: VcpuId, regs: Vec<A::Reg>) -> Result<Vec<Option<Vec<u8>>>, VmError>;

    /// Writes registers, in this order; stops at the first that fails.
    fn write_registers(&self, vcpu: VcpuId, values: Vec<(A::Reg, Vec<u8>)>) -> Result<(), VmError>;

    /// Reads up to `length` bytes: fewer if a later page is not readable, an error if the first byte is not.
    /// Breakpoint instructions of the debugger don't show.
    fn read_memory(&self, address: MemoryAddress, length: usize) -> Result<Vec<u8>, VmError>;

    /// Writes all of `data` or nothing.
    fn write_memory(&self, address: MemoryAddress, data: Vec<u8>) -> Result<(), VmError>;

    /// Where a guest-virtual address is in guest-physical memory.
    fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, VmError>;

    /// A `monitor` command that the server does not know. `Ok(None)` if the VMM does not know it either.
    fn monitor(&self, vcpu: VcpuId, command: String) -> Result<Option<String>, VmError> {
        let _ = (vcpu, command);
        Ok(None)
    }

    /// Name with arguments, and one line of help, of each command that [`monitor`](Self::monitor) knows.
    fn monitor_help(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
