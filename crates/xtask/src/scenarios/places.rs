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

/// What is not tried on a host unless somebody asks for that host: Bochs interprets each instruction, and all scenarios
/// with a Linux guest would take the better part of an hour there.
fn left_out(place: Place, context: &Context, scenario: &Scenario) -> bool {
    let slow = scenario.guest == GuestKind::Linux && !TELLING.contains(&scenario.name.as_str());
    place == Place::Emulated(Emulator::Bochs) && !context.host.emulated && slow
}

/// The result of a host that does not come up.
fn no_host(place: Place, error: &anyhow::Error) -> CaseResult {
    let name = match place {
        Place::Here => "this machine's KVM",
        Place::Emulated(emulator) => emulator.describe(),
    };
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
    let mut results = Vec::new();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for place in Place::all(context) {
        if left.iter().all(|scenario| left_out(place, context, scenario)) {
            continue;
        }
        let host = match place.start(context) {
            Ok(host) => host,
            // What ran elsewhere has its results.
            Err(error) if !results.is_empty() => {
                results.push(no_host(place, &error));
                continue;
            }
            Err(error) => return Err(error),
        };
        let vmm = ReferenceVmm::new(context, &host, options.binary.as_deref())?;
        let mut suite = Suite::new(context, Some(&host), &vmm, Abilities::Found(BTreeMap::new()));
        suite.try_out()?;
        let kvm = suite.place();
        for scenario in std::mem::take(&mut left) {
            if left_out(place, context, &scenario) {
                missing.entry(scenario.name.clone()).or_default().push(format!("not tried on {kvm}"));
                left.push(scenario);
                continue;
            }
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
