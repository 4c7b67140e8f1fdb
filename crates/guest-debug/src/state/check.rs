//! Checks of a state, field by field, and of the host that is to take it.

use super::{
    Architecture, FieldError, GuestDebugState, STATE_VERSION, SoftwareState, StateError, StopReasonState, StopState,
    ToldState, VcpuMode, WatchHit, rule,
};
use crate::arm64::dbgreg::DbgRegError;
use crate::arm64::{BreakpointSlot, WatchSlot, watch};
use crate::session::BRK;
use crate::{DebugCaps, WatchKind};

/// The smallest granule: what is on the same page has the same address inside it, virtual and physical.
const PAGE: u64 = 4096;
/// Breakpoint slots that an arm64 vCPU can have, `KVM_ARM_MAX_DBG_REGS`. No session gets beyond that.
const MAX_SLOTS: usize = 16;
/// Watches that share [`MAX_SLOTS`] slots at most: each begins where one of them begins, and ends where one ends.
const MAX_WATCHES: usize = MAX_SLOTS * MAX_SLOTS;
/// Watches of one instruction that a session remembers to have told: each of them slows the next watchpoint exit down.
pub(crate) const MAX_TOLD: usize = 64;

/// How a state fits a host that can take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Hardware breakpoints for which there is no slot. As many become software breakpoints when the session is
    /// armed; that fails if too few of them are on mapped pages, which only the guest's memory tells.
    pub as_software: usize,
    /// Watchpoint slots that are used.
    pub watch_slots: usize,
}

/// Whether a session that is saved as `state` can be armed on a host with `caps`, so that a migration which would fail
/// can be refused before it starts. Looks at every field as well.
///
/// # Errors
///
/// [`StateError`], as [`check`]; [`StateError::NoGuestDebug`] and [`StateError::WatchpointSlots`].
pub fn fits(state: &GuestDebugState, caps: &DebugCaps) -> Result<Fit, StateError> {
    check(state)?;
    fits_host(state, caps)
}

/// The same of a state that was checked.
pub(crate) fn fits_host(state: &GuestDebugState, caps: &DebugCaps) -> Result<Fit, StateError> {
    if !caps.guest_debug && (state.attached || state.held) {
        return Err(StateError::NoGuestDebug);
    }
    let needed = watch_slots(state);
    if needed > caps.hw_wps {
        return Err(StateError::WatchpointSlots { needed, available: caps.hw_wps });
    }
    Ok(Fit { as_software: state.hardware.len().saturating_sub(caps.hw_bps), watch_slots: needed })
}

/// Whether `state` is one that a session can have.
///
/// # Errors
///
/// [`StateError::Version`], [`StateError::Architecture`], and [`StateError::Field`] with the path of the first field that
/// can't be as it is.
pub fn check(state: &GuestDebugState) -> Result<(), StateError> {
    check_but_for_software(state, !state.software.is_empty())?;
    ascending(&state.software, |breakpoint| breakpoint.physical, |index| format!("software[{index}].physical"))?;
    state.software.iter().enumerate().try_for_each(|(index, breakpoint)| check_software(index, breakpoint))
}

/// The same of all but the software breakpoints, of which there are some or not.
pub(crate) fn check_but_for_software(state: &GuestDebugState, has_software: bool) -> Result<(), StateError> {
    if !(1..=STATE_VERSION).contains(&state.version) {
        return Err(StateError::Version { found: state.version });
    }
    if state.architecture != Architecture::Aarch64 {
        return Err(StateError::Architecture { found: state.architecture, expected: Architecture::Aarch64 });
    }
    if state.vcpus.is_empty() {
        return Err(field("vcpus", FieldError::Empty));
    }
    check_hardware(state)?;
    check_watches(state)?;
    check_vcpus(state)?;
    check_stops(state)?;
    rule::check(state)?;
    if !state.attached { check_unattached(state, has_software) } else { Ok(()) }
}

fn check_hardware(state: &GuestDebugState) -> Result<(), StateError> {
    at_most("hardware", state.hardware.len(), MAX_SLOTS)?;
    ascending(&state.hardware, |address| *address, |index| format!("hardware[{index}]"))?;
    for (index, address) in state.hardware.iter().enumerate() {
        BreakpointSlot::new(*address).map_err(|error| field(format!("hardware[{index}]"), error))?;
    }
    Ok(())
}

