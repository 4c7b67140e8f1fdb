//! Rules of breakpoints in a state, since version 2.

use super::check::{at_most, field};
use super::{FieldError, GuestDebugState, StateError, WatchState};
use crate::agent::{Expression, ExpressionError};
use crate::arch::Arch;
use crate::{Breakpoint, Gva};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
#[cfg(feature = "versionize")]
use versionize::{VersionMap, Versionize, VersionizeError, VersionizeResult};
#[cfg(feature = "versionize")]
use versionize_derive::Versionize;

/// Version of the state that has rules first.
const SINCE: u32 = 2;
/// Breakpoints that can have a rule.
pub(crate) const MAX_RULES: usize = 1024;
/// Conditions of a rule, and as many commands.
pub(crate) const MAX_EXPRESSIONS: usize = 16;
/// Bytes of all expressions together.
pub(crate) const MAX_RULES_BYTES: usize = 256 << 10;

/// What becomes of a breakpoint's hits; see [`crate::HitRule`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct RuleState {
    /// Whose; it need not be inserted.
    pub breakpoint: BreakpointState,
    /// Bytecode of conditions: a hit counts if one is true, or if there is none.
    pub conditions: Vec<Vec<u8>>,
    /// Bytecode of what is executed instead of a stop.
    pub commands: Vec<Vec<u8>>,
    /// Hits still to be ignored.
    pub ignore: u64,
    /// Times that the guest came by.
    pub reached: u64,
    /// Those that counted.
    pub hits: u64,
}

/// A breakpoint; see [`Breakpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "versionize", derive(Versionize))]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum BreakpointState {
    /// A hardware breakpoint at this guest-virtual address.
    Hardware(u64),
    /// A software breakpoint that was asked for by this guest-virtual address.
    Software(u64),
    /// A watch.
    Watch(WatchState),
}

impl From<Breakpoint> for BreakpointState {
    fn from(breakpoint: Breakpoint) -> Self {
        match breakpoint {
            Breakpoint::Hardware(address) => Self::Hardware(address.0),
            Breakpoint::Software(address) => Self::Software(address.0),
            Breakpoint::Watch { kind, address, length } => Self::Watch(WatchState { address: address.0, length, kind }),
        }
    }
}

impl From<BreakpointState> for Breakpoint {
    fn from(state: BreakpointState) -> Self {
        match state {
            BreakpointState::Hardware(address) => Self::Hardware(Gva(address)),
            BreakpointState::Software(address) => Self::Software(Gva(address)),
            BreakpointState::Watch(WatchState { address, length, kind }) => {
                Self::Watch { kind, address: Gva(address), length }
            }
        }
    }
}

pub(super) fn check<A: Arch>(state: &GuestDebugState) -> Result<(), StateError> {
    if state.version < SINCE && !state.rules.is_empty() {
        return Err(field("rules", FieldError::TooNew { version: state.version, since: SINCE }));
    }
    at_most("rules", state.rules.len(), MAX_RULES)?;
    let mut length = 0;
    let mut before = None;
    for (index, rule) in state.rules.iter().enumerate() {
        let breakpoint = Breakpoint::from(rule.breakpoint);
        let path = |part: &str| format!("rules[{index}].{part}");
        A::check(breakpoint).map_err(|problem| field(path("breakpoint"), problem))?;
        if before.is_some_and(|before| before >= breakpoint) {
            return Err(field(path("breakpoint"), FieldError::Order));
        }
        before = Some(breakpoint);
        type Read = fn(Vec<u8>) -> Result<Expression, ExpressionError>;
        let lists: [(&str, &Vec<Vec<u8>>, Read); 2] = [
            ("conditions", &rule.conditions, Expression::condition),
            ("commands", &rule.commands, Expression::command),
        ];
        for (name, list, read) in lists {
            at_most(&path(name), list.len(), MAX_EXPRESSIONS)?;
            for (at, bytes) in list.iter().enumerate() {
                read(bytes.clone()).map_err(|problem| field(format!("{}[{at}]", path(name)), problem))?;
                length += bytes.len();
            }
        }
    }
    if length > MAX_RULES_BYTES { Err(field("rules", FieldError::Bytecode { length })) } else { Ok(()) }
}
