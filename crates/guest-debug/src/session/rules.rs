//! What becomes of a breakpoint's hits: conditions, a count of hits to ignore, messages instead of stops.
//!
//! A rule belongs to a breakpoint by what that is, not to its insertion: clients take breakpoints out and put them back at
//! every stop. It goes when the client clears it, and when the client is detached.

use super::table::Tables;
use super::{DebugSession, SessionError};
use crate::agent::Expression;
use crate::arch::Arch;
use crate::state::{BreakpointState, MAX_EXPRESSIONS, MAX_RULES, MAX_RULES_BYTES, RuleState};
use crate::{Breakpoint, StopReason};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is looked at when a breakpoint or watchpoint is hit, on the vCPU's own thread, while all others run.
///
/// A hit counts if one of the conditions is true, or if there is none. One that does not count is passed: the vCPU executes
/// the instruction and runs on. One that counts is passed as well while there are hits to ignore; otherwise it stops the VM,
/// or has the commands executed if there are some. An error in a condition stops the VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HitRule {
    /// The hit counts if any of them is not zero.
    pub conditions: Vec<Expression>,
    /// What is executed instead of a stop.
    pub commands: Vec<Expression>,
}

/// How often a breakpoint with a rule was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HitCounts {
    /// Times that the guest came by, whatever became of it.
    pub reached: u64,
    /// Those of them that counted.
    pub hits: u64,
    /// Hits still to be ignored.
    pub ignore: u64,
}

/// A rule of the session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Whose.
    pub breakpoint: Breakpoint,
    /// The rule.
    pub rule: HitRule,
    /// What it has counted.
    pub counts: HitCounts,
}

/// A rule in force. vCPUs share it, and only count in it.
#[derive(Debug, Default)]
pub(super) struct Rule {
    pub(super) what: HitRule,
    reached: AtomicU64,
    hits: AtomicU64,
    ignore: AtomicU64,
}

/// All rules. Replaced as a whole while every vCPU is stopped, so that vCPUs look at them without a lock.
pub(super) type Rules = BTreeMap<Breakpoint, Arc<Rule>>;

impl Rule {
    fn new(what: HitRule, counts: HitCounts) -> Self {
        let HitCounts { reached, hits, ignore } = counts;
        Self { what, reached: reached.into(), hits: hits.into(), ignore: ignore.into() }
    }

    fn counts(&self) -> HitCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HitCounts { reached: get(&self.reached), hits: get(&self.hits), ignore: get(&self.ignore) }
    }

    pub(super) fn count(&self, hit: bool) {
        self.reached.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_add(hit.into(), Ordering::Relaxed);
    }

    /// Takes one of the hits that are to be ignored, if any is left.
    pub(super) fn take_ignored(&self) -> bool {
        self.ignore.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// The hit did not happen after all.
    pub(super) fn give_ignored_back(&self) {
        self.ignore.fetch_add(1, Ordering::Relaxed);
    }

    fn length(&self) -> usize {
        self.what.conditions.iter().chain(&self.what.commands).map(|expression| expression.bytes().len()).sum()
    }
}

impl<A: Arch> DebugSession<A> {
    /// Sets the rule of a breakpoint, which need not be inserted. What was counted so far is kept.
    ///
    /// # Errors
    ///
    /// [`SessionError::NotAttached`], [`SessionError::NotStopped`], [`SessionError::Address`] and [`SessionError::Watch`] for
    /// what can't be a breakpoint, [`SessionError::TooManyRules`].
    pub fn set_rule(&self, breakpoint: Breakpoint, rule: HitRule) -> Result<(), SessionError> {
        self.change_rule(breakpoint, |old| Rule::new(rule, old.counts()))
    }

    /// Has the next `count` hits of a breakpoint that count passed.
    ///
    /// # Errors
    ///
    /// As [`Self::set_rule`].
    pub fn set_ignore_count(&self, breakpoint: Breakpoint, count: u64) -> Result<(), SessionError> {
        self.change_rule(breakpoint, |old| Rule::new(old.what.clone(), HitCounts { ignore: count, ..old.counts() }))
    }

    /// Removes a breakpoint's rule, and what it has counted: every hit stops the VM again. Answers whether there was one.
    ///
    /// # Errors
    ///
    /// [`SessionError::NotAttached`], [`SessionError::NotStopped`].
    pub fn clear_rule(&self, breakpoint: Breakpoint) -> Result<bool, SessionError> {
        let mut tables = self.changeable()?;
        Ok(Arc::make_mut(&mut tables.rules).remove(&breakpoint).is_some())
    }