fn check_watches(state: &GuestDebugState) -> Result<(), StateError> {
    at_most("watches", state.watches.len(), MAX_WATCHES)?;
    let key = |watch: &super::WatchState| (watch.address, watch.length, watch.kind);
    ascending(&state.watches, key, |index| format!("watches[{index}]"))?;
    for (index, asked) in state.watches.iter().enumerate() {
        watch::plan(asked.kind, asked.address, asked.length).map_err(|error| {
            let part = match error {
                watch::WatchError::NonCanonical { address } if address == asked.address => "address",
                _ => "length",
            };
            field(format!("watches[{index}].{part}"), error)
        })?;
    }
    let needed = watch_slots(state);
    if needed > MAX_SLOTS { Err(field("watches", FieldError::Slots { needed, most: MAX_SLOTS })) } else { Ok(()) }
}

fn check_software(index: usize, breakpoint: &SoftwareState) -> Result<(), StateError> {
    let SoftwareState { physical, original, names } = breakpoint;
    if let Err(error) = BreakpointSlot::new(*physical) {
        return Err(field(format!("software[{index}].physical"), error));
    }
    if *original == BRK {
        return Err(field(format!("software[{index}].original"), FieldError::OwnBreakpoint));
    }
    if names.is_empty() {
        return Err(field(format!("software[{index}].names"), FieldError::Empty));
    }
    ascending(names, |name| *name, |at| format!("software[{index}].names[{at}]"))?;
    match names.iter().enumerate().find(|(_, name)| *name % PAGE != physical % PAGE) {
        Some((at, &name)) => {
            let problem = FieldError::PageOffset { name, physical: *physical };
            Err(field(format!("software[{index}].names[{at}]"), problem))
        }
        None => Ok(()),
    }
}

fn check_vcpus(state: &GuestDebugState) -> Result<(), StateError> {
    let because = if state.held {
        Some("held is true")
    } else if state.reported.is_some() {
        Some("nothing has run since the stop in reported")
    } else if !state.pending.is_empty() {
        Some("stops are pending")
    } else {
        None
    };
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        if let (Some(because), true) = (because, vcpu.mode != VcpuMode::Stopped) {
            return Err(field(format!("vcpus[{index}].mode"), FieldError::NotStopped { because }));
        }
        if let VcpuMode::SteppingRange(range) = vcpu.mode
            && range.end < range.start
        {
            let problem = FieldError::Range { start: range.start, end: range.end };
            return Err(field(format!("vcpus[{index}].mode.end"), problem));
        }
        if let Some(told) = &vcpu.told {
            check_told(index, told)?;
        }
    }
    match state.selected_vcpu {
        Some(vcpu) => known_vcpu(state, vcpu, || "selected_vcpu".into()),
        None => Ok(()),
    }
}

/// Nothing is asked of where the vCPU was: a guest can branch to any address, and a step ends there.
fn check_told(index: usize, told: &ToldState) -> Result<(), StateError> {
    at_most(&format!("vcpus[{index}].told.watches"), told.watches.len(), MAX_TOLD)?;
    for (at, address) in told.watches.iter().enumerate() {
        let path = || format!("vcpus[{index}].told.watches[{at}]");
        watch::plan(WatchKind::Access, *address, 1).map_err(|error| field(path(), error))?;
        if told.watches.iter().take(at).any(|before| before == address) {
            return Err(field(path(), FieldError::Twice));
        }
    }
    Ok(())
}

fn check_stops(state: &GuestDebugState) -> Result<(), StateError> {
    if let Some(stop) = &state.reported {
        check_stop(state, stop, "reported")?;
        check_reported(state, stop)?;
    }
    // Each vCPU has stopped once, a client has interrupted, and one stop is to be told again. Twice that does no harm.
    at_most("pending", state.pending.len(), 2 * state.vcpus.len() + 2)?;
    at_most("put_aside", state.put_aside.len(), state.vcpus.len())?;
    for (index, stop) in state.pending.iter().enumerate() {
        check_stop(state, stop, &format!("pending[{index}]"))?;
    }
    for (index, stop) in state.put_aside.iter().enumerate() {
        let path = format!("put_aside[{index}]");
        check_stop(state, stop, &path)?;
        if matches!(stop.reason, StopReasonState::Step | StopReasonState::Interrupt) {
            return Err(field(format!("{path}.reason"), FieldError::Reason));
        }
        let runs = |vcpu: &super::VcpuDebugState| vcpu.mode != VcpuMode::Stopped;
        if state.vcpus.get(stop.vcpu as usize).is_some_and(runs) {
            let problem = FieldError::NotStopped { because: "its stop is put aside" };
            return Err(field(format!("vcpus[{}].mode", stop.vcpu), problem));
        }
    }
    Ok(())
}

