//! What a session asks of its guest's architecture.

use super::{Entry, SessionError, VcpuDebugger};
use crate::arch::{Arch, PlaceError};
use crate::{Breakpoint, DebugCaps, DebugVcpu, GuestRam, Gva, VcpuError, WatchKind};
use std::fmt::Debug;
use vm_memory::GuestAddress;

/// Breakpoint and watchpoint slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// For breakpoints.
    pub breakpoints: usize,
    /// For watches.
    pub watches: usize,
}

/// The part of [`Arch`] that only sessions use: the rules of its debug registers, and how a vCPU's thread steps.
pub trait Debugged<A: Arch>: Sized {
    /// What a vCPU's thread knows of the step that is under way, and of its vCPU.
    type Motion: Debug + Default + Send;
    /// A watchpoint slot.
    type WatchSlot: Copy + Debug + Ord;
    /// A breakpoint instruction.
    type Code: Copy + Debug + Eq + AsRef<[u8]> + AsMut<[u8]> + Send + Sync;
    /// The registers that decide about a translation.
    type Regime: Copy;

    /// The instruction that the session plants.
    const BREAK: Self::Code;
    /// Whether that is told from every breakpoint instruction that a guest has of its own.
    const BREAK_IS_OWN: bool;
    /// Slots that a vCPU can have at most.
    const MAX_SLOTS: usize;
    /// A watch is reported when the access has happened and pc is behind it, so that there is nothing to get over.
    const WATCH_TRAPS: bool;
    /// A watch of reads is told writes as well.
    const WIDENS_READS: bool;
    /// Single-step has to be asked for again before every step.
    const STEP_ENDS: bool;

    /// Whether there can be such a breakpoint.
    fn check(breakpoint: Breakpoint) -> Result<(), PlaceError>;

    /// The slots of a watch.
    fn watch_slots(kind: WatchKind, address: u64, length: u64) -> Result<Vec<Self::WatchSlot>, PlaceError>;

    /// What is left of a host's slots when so many are used.
    fn free(caps: &DebugCaps, used: Slots) -> Slots;

    /// The debug registers for breakpoints and watches that fit.
    fn hw(breakpoints: &[u64], watches: &[Self::WatchSlot]) -> A::Hw;

    /// Whether the hypervisor can hold interrupts back during a step.
    fn blocks_interrupts(caps: &DebugCaps) -> bool;

    /// The address of the instruction that a vCPU is about to execute, as breakpoints have it.
    fn pc(vcpu: &dyn DebugVcpu<A>) -> Result<u64, VcpuError>;

    /// How a vCPU translates.
    fn regime(vcpu: &dyn DebugVcpu<A>) -> Result<Self::Regime, VcpuError>;

    /// Where an address leads.
    fn translate(regime: &Self::Regime, address: u64, ram: &dyn GuestRam) -> Result<A::Translation, SessionError>;

    /// The physical address of a translation, and the size of the block around it that is mapped as one.
    fn place(translation: &A::Translation) -> (u64, u64);

    /// The value of a register by its number in expressions. `None` where there is none of that number.
    fn expression_register(vcpu: &dyn DebugVcpu<A>, number: u16) -> Option<Result<u64, VcpuError>>;

    /// Names of the instructions that [`Self::may_wait`] is about.
    const WAITS: &str;

    /// Whether an instruction may wait inside the hypervisor for what other vCPUs do.
    fn may_wait(code: &[u8]) -> bool;

    /// Whether a step is under way, or a range of steps between two instructions.
    fn is_moving(motion: &Self::Motion) -> bool;

    /// Whether a step is under way.
    fn is_stepping(motion: &Self::Motion) -> bool;

    /// Forgets what was known of the vCPU's registers.
    fn forget(motion: &mut Self::Motion);

    /// Programs the vCPU for one step.
    fn begin(debugger: &mut VcpuDebugger<A>, vcpu: &dyn DebugVcpu<A>) -> Result<Entry, SessionError>;

    /// A step was cut short: it counts if it executed, and leaves no trace if it did not.
    fn settle(debugger: &mut VcpuDebugger<A>, vcpu: &dyn DebugVcpu<A>) -> Result<(), SessionError>;

    /// An instruction that the hypervisor emulates is completed; ends the step if it was that one's.
    fn after_io(debugger: &mut VcpuDebugger<A>, vcpu: &dyn DebugVcpu<A>) -> Result<(), SessionError>;

    /// Decodes a debug exit and acts on it.
    fn on_debug_exit(
        debugger: &mut VcpuDebugger<A>,
        vcpu: &dyn DebugVcpu<A>,
        exit: A::Exit,
    ) -> Result<(), SessionError>;

    /// Ends a range of steps.
    fn end_range(debugger: &mut VcpuDebugger<A>, vcpu: &dyn DebugVcpu<A>) -> Result<(), SessionError>;

    /// Carries the instruction at `pc`, which is at `gpa`, out from here if registers are all that it needs. Answers where
    /// the vCPU is afterwards.
    fn carry_out(
        debugger: &VcpuDebugger<A>,
        vcpu: &dyn DebugVcpu<A>,
        pc: Gva,
        gpa: GuestAddress,
    ) -> Result<Option<u64>, SessionError>;
}
