//! The suite on hosts of which none can do everything: each scenario runs on the first that has what it needs.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::abilities::Abilities;
use super::vmm::ReferenceVmm;
use super::{ScenarioOptions, Suite, select, write_json};
use crate::context::Context;
use crate::host::{KvmHost, is_native};
use crate::report::{CaseResult, Status};

/// Runs the suite for x86_64: on this machine's KVM, and what that can't do on an emulated one's.
///
/// # Errors
/// If the suite itself cannot run; a scenario that fails is a result.
pub(crate) fn run_on_x86_64(context: &Context, options: &ScenarioOptions) -> Result<Vec<CaseResult>> {
    ensure!(options.vmm == "reference-vmm", "scenarios for {} are for reference-vmm only", context.arch().name());
    let mut left = select(context, options)?;
    let mut results = Vec::new();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for emulated in [false, true] {
        if left.is_empty() || !emulated && !is_native(context) {
            continue;
        }
        let host = if emulated { KvmHost::start_emulated(context)? } else { KvmHost::start_native(context.arch())? };
        let vmm = ReferenceVmm::new(context, &host, options.binary.as_deref())?;
        let mut suite = Suite::new(context, Some(&host), &vmm, Abilities::Found(BTreeMap::new()));
        suite.try_out()?;
        let place = suite.place();
        for scenario in std::mem::take(&mut left) {
            match suite.lacks(&scenario)? {
                None => results.push(suite.run(&scenario)),
                Some(ability) => {
                    missing.entry(scenario.name.clone()).or_default().push(format!("no {ability} on {place}"));
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