/// A client that was told of a stop goes on from it without hitting it again, so the vCPU remembers it.
fn check_reported(state: &GuestDebugState, stop: &StopState) -> Result<(), StateError> {
    let told = state.vcpus.get(stop.vcpu as usize).and_then(|vcpu| vcpu.told.as_ref());
    // An interrupt says nothing of the place.
    if stop.reason == StopReasonState::Interrupt || told.is_some_and(|told| told.pc == stop.pc) {
        return Ok(());
    }
    Err(field(format!("vcpus[{}].told", stop.vcpu), FieldError::NotTold { pc: stop.pc }))
}

/// That the breakpoint is among the inserted ones is not asked for: clients take breakpoints out while the VM is stopped.
fn check_stop(state: &GuestDebugState, stop: &StopState, path: &str) -> Result<(), StateError> {
    known_vcpu(state, stop.vcpu, || format!("{path}.vcpu"))?;
    let reason = |error: FieldError| field(format!("{path}.reason"), error);
    match stop.reason {
        StopReasonState::HardwareBreakpoint(address) => {
            BreakpointSlot::new(address).map_err(|error| reason(error.into()))?;
        }
        // It may carry a tag in its top byte, as the names of software breakpoints may.
        StopReasonState::SoftwareBreakpoint(address) if address % 4 != 0 => {
            return Err(reason(DbgRegError::Misaligned { address }.into()));
        }
        StopReasonState::Watchpoint(WatchHit { kind, address }) => {
            watch::plan(kind, address, 1).map_err(|error| reason(error.into()))?;
        }
        _ => {}
    }
    match stop.reason {
        StopReasonState::HardwareBreakpoint(address) | StopReasonState::SoftwareBreakpoint(address)
            if address != stop.pc =>
        {
            Err(field(format!("{path}.pc"), FieldError::Pc { pc: stop.pc, address }))
        }
        _ => Ok(()),
    }
}

/// What only a client can have set up is not there without one.
fn check_unattached(state: &GuestDebugState, has_software: bool) -> Result<(), StateError> {
    let lists = [
        ("selected_vcpu", state.selected_vcpu.is_none()),
        ("hardware", state.hardware.is_empty()),
        ("watches", state.watches.is_empty()),
        ("software", !has_software),
        ("reported", state.reported.is_none()),
        ("pending", state.pending.is_empty()),
        ("put_aside", state.put_aside.is_empty()),
        ("rules", state.rules.is_empty()),
    ];
    if let Some((name, _)) = lists.iter().find(|(_, empty)| !empty) {
        return Err(field(*name, FieldError::NotAttached));
    }
    if let Some(index) = state.vcpus.iter().position(|vcpu| vcpu.told.is_some()) {
        return Err(field(format!("vcpus[{index}].told"), FieldError::NotAttached));
    }
    let stranded = state.vcpus.iter().position(|vcpu| vcpu.mode != VcpuMode::Running);
    match stranded.filter(|_| !state.held) {
        Some(index) => Err(field(format!("vcpus[{index}].mode"), FieldError::Stranded)),
        None => Ok(()),
    }
}

pub(super) fn at_most(path: &str, count: usize, most: usize) -> Result<(), StateError> {
    if count > most { Err(field(path, FieldError::TooMany { count, most })) } else { Ok(()) }
}

fn known_vcpu(state: &GuestDebugState, vcpu: u32, path: impl FnOnce() -> String) -> Result<(), StateError> {
    let count = state.vcpus.len();
    if (vcpu as usize) < count { Ok(()) } else { Err(field(path(), FieldError::Vcpu { vcpu, count })) }
}

fn ascending<T, K: Ord>(
    list: &[T],
    key: impl Fn(&T) -> K,
    path: impl FnOnce(usize) -> String,
) -> Result<(), StateError> {
    match list.windows(2).position(|pair| matches!(pair, [one, next] if key(one) >= key(next))) {
        Some(index) => Err(field(path(index + 1), FieldError::Order)),
        None => Ok(()),
    }
}

/// Slots of all watches; watches that need the very same slot share it.
fn watch_slots(state: &GuestDebugState) -> usize {
    let plans = state.watches.iter().filter_map(|asked| watch::plan(asked.kind, asked.address, asked.length).ok());
    plans.flatten().collect::<std::collections::BTreeSet<WatchSlot>>().len()
}

pub(super) fn field(path: impl Into<String>, problem: impl Into<FieldError>) -> StateError {
    StateError::Field { field: path.into(), problem: problem.into() }
}
