//! What there is to say about a saved VM, in a shape that scripts can rely on.
//!
//! Addresses and register values are strings with `0x` and hexadecimal digits, since many JSON readers keep 53 bits of a
//! number. Every member is always there, `null` where there is nothing to say. A new member may come without a new
//! [`REPORT_FORMAT`]; one that goes or changes its meaning raises it.

use super::frozen::{Frozen, FrozenVcpu};
use super::inspected::Inspected;
use crate::error::VmError;
use guest_debug::arm64::Pstate;
use guest_debug::state::{
    Architecture, GuestDebugState, RuleState, SoftwareState, StopReasonState, StopState, UnsupportedState,
    VcpuDebugState, VcpuMode, WatchState,
};
use guest_debug::{Breakpoint, DebugVcpu as _, WatchKind};
use serde::{Serialize, Serializer};
use std::fmt;

/// Value of [`Report::format`].
pub const REPORT_FORMAT: u32 = 1;

/// A saved VM and its debug session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`REPORT_FORMAT`].
    pub format: u32,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// Memory regions, ascending.
    pub memory: Vec<MemoryReport>,
    /// The vCPUs, in the order of their indices.
    pub vcpus: Vec<VcpuReport>,
    /// The debug session.
    pub session: Option<SessionReport>,
}

/// A 64-bit value in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u64);

/// A range of guest-physical memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// First guest-physical address.
    pub address: Hex,
    /// Length in bytes.
    pub length: u64,
}

/// A vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VcpuReport {
    /// Its index.
    pub vcpu: usize,
    /// False while it waits for PSCI CPU_ON, or for INIT or SIPI.
    pub powered_on: bool,
    /// Program counter.
    pub pc: Option<Hex>,
    /// The stack pointer that is in use.
    pub sp: Option<Hex>,
    /// PSTATE, of an arm64 guest.
    pub pstate: Option<PstateReport>,
    /// RFLAGS, of an x86_64 guest.
    pub rflags: Option<RflagsReport>,
    /// What the debug session has it do.
    pub debug: Option<VcpuDebugReport>,
}

/// PSTATE, and the parts that are asked for most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PstateReport {
    /// In the layout of SPSR_EL1.
    pub value: Hex,
    /// Exception level.
    pub el: u8,
    /// The state is one of AArch32.
    pub aarch32: bool,
    /// SP is the exception level's own.
    pub sp_sel: bool,
    /// The masks that are set, letters of `DAIF` in this order.
    pub masked: String,
}

/// RFLAGS, and the parts of it and of other registers that are asked for most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RflagsReport {
    /// All of it.
    pub value: Hex,
    /// `real`, `virtual-8086`, `protected`, `compatibility` or `64-bit`.
    pub mode: &'static str,
    /// Privilege level.
    pub cpl: u8,
    /// IF: interrupts are taken.
    pub interrupts: bool,
}

/// What a vCPU was doing for a debugger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VcpuDebugReport {
    /// `running`, `stopped`, `stepping` or `stepping_range`.
    pub mode: &'static str,
    /// The range of `stepping_range`.
    pub range: Option<RangeReport>,
    /// The stop that the client was told of, until the vCPU executes something.
    pub told: Option<ToldReport>,
}

/// A range of guest-virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RangeReport {
    /// First address.
    pub start: Hex,
    /// First address behind.
    pub end: Hex,
}

/// A stop that a client was told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToldReport {
    /// Where the vCPU was.
    pub pc: Hex,
    /// The watches that its instruction has hit.
    pub watches: Vec<Hex>,
}

