//! The sum of a test run, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::follow::follow;
use super::succeed;
use super::summary::TestName;
use crate::progress::note;
use crate::report::{CaseResult, Counts, Status};

/// What happened so far.
#[derive(Default)]
pub(super) struct Report {
    steps: Vec<Step>,
    explanations: Vec<(Status, String, String)>,
    /// Tests that did not run somewhere, and tests that passed anywhere.
    left_out: BTreeMap<TestName, String>,
    passed: BTreeSet<TestName>,
}

struct Step {
    name: String,
    counts: Counts,
    seconds: f64,
    /// The test runners' own summaries.
    lines: Vec<String>,
}

impl Report {
    pub(super) fn begin(&self, name: &str) -> Instant {
        note(format!("=== {name}"));
        Instant::now()
    }

    pub(super) fn end(&mut self, name: &str, started: Instant, counts: Counts) {
        let seconds = started.elapsed().as_secs_f64();
        self.steps.push(Step { name: name.to_owned(), counts, seconds, lines: Vec::new() });
    }

    pub(super) fn explain(&mut self, status: Status, name: &str, reason: &str) {
        self.explanations.push((status, name.to_owned(), reason.to_owned()));
    }

    pub(super) fn pass(&mut self, name: &str) {
        self.end(name, Instant::now(), Counts::one(Status::Passed));
    }

    pub(super) fn fail(&mut self, name: &str, reason: &str) {
        note(format!("{name} failed: {reason}"));
        self.end(name, Instant::now(), Counts::one(Status::Failed));
        self.explain(Status::Failed, name, reason);
    }

    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        self.end(name, Instant::now(), Counts::one(Status::Skipped));
        self.explain(Status::Skipped, name, reason);
    }

    /// A step that either works or does not.
    pub(super) fn outcome(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        let started = self.begin(name);
        match step() {
            Ok(()) => self.end(name, started, Counts::one(Status::Passed)),
            Err(error) => self.fail(name, &format!("{error:#}")),
        }
    }

    pub(super) fn command(&mut self, name: &str, command: &mut Command) {
        self.outcome(name, || succeed(command));
    }

    /// A run of scenarios, which are counted one by one.
    pub(super) fn scenarios(&mut self, name: &str, run: impl FnOnce() -> Result<Vec<CaseResult>>) {
        let started = self.begin(name);
        let results = match run() {
            Ok(results) => results,
            Err(error) => return self.fail(name, &format!("{error:#}")),
        };
        let mut counts = Counts::default();
        for result in &results {
            counts += Counts::one(result.status);
            if result.status != Status::Passed {
                let name = format!("{name}: {}", result.name);
                self.explain(result.status, &name, result.reason.as_deref().unwrap_or("no reason given"));
            }
        }
        self.end(name, started, counts);
    }

    /// A run of `cargo test`, whose tests are counted one by one.
    pub(super) fn cargo_test(&mut self, name: &str, command: &mut Command) {
        let started = self.begin(name);
        let output = match follow(command) {
            Ok(output) => output,
            Err(error) => return self.fail(name, &format!("{error:#}")),
        };
        let mut counts = output.counts;
        for test in &output.failed {
            self.explain(Status::Failed, &format!("{name}: {test}"), "see its output above");
        }
        if !output.success && counts.failed == 0 {
            counts.failed = 1;
            let error = output.error.as_deref().unwrap_or("does it compile?");
            self.explain(Status::Failed, name, &format!("cargo test failed without a test that failed: {error}"));
        }
        self.left_out.extend(output.left_out);
        self.passed.extend(output.passed);
        self.end(name, started, counts);
        if let Some(step) = self.steps.last_mut() {
            step.lines = output.results;
        }
    }

    /// The sum. A test that did not run in one place and has passed in another was not skipped.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for step in &self.steps {
            counts += step.counts;
        }
        counts.skipped += self.skipped_tests().count() as u64;
        counts
    }

    fn skipped_tests(&self) -> impl Iterator<Item = (&TestName, &String)> {
        self.left_out.iter().filter(|(test, _)| !self.passed.contains(test))
    }

    pub(super) fn print(&self) {
        println!("\n=== summary");
        for step in &self.steps {
            println!("{}: {} ({:.1} s)", step.name, step.counts, step.seconds);
            for line in &step.lines {
                println!("    {line}");
            }
        }
        let elsewhere = self.left_out.len() - self.skipped_tests().count();
        if elsewhere > 0 {
            println!("{elsewhere} tests could not run in one place and passed in another: they count as passed");
        }
        for (test, reason) in self.skipped_tests() {
            println!("skipped: {test}: {reason}");
        }
        for (status, name, reason) in &self.explanations {
            let status = if *status == Status::Skipped { "skipped" } else { "FAILED" };
            println!("{status}: {name}: {reason}");
        }
        println!("{}", self.counts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_skipped_only_if_it_passed_nowhere() {
        let mut report = Report::default();
        let here = "test ignored ... ignored, needs KVM\ntest never ... ignored, needs hardware\n\
                    test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let small = "test ignored ... ok\nSKIPPED: sve: no SVE\ntest sve ... ok\ntest never ... ignored, needs hardware\n\
                     test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let large = "test ignored ... ok\ntest sve ... ok\n\
                     test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        for (name, output) in [("here", here), ("cortex-a72", small), ("max", large)] {
            report.cargo_test(name, Command::new("printf").arg("%s\n").arg(output));
        }
        assert_eq!(report.counts(), Counts { passed: 3, failed: 0, skipped: 1 });
        assert_eq!(report.skipped_tests().map(|(test, _)| test.to_string()).collect::<Vec<_>>(), [" never"]);
    }
}
