//! Results of single checks, and their sum.

use std::fmt;
use std::ops::AddAssign;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All that it asserts came true.
    Passed,
    /// Something did not.
    Failed,
    /// It was not tried; never the same as passed.
    Skipped,
}

/// One check, as the scenario suite reports it.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Numbers of checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Checks that passed.
    pub passed: u64,
    /// Checks that failed.
    pub failed: u64,
    /// Checks that were skipped.
    pub skipped: u64,
}

impl Counts {
    /// One check.
    pub fn one(status: Status) -> Self {
        let mut counts = Self::default();
        match status {
            Status::Passed => counts.passed = 1,
            Status::Failed => counts.failed = 1,
            Status::Skipped => counts.skipped = 1,
        }
        counts
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}