/// A debug session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    /// Version of the state.
    pub version: u32,
    /// A client owned it.
    pub attached: bool,
    /// The VM waited for its first client.
    pub held: bool,
    /// The vCPU that the client had selected.
    pub selected_vcpu: Option<u32>,
    /// Guest-virtual addresses of hardware breakpoints.
    pub hardware_breakpoints: Vec<Hex>,
    /// Watches.
    pub watches: Vec<WatchReport>,
    /// Software breakpoints.
    pub software_breakpoints: Vec<SoftwareReport>,
    /// The stop that the client was told of last.
    pub reported: Option<StopReport>,
    /// Stops that it had not fetched, the oldest first.
    pub pending: Vec<StopReport>,
    /// Stops of vCPUs that it had left stopped.
    pub put_aside: Vec<StopReport>,
    /// What becomes of breakpoints' hits.
    pub rules: Vec<RuleReport>,
}

/// A rule of a breakpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// Whose, in words.
    pub breakpoint: String,
    /// Bytecode of its conditions, as hex digits.
    pub conditions: Vec<String>,
    /// Bytecode of what is printed instead of a stop.
    pub commands: Vec<String>,
    /// Hits still to be ignored.
    pub ignore: u64,
    /// Times that the guest came by.
    pub reached: u64,
    /// Those that counted.
    pub hits: u64,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchReport {
    /// Accesses that stop.
    pub kind: WatchKind,
    /// Guest-virtual address of the first byte.
    pub address: Hex,
    /// Number of bytes.
    pub length: u64,
    /// Watchpoint slots that it takes.
    pub slots: usize,
}

/// A software breakpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SoftwareReport {
    /// Guest-physical address.
    pub physical: Hex,
    /// The guest's own bytes there, in the order of memory.
    pub original: String,
    /// The same as an A64 instruction word, of an arm64 guest.
    pub instruction: Option<Hex>,
    /// Guest-virtual addresses that it was asked for by.
    pub names: Vec<Hex>,
}

/// A stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StopReport {
    /// The vCPU.
    pub vcpu: u32,
    /// Where it stopped.
    pub pc: Hex,
    /// `step`, `hardware_breakpoint`, `software_breakpoint`, `watchpoint`, `interrupt`, `unsupported_aarch32` or
    /// `unsupported_vector_catch`.
    pub reason: &'static str,
    /// Address of the breakpoint, or accessed address inside the watch.
    pub address: Option<Hex>,
    /// Kind of the watch.
    pub kind: Option<WatchKind>,
    /// False for a stop that is void: its vCPU has moved on, as it does under a session that is dormant.
    pub holds: bool,
}

impl Report {
    /// Describes a saved VM.
    pub fn of<A: Inspected>(frozen: &Frozen<A>) -> Self {
        let memory = frozen.memory().regions().iter();
        let vcpus = frozen.vcpus().iter().enumerate();
        let debug = |vcpu| frozen.session().and_then(|session| session.vcpus.get(vcpu));
        Self {
            format: REPORT_FORMAT,
            architecture: A::ARCHITECTURE,
            memory: memory.map(|r| MemoryReport { address: Hex(r.address.0), length: r.length }).collect(),
            vcpus: vcpus.map(|(index, vcpu)| VcpuReport::of(index, vcpu, debug(index))).collect(),
            session: frozen.session().map(|session| SessionReport::of(frozen, session)),
        }
    }

    /// The report as indented JSON, with a newline at its end.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] if it can't be written as JSON.
    pub fn to_json(&self) -> Result<String, VmError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| VmError::io("serialize")(error.into()))?;
        Ok(text + "\n")
    }
}

impl VcpuReport {
    fn of<A: Inspected>(index: usize, vcpu: &FrozenVcpu<A>, debug: Option<&VcpuDebugState>) -> Self {
        Self {
            vcpu: index,
            powered_on: vcpu.is_powered_on(),
            pc: vcpu.get_u64(A::PC).ok().map(Hex),
            sp: A::sp(vcpu).map(Hex),
            pstate: A::pstate(vcpu),
            rflags: A::rflags(vcpu),
            debug: debug.map(VcpuDebugReport::from),
        }
    }
}

