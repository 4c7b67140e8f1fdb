//! Checks of a state, field by field, and of the host that is to take it.

use super::{
    FieldError, GuestDebugState, STATE_VERSION, SoftwareState, StateError, StopReasonState, StopState, ToldState,
    VcpuMode, WatchHit, rule,
};
use crate::arch::{Arch, Arm64, PlaceError};
use crate::session::Slots;
use crate::{Breakpoint, DebugCaps, Gva, WatchKind};
use std::collections::BTreeSet;

/// The smallest granule: what is on the same page has the same address inside it, virtual and physical.
const PAGE: u64 = 4096;
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
/// can be refused before it starts. Looks at every field as well. For arm64 guests; [`fits_as`] is for all.
///
/// # Errors
///
/// As [`fits_as`].
pub fn fits(state: &GuestDebugState, caps: &DebugCaps) -> Result<Fit, StateError> {
    fits_as::<Arm64>(state, caps)
}

/// [`fits`] for a guest of the architecture `A`.
///
/// # Errors
///
/// [`StateError`], as [`check`]; [`StateError::NoGuestDebug`] and [`StateError::WatchpointSlots`].
pub fn fits_as<A: Arch>(state: &GuestDebugState, caps: &DebugCaps) -> Result<Fit, StateError> {
    check_as::<A>(state)?;
    fits_host::<A>(state, caps)
}

/// The same of a state that was checked.
pub(crate) fn fits_host<A: Arch>(state: &GuestDebugState, caps: &DebugCaps) -> Result<Fit, StateError> {
    if !caps.guest_debug && (state.attached || state.held) {
        return Err(StateError::NoGuestDebug);
    }
    let needed = watch_slots::<A>(state);
    let available = A::free(caps, Slots { breakpoints: 0, watches: 0 }).watches;
    if needed > available {
        return Err(StateError::WatchpointSlots { needed, available });
    }
    let left = A::free(caps, Slots { breakpoints: 0, watches: needed }).breakpoints;
    Ok(Fit { as_software: state.hardware.len().saturating_sub(left), watch_slots: needed })
}

/// Whether `state` is one that a session of an arm64 guest can have; [`check_as`] is for all.
///
/// # Errors
///
/// As [`check_as`].
pub fn check(state: &GuestDebugState) -> Result<(), StateError> {
    check_as::<Arm64>(state)
}

/// Whether `state` is one that a session of a guest of the architecture `A` can have.
///
/// # Errors
///
/// [`StateError::Version`], [`StateError::Architecture`], and [`StateError::Field`] with the path of the first field that
/// can't be as it is.
pub fn check_as<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
    check_but_for_software::<A>(state, !state.software.is_empty())?;
    ascending(&state.software, |breakpoint| breakpoint.physical, |index| format!("software[{index}].physical"))?;
    state.software.iter().enumerate().try_for_each(|(index, breakpoint)| check_software::<A>(index, breakpoint))
}

/// The same of all but the software breakpoints, of which there are some or not.
pub(crate) fn check_but_for_software<A: Arch>(state: &GuestDebugState, has_software: bool) -> Result<(), StateError> {
    if !(1..=STATE_VERSION).contains(&state.version) {
        return Err(StateError::Version { found: state.version });
    }
    if state.architecture != A::ARCHITECTURE {
        return Err(StateError::Architecture { found: state.architecture, expected: A::ARCHITECTURE });
    }
    if state.vcpus.is_empty() {
        return Err(field("vcpus", FieldError::Empty));
    }
    check_hardware::<A>(state)?;
    check_watches::<A>(state)?;
    check_vcpus::<A>(state)?;
    check_stops::<A>(state)?;
    rule::check::<A>(state)?;
    if !state.attached { check_unattached(state, has_software) } else { Ok(()) }
}

fn check_hardware<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
    at_most("hardware", state.hardware.len(), A::MAX_SLOTS)?;
    ascending(&state.hardware, |address| *address, |index| format!("hardware[{index}]"))?;
    for (index, address) in state.hardware.iter().enumerate() {
        check_address::<A>(*address).map_err(|error| field(format!("hardware[{index}]"), error))?;
    }
    Ok(())
}

