//! What scenarios need of a host beside KVM, and whether it is there.
//!
//! KVM on arm64 has all of it. On x86_64 it is tried out, once for each host: KVM there is often that of a virtual machine,
//! which says that it can do what it can't.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::catalog::{GuestKind, Interpreter, Scenario};
use super::script::{self, Facts};
use super::{LinuxGuest, Suite};
use crate::paths;
use crate::progress::note;
use crate::report::Status;

/// Longer than the probe waits by itself.
const PROBE_TIMEOUT: Duration = Duration::from_secs(40);

/// One thing that a host can do or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ability {
    /// Steps.
    SingleStep,
    /// Breakpoints in debug registers.
    HardwareBreakpoint,
    /// Exits at breakpoint instructions.
    SoftwareBreakpoint,
    /// Watches in debug registers.
    Watchpoint,
    /// A step of IRET ends where that leads.
    IretStep,
    /// This test of the bare-metal guest runs to its end, without a debugger.
    Test(String),
    /// The Linux guest boots.
    Linux,
}

/// Those that scripts look at to go one way or another.
const OF_DEBUGGERS: [Ability; 4] =
    [Ability::SingleStep, Ability::HardwareBreakpoint, Ability::SoftwareBreakpoint, Ability::Watchpoint];

impl Ability {
    /// By its name in a scenario's declaration.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(super) fn parse(name: &str) -> Result<Self> {
        if let Some(test) = name.strip_prefix("test:") {
            return Ok(Self::Test(test.to_owned()));
        }
        let named = [&OF_DEBUGGERS[..], &[Self::IretStep]].concat();
        match named.iter().find(|ability| ability.to_string() == name) {
            Some(ability) => Ok(ability.clone()),
            None => bail!("{name:?} is no ability; there are {}, and test:NAME", names(&named).join(", ")),
        }
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SingleStep => f.write_str("single-step"),
            Self::HardwareBreakpoint => f.write_str("hardware-breakpoint"),
            Self::SoftwareBreakpoint => f.write_str("software-breakpoint"),
            Self::Watchpoint => f.write_str("watchpoint"),
            Self::IretStep => f.write_str("iret-step"),
            Self::Test(test) => write!(f, "test:{test}"),
            Self::Linux => f.write_str("Linux guest"),
        }
    }
}

/// What a host can do.
#[derive(Debug)]
pub(super) enum Abilities {
    /// Everything.
    All,
    /// What has been tried out so far.
    Found(BTreeMap<Ability, bool>),
}

impl Abilities {
    /// What a script gets to know of them.
    pub(super) fn facts(&self) -> Facts {
        match self {
            Self::All => Facts::new(),
            Self::Found(found) => {
                let there: Vec<_> = found.iter().filter(|(_, there)| **there).map(|(ability, _)| ability).collect();
                vec![("ABILITIES", names(there).join(","))]
            }
        }
    }
}

impl Suite<'_> {
    /// Tries out what a debugger can do on this host, and says it.
    ///
    /// # Errors
    /// If the guest to try them out cannot be made.
    pub(super) fn try_out(&mut self) -> Result<()> {
        let mut there = Vec::new();
        for ability in OF_DEBUGGERS {
            if self.can(&ability)? {
                there.push(ability);
            }
        }
        let has = if there.is_empty() { "nothing".to_owned() } else { names(&there).join(", ") };
        note(format!("{} has {has}", self.place()));
        Ok(())
    }

    /// The first of the abilities that a scenario needs and the host has not.
    ///
    /// # Errors
    /// If the guest to try them out cannot be made.
    pub(super) fn lacks(&mut self, scenario: &Scenario) -> Result<Option<Ability>> {
        for ability in &scenario.needs {
            if !self.can(ability)? {
                return Ok(Some(ability.clone()));
            }
        }
        let boots = scenario.guest != GuestKind::Linux
            || self.found(&Ability::Linux, |suite| Ok(suite.boots_linux(scenario)))?;
        Ok((!boots).then_some(Ability::Linux))
    }

    /// Whether the host has what a bare-metal guest can show; tried out the first time.
    ///
    /// # Errors
    /// If the guest to try it out cannot be made.
    pub(super) fn can(&mut self, ability: &Ability) -> Result<bool> {
        self.found(ability, |suite| suite.probe(ability))
    }

    fn found(&mut self, ability: &Ability, try_out: impl FnOnce(&mut Self) -> Result<bool>) -> Result<bool> {
        let Abilities::Found(found) = &self.abilities else { return Ok(true) };
        if let Some(there) = found.get(ability) {
            return Ok(*there);
        }
        let there = try_out(self)?;
        if let Abilities::Found(found) = &mut self.abilities {
            found.insert(ability.clone(), there);
        }
        Ok(there)
    }

    fn probe(&self, ability: &Ability) -> Result<bool> {
        let name = format!("probe-{ability}").replace(':', "-");
        let scenario = Scenario {
            name,
            path: paths::root().join("tests/scenarios/lib/probe.py"),
            guest: GuestKind::Bare,
            cpus: 1,
            timeout: PROBE_TIMEOUT * self.patience(),
            interpreter: Interpreter::Python,
            last: false,
            moves: false,
            debug_info: false,
            needs: Vec::new(),
            drives_vmm: false,
        };
        let (guest, facts) = self.bare(&scenario.guest_options())?;
        let mut more = self.facts(&*guest, scenario.cpus);
        more.push(("ABILITY", ability.to_string()));
        let outcome = script::run(&scenario, &[facts, more].concat())?;
        Ok(outcome.status == Status::Passed)
    }

    /// Whether it does; the guest is this scenario's then.
    fn boots_linux(&mut self, scenario: &Scenario) -> bool {
        let booted = match self.vmm.mover() {
            Some(mover) if scenario.moves && self.begins_restored() => self.booted(mover, scenario).map(drop),
            _ => self.new_linux(scenario.guest_options()).map(|(running, facts)| {
                self.guest = Some(LinuxGuest { running, cpus: scenario.cpus, facts });
            }),
        };
        match booted {
            Ok(()) => true,
            Err(error) => {
                let text = format!("{error:#}");
                note(format!("a Linux guest does not boot: {}", text.lines().next().unwrap_or_default()));
                false
            }
        }
    }
}

fn names<'a>(abilities: impl IntoIterator<Item = &'a Ability>) -> Vec<String> {
    abilities.into_iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_have_names() {
        for ability in OF_DEBUGGERS {
            assert_eq!(Ability::parse(&ability.to_string()).unwrap(), ability);
        }
        assert_eq!(Ability::parse("test:step_int").unwrap(), Ability::Test("step_int".to_owned()));
        let error = Ability::parse("flying").unwrap_err().to_string();
        assert!(error.contains("flying") && error.contains("watchpoint"), "{error}");
    }

    #[test]
    fn scripts_are_told_what_is_there() {
        assert!(Abilities::All.facts().is_empty());
        let found = BTreeMap::from([(Ability::SingleStep, true), (Ability::Watchpoint, false), (Ability::Linux, true)]);
        let [(name, value)] = &Abilities::Found(found).facts()[..] else { panic!("one variable") };
        assert_eq!((*name, value.as_str()), ("ABILITIES", "single-step,Linux guest"));
    }
}