impl From<Pstate> for PstateReport {
    fn from(pstate: Pstate) -> Self {
        let masks = [(Pstate::D, 'D'), (Pstate::A, 'A'), (Pstate::I, 'I'), (Pstate::F, 'F')];
        Self {
            value: Hex(pstate.0),
            el: pstate.el(),
            aarch32: pstate.is_aarch32(),
            sp_sel: pstate.sp_sel(),
            masked: masks.iter().filter(|(bit, _)| pstate.contains(*bit)).map(|(_, letter)| letter).collect(),
        }
    }
}

impl From<&VcpuDebugState> for VcpuDebugReport {
    fn from(state: &VcpuDebugState) -> Self {
        let (mode, range) = match state.mode {
            VcpuMode::Running => ("running", None),
            VcpuMode::Stopped => ("stopped", None),
            VcpuMode::Stepping => ("stepping", None),
            VcpuMode::SteppingRange(range) => {
                ("stepping_range", Some(RangeReport { start: Hex(range.start), end: Hex(range.end) }))
            }
        };
        let told = state.told.as_ref();
        let told = told.map(|told| ToldReport { pc: Hex(told.pc), watches: hex_list(&told.watches) });
        Self { mode, range, told }
    }
}

impl SessionReport {
    fn of<A: Inspected>(frozen: &Frozen<A>, state: &GuestDebugState) -> Self {
        let stops = |list: &[StopState]| list.iter().map(|stop| StopReport::of(frozen, stop)).collect();
        Self {
            version: state.version,
            attached: state.attached,
            held: state.held,
            selected_vcpu: state.selected_vcpu,
            hardware_breakpoints: hex_list(&state.hardware),
            watches: state.watches.iter().map(WatchReport::of::<A>).collect(),
            software_breakpoints: state.software.iter().map(SoftwareReport::of::<A>).collect(),
            reported: state.reported.as_ref().map(|stop| StopReport::of(frozen, stop)),
            pending: stops(&state.pending),
            put_aside: stops(&state.put_aside),
            rules: state.rules.iter().map(RuleReport::from).collect(),
        }
    }
}

impl WatchReport {
    fn of<A: Inspected>(state: &WatchState) -> Self {
        let &WatchState { address, length, kind } = state;
        Self { kind, address: Hex(address), length, slots: A::slots(state) }
    }
}

impl From<&RuleState> for RuleReport {
    fn from(state: &RuleState) -> Self {
        let bytecode = |list: &[Vec<u8>]| list.iter().map(hex::encode).collect();
        Self {
            breakpoint: Breakpoint::from(state.breakpoint).to_string(),
            conditions: bytecode(&state.conditions),
            commands: bytecode(&state.commands),
            ignore: state.ignore,
            reached: state.reached,
            hits: state.hits,
        }
    }
}

impl SoftwareReport {
    fn of<A: Inspected>(state: &SoftwareState) -> Self {
        Self {
            physical: Hex(state.physical),
            original: hex::encode(A::original(&state.original)),
            instruction: A::instruction(state.original),
            names: hex_list(&state.names),
        }
    }
}

impl StopReport {
    fn of<A: Inspected>(frozen: &Frozen<A>, stop: &StopState) -> Self {
        let (reason, address, kind) = match stop.reason {
            StopReasonState::Step => ("step", None, None),
            StopReasonState::HardwareBreakpoint(at) => ("hardware_breakpoint", Some(Hex(at)), None),
            StopReasonState::SoftwareBreakpoint(at) => ("software_breakpoint", Some(Hex(at)), None),
            StopReasonState::Watchpoint(hit) => ("watchpoint", Some(Hex(hit.address)), Some(hit.kind)),
            StopReasonState::Interrupt => ("interrupt", None, None),
            StopReasonState::Unsupported(UnsupportedState::AArch32) => ("unsupported_aarch32", None, None),
            StopReasonState::Unsupported(UnsupportedState::VectorCatch) => ("unsupported_vector_catch", None, None),
        };
        Self { vcpu: stop.vcpu, pc: Hex(stop.pc), reason, address, kind, holds: frozen.holds(stop) }
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn hex_list(addresses: &[u64]) -> Vec<Hex> {
    addresses.iter().copied().map(Hex).collect()
}