fn check_watches<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
    // Those that share the slots at most: each begins where one of them begins, and ends where one ends.
    at_most("watches", state.watches.len(), A::MAX_SLOTS * A::MAX_SLOTS)?;
    let key = |watch: &super::WatchState| (watch.address, watch.length, watch.kind);
    ascending(&state.watches, key, |index| format!("watches[{index}]"))?;
    for (index, asked) in state.watches.iter().enumerate() {
        A::watch_slots(asked.kind, asked.address, asked.length).map_err(|error| {
            let part = if error.is_about(asked.address) { "address" } else { "length" };
            field(format!("watches[{index}].{part}"), error)
        })?;
    }
    let (needed, most) = (watch_slots::<A>(state), A::MAX_SLOTS);
    if needed > most { Err(field("watches", FieldError::Slots { needed, most })) } else { Ok(()) }
}

fn check_software<A: Arch>(index: usize, breakpoint: &SoftwareState) -> Result<(), StateError> {
    let SoftwareState { physical, original, names } = breakpoint;
    check_address::<A>(*physical).map_err(|error| field(format!("software[{index}].physical"), error))?;
    let own = A::BREAK;
    let (code, behind) = original.split_at(own.as_ref().len());
    if A::BREAK_IS_OWN && code == own.as_ref() {
        return Err(field(format!("software[{index}].original"), FieldError::OwnBreakpoint));
    }
    if behind.iter().any(|byte| *byte != 0) {
        return Err(field(format!("software[{index}].original"), FieldError::Original));
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

fn check_vcpus<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
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
            check_told::<A>(index, told)?;
        }
    }
    match state.selected_vcpu {
        Some(vcpu) => known_vcpu(state, vcpu, || "selected_vcpu".into()),
        None => Ok(()),
    }
}

/// Nothing is asked of where the vCPU was: a guest can branch to any address, and a step ends there.
fn check_told<A: Arch>(index: usize, told: &ToldState) -> Result<(), StateError> {
    at_most(&format!("vcpus[{index}].told.watches"), told.watches.len(), MAX_TOLD)?;
    for (at, address) in told.watches.iter().enumerate() {
        let path = || format!("vcpus[{index}].told.watches[{at}]");
        A::watch_slots(WatchKind::Access, *address, 1).map_err(|error| field(path(), error))?;
        if told.watches.iter().take(at).any(|before| before == address) {
            return Err(field(path(), FieldError::Twice));
        }
    }
    Ok(())
}

fn check_stops<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
    if let Some(stop) = &state.reported {
        check_stop::<A>(state, stop, "reported")?;
        check_reported(state, stop)?;
    }
    // Each vCPU has stopped once, a client has interrupted, and one stop is to be told again. Twice that does no harm.
    at_most("pending", state.pending.len(), 2 * state.vcpus.len() + 2)?;
    at_most("put_aside", state.put_aside.len(), state.vcpus.len())?;
    for (index, stop) in state.pending.iter().enumerate() {
        check_stop::<A>(state, stop, &format!("pending[{index}]"))?;
    }
    for (index, stop) in state.put_aside.iter().enumerate() {
        let path = format!("put_aside[{index}]");
        check_stop::<A>(state, stop, &path)?;
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
fn check_stop<A: Arch>(state: &GuestDebugState, stop: &StopState, path: &str) -> Result<(), StateError> {
    known_vcpu(state, stop.vcpu, || format!("{path}.vcpu"))?;
    let reason = |error: FieldError| field(format!("{path}.reason"), error);
    match stop.reason {
        StopReasonState::HardwareBreakpoint(address) => {
            check_address::<A>(address).map_err(|error| reason(error.into()))?;
        }
        StopReasonState::SoftwareBreakpoint(address) => {
            A::check(Breakpoint::Software(Gva(address))).map_err(|error| reason(error.into()))?;
        }
        StopReasonState::Watchpoint(WatchHit { kind, address }) => {
            A::watch_slots(kind, address, 1).map_err(|error| reason(error.into()))?;
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
fn watch_slots<A: Arch>(state: &GuestDebugState) -> usize {
    let plans = state.watches.iter().filter_map(|asked| A::watch_slots(asked.kind, asked.address, asked.length).ok());
    plans.flatten().collect::<BTreeSet<A::WatchSlot>>().len()
}

/// Whether a hardware breakpoint can be there.
fn check_address<A: Arch>(address: u64) -> Result<(), PlaceError> {
    A::check(Breakpoint::Hardware(Gva(address)))
}

pub(super) fn field(path: impl Into<String>, problem: impl Into<FieldError>) -> StateError {
    StateError::Field { field: path.into(), problem: problem.into() }
}