    /// All rules, in the order of breakpoints, with what was counted up to now.
    pub fn rules(&self) -> Vec<RuleInfo> {
        let info = |(breakpoint, rule): (&Breakpoint, &Arc<Rule>)| RuleInfo {
            breakpoint: *breakpoint,
            rule: rule.what.clone(),
            counts: rule.counts(),
        };
        self.tables().rules.iter().map(info).collect()
    }

    fn change_rule(&self, breakpoint: Breakpoint, new: impl FnOnce(&Rule) -> Rule) -> Result<(), SessionError> {
        let mut tables = self.changeable()?;
        A::check(breakpoint)?;
        let mut rules = tables.rules.clone();
        let old = rules.get(&breakpoint).cloned().unwrap_or_default();
        let new = new(&old);
        let expressions = new.what.conditions.len().max(new.what.commands.len());
        let room = Arc::make_mut(&mut rules);
        room.insert(breakpoint, Arc::new(new));
        if room.len() > MAX_RULES {
            // One that is not inserted was set by a client that has forgotten it by now.
            let idle = room.keys().find(|key| **key != breakpoint && !self.is_inserted(&tables, **key)).copied();
            idle.and_then(|key| room.remove(&key));
        }
        let length: usize = room.values().map(|rule| rule.length()).sum();
        if room.len() > MAX_RULES || expressions > MAX_EXPRESSIONS || length > MAX_RULES_BYTES {
            return Err(SessionError::TooManyRules);
        }
        tables.rules = rules;
        Ok(())
    }

    /// The tables, if a client may change what is in force.
    fn changeable(&self) -> Result<std::sync::MutexGuard<'_, Tables>, SessionError> {
        let tables = self.tables();
        if !tables.attached {
            return Err(SessionError::NotAttached);
        }
        self.all_stopped()?;
        Ok(tables)
    }

    fn is_inserted(&self, tables: &Tables, breakpoint: Breakpoint) -> bool {
        match breakpoint {
            Breakpoint::Hardware(address) => tables.hardware.contains(&address),
            Breakpoint::Software(address) => self.software().has_name(address),
            Breakpoint::Watch { kind, address, length } => {
                tables.watches.contains(&super::table::Watch { address, length, kind })
            }
        }
    }

    /// A client is told of a stop, for the first time.
    pub(super) fn count_stop(&self, tables: &Tables, reason: StopReason) {
        let stopped = |breakpoint: &Breakpoint| match (reason, *breakpoint) {
            (StopReason::HardwareBreakpoint(at), Breakpoint::Hardware(address))
            | (StopReason::SoftwareBreakpoint(at), Breakpoint::Software(address)) => at == address,
            (StopReason::Watchpoint { kind: hit, address: at }, Breakpoint::Watch { kind, address, length }) => {
                hit == kind && at.0.wrapping_sub(address.0) < length
            }
            _ => false,
        };
        if let Some((_, rule)) = tables.rules.iter().find(|(breakpoint, _)| stopped(breakpoint)) {
            rule.count(true);
        }
    }
}

/// What is saved of the rules.
pub(super) fn state(rules: &Rules) -> Vec<RuleState> {
    let bytes = |list: &[Expression]| list.iter().map(|expression| expression.bytes().to_vec()).collect();
    let rule = |(breakpoint, rule): (&Breakpoint, &Arc<Rule>)| {
        let HitCounts { reached, hits, ignore } = rule.counts();
        RuleState {
            breakpoint: BreakpointState::from(*breakpoint),
            conditions: bytes(&rule.what.conditions),
            commands: bytes(&rule.what.commands),
            ignore,
            reached,
            hits,
        }
    };
    rules.iter().map(rule).collect()
}

/// The rules of a checked state.
pub(super) fn from_state(list: &[RuleState]) -> Rules {
    let rule = |state: &RuleState| {
        // The check has verified them; one that it let through by mistake stops the VM at every hit.
        let conditions =
            state.conditions.iter().filter_map(|bytes| Expression::condition(bytes.clone()).ok()).collect();
        let commands = state.commands.iter().filter_map(|bytes| Expression::command(bytes.clone()).ok()).collect();
        let counts = HitCounts { reached: state.reached, hits: state.hits, ignore: state.ignore };
        let rule = Rule::new(HitRule { conditions, commands }, counts);
        (Breakpoint::from(state.breakpoint), Arc::new(rule))
    };
    list.iter().map(rule).collect()
}
