//! The suite on hosts of which none can do everything: each scenario runs on the first that has what it needs.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::abilities::Abilities;
use super::catalog::{GuestKind, Scenario};
use super::vmm::ReferenceVmm;
use super::{ScenarioOptions, Suite, select, write_json};
use crate::context::{Context, HostOptions};
use crate::host::{KvmHost, is_native};
use crate::report::{CaseResult, Status};
use crate::x86_64::Emulator;

/// Where a scenario can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    Emulated(Emulator),
}

impl Place {
    /// Those of x86_64, in the order in which they are tried: the slowest last. With `--emulated` it is the chosen emulator alone.
    fn all(context: &Context) -> Vec<Self> {
        let host = &context.host;
        if host.emulated {
            return vec![Self::Emulated(host.host_emulator)];
        }
        let here = is_native(context).then_some(Self::Here);
        here.into_iter().chain(Emulator::ALL.map(Self::Emulated)).collect()
    }

    /// Whose KVM it has, for messages.
    const fn kvm(self) -> &'static str {
        match self {
            Self::Here => "this machine's KVM",
            Self::Emulated(emulator) => emulator.describe(),
        }
    }

    fn start(self, context: &Context) -> Result<KvmHost> {
        match self {
            Self::Here => KvmHost::start_native(context.arch()),
            Self::Emulated(host_emulator) => {
                KvmHost::start_emulated(&context.with(HostOptions { host_emulator, ..context.host.clone() }))
            }
        }
    }
}

/// Scenarios with a Linux guest that are tried in Bochs in any case: one for each way in which a session stops a kernel or
/// its program, and one that moves it while it runs.
const TELLING: [&str; 5] = [
    "linux-break-kernel",
    "linux-condition-watch",
    "linux-hbreak-kernel",
    "linux-user-sigtraps",
    "move-condition-hits",
];

/// Whether a scenario is too slow on a host to be tried there by itself: Bochs interprets each instruction, and all scenarios
/// with a Linux guest take the better part of an hour there.
fn is_slow(place: Place, scenario: &Scenario) -> bool {
    place == Place::Emulated(Emulator::Bochs)
        && scenario.guest == GuestKind::Linux
        && !TELLING.contains(&scenario.name.as_str())
}

/// The result of a host that does not come up.
fn no_host(place: Place, error: &anyhow::Error) -> CaseResult {
    let name = place.kvm();
    println!("FAILED  {name:<32} {error:#}");
    CaseResult { name: name.to_owned(), status: Status::Failed, reason: Some(format!("{error:#}")), seconds: 0.0 }
}

/// Runs the suite for x86_64: on this machine's KVM, and what that can't do on the emulated ones'.
///
/// # Errors
/// If the suite itself cannot run; a scenario that fails is a result.
pub(crate) fn run_on_x86_64(context: &Context, options: &ScenarioOptions) -> Result<Vec<CaseResult>> {
    ensure!(options.vmm == "reference-vmm", "scenarios for {} are for reference-vmm only", context.arch().name());
    let mut left = select(context, options)?;
    // Whoever asks for one host asks for all that it can do.
    let leave_out = |place, scenario: &Scenario| !options.all && !context.host.emulated && is_slow(place, scenario);
    let mut results = Vec::new();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for place in Place::all(context) {
        let kvm = place.kvm();
        let (slow, tried): (Vec<_>, Vec<_>) = left.into_iter().partition(|scenario| leave_out(place, scenario));
        for scenario in &slow {
            let reason = format!("not tried on {kvm}, which is slow (--all does)");
            missing.entry(scenario.name.clone()).or_default().push(reason);
        }
        left = slow;
        if tried.is_empty() {
            continue;
        }
        let host = match place.start(context) {
            Ok(host) => host,
            // What ran elsewhere has its results.
            Err(error) if !results.is_empty() => {
                results.push(no_host(place, &error));
                left.extend(tried);
                continue;
            }
            Err(error) => return Err(error),
        };
        let vmm = ReferenceVmm::new(context, &host, options.binary.as_deref())?;
        let mut suite = Suite::new(context, Some(&host), &vmm, Abilities::Found(BTreeMap::new())).with(options)?;
        suite.try_out()?;
        for scenario in tried {
            match suite.lacks(&scenario)? {
                None => {
                    let timeout = scenario.timeout * host.patience();
                    results.push(suite.run(&Scenario { timeout, ..scenario }));
                }
                Some(ability) => {
                    missing.entry(scenario.name.clone()).or_default().push(format!("no {ability} on {kvm}"));
                    left.push(scenario);
                }
            }
        }
    }
    for scenario in left {
        let reason = missing.remove(&scenario.name).unwrap_or_default().join(", ");
        println!("skipped {:<32} {reason}", scenario.name);
        results.push(CaseResult { name: scenario.name, status: Status::Skipped, reason: Some(reason), seconds: 0.0 });
    }
    write_json(options, &results)?;
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::super::catalog;
    use super::*;
    use crate::arch::Arch;
    use crate::paths;

    #[test]
    fn of_the_linux_scenarios_those_that_tell_are_quick_enough_for_bochs() {
        let scenarios = catalog::load_for(&paths::root().join("tests/scenarios"), Arch::X86_64).unwrap();
        let quick = |place| {
            let quick = scenarios.iter().filter(move |scenario| !is_slow(place, scenario));
            quick.filter(|scenario| scenario.guest == GuestKind::Linux).map(|scenario| scenario.name.as_str())
        };
        assert_eq!(quick(Place::Emulated(Emulator::Bochs)).collect::<Vec<_>>(), TELLING);
        assert!(quick(Place::Emulated(Emulator::Qemu)).count() > TELLING.len());
    }
}
