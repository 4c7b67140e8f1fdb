//! Reads what `cargo test` prints.

use std::time::Duration;
use std::{fmt, mem};

use crate::report::Counts;

/// A test and the test binary that it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TestName {
    suite: String,
    test: String,
}

impl fmt::Display for TestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.test)
    }
}

/// What a run of `cargo test` has printed so far.
#[derive(Debug, Default)]
pub(super) struct TestOutput {
    /// Whether cargo reported success.
    pub(super) success: bool,
    /// Passed and failed as in the "test result" lines. None is skipped yet: another run may run what this one did not.
    pub(super) counts: Counts,
    /// Each "test result" line with the name of its test binary.
    pub(super) results: Vec<String>,
    /// Tests that passed.
    pub(super) passed: Vec<TestName>,
    /// Tests that failed.
    pub(super) failed: Vec<TestName>,
    /// Tests that did not run, with the reason: those that libtest ignored, and those that found out by themselves.
    pub(super) left_out: Vec<(TestName, String)>,
    /// The first error that was not a test's: of the compiler, or of who runs the tests elsewhere.
    pub(super) error: Option<String>,
    suite: String,
    /// Skips that the next result line will count as passed.
    unfounded: u64,
}

/// What a test prints that finds no KVM or the like: `SKIPPED: name: reason`. libtest knows no such thing, and counts
/// the test as passed.
const SKIP_MARK: &str = "SKIPPED: ";

/// How the compiler and the runner begin what ends a run.
const ERRORS: [&str; 3] = ["error: ", "error[", "xtask: error: "];

impl TestOutput {
    /// Takes one line.
    pub(super) fn feed(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once(SKIP_MARK) {
            let (name, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
            let name = self.named(name);
            // A test may say so of several of its parts.
            if !self.left_out.iter().any(|(test, _)| *test == name) {
                self.left_out.push((name, reason.to_owned()));
                self.unfounded += 1;
            }
            return;
        }
        let trimmed = line.trim_start();
        if ERRORS.iter().any(|start| line.starts_with(start)) {
            self.error.get_or_insert_with(|| line.to_owned());
        } else if let Some(rest) = trimmed.strip_prefix("Running ") {
            if let Some(suite) = suite_of(rest) {
                self.suite = suite;
            }
        } else if let Some(name) = trimmed.strip_prefix("Doc-tests ") {
            self.suite = format!("{name} (doc)");
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.result(rest);
        } else if let Some(rest) = line.strip_prefix("test ") {
            self.test(rest);
        }
    }

    /// Notes that nothing was printed for so long that the run was ended.
    pub(super) fn hung(&mut self, silence: Duration) {
        let test = format!("nothing printed for {} s, ended; libtest names slow tests above", silence.as_secs());
        self.failed.push(self.named(&test));
        self.counts.failed += 1;
    }

    fn named(&self, test: &str) -> TestName {
        TestName { suite: self.suite.clone(), test: test.to_owned() }
    }

    fn result(&mut self, rest: &str) {
        self.results.push(format!("{}: test result: {rest}", self.suite));
        let counted = rest.split_once(". ").map_or(rest, |(_, counted)| counted);
        for part in counted.split("; ") {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.counts.passed += number.saturating_sub(mem::take(&mut self.unfounded)),
                "failed" => self.counts.failed += number,
                // Ignored ones are listed by name.
                _ => {}
            }
        }
    }

    fn test(&mut self, rest: &str) {
        let Some((test, outcome)) = rest.rsplit_once(" ... ") else { return };
        let name = self.named(test);
        if outcome == "ok" {
            // libtest takes a test that skipped itself for one that passed.
            if !self.left_out.iter().any(|(test, _)| *test == name) {
                self.passed.push(name);
            }
        } else if outcome == "FAILED" {
            self.failed.push(name);
        } else if let Some(reason) = outcome.strip_prefix("ignored") {
            let reason = reason.trim_start_matches(", ");
            let reason = if reason.is_empty() { "ignored, no reason given" } else { reason };
            self.left_out.push((name, reason.to_owned()));
        }
    }
}

/// `guest_debug` from `unittests src/lib.rs (target/debug/deps/guest_debug-0123456789abcdef)`.
fn suite_of(rest: &str) -> Option<String> {
    let path = rest.rsplit_once('(')?.1.strip_suffix(')')?;
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "\
     Running unittests src/lib.rs (target/debug/deps/guest_debug-0123456789abcdef)

running 4 tests
test arm64::a ... ok
test arm64::b ... FAILED
test kvm::c ... ignored, needs an arm64 KVM host
test kvm::d ... ignored

test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests guest_debug

running 1 test
test crates/guest-debug/src/lib.rs - (line 3) - compile ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    fn read(text: &str) -> TestOutput {
        let mut output = TestOutput::default();
        text.lines().for_each(|line| output.feed(line));
        output
    }

    #[test]
    fn tests_are_counted_and_named() {
        let output = read(HERE);
        assert_eq!(output.counts, Counts { passed: 2, failed: 1, skipped: 0 });
        assert_eq!(output.results.len(), 2);
        assert_eq!(output.failed[0].to_string(), "guest_debug arm64::b");
        assert_eq!(
            output.passed[1].to_string(),
            "guest_debug (doc) crates/guest-debug/src/lib.rs - (line 3) - compile"
        );
        let left_out: Vec<_> =
            output.left_out.iter().map(|(test, reason)| (test.to_string(), reason.as_str())).collect();
        assert_eq!(
            left_out,
            [
                ("guest_debug kvm::c".to_owned(), "needs an arm64 KVM host"),
                ("guest_debug kvm::d".to_owned(), "ignored, no reason given")
            ]
        );
    }

    #[test]
    fn the_first_error_is_kept() {
        let text = "xtask: error: nothing was printed for 400 s\nerror: test failed, to rerun pass `--test pc`";
        assert_eq!(read(text).error.as_deref(), Some("xtask: error: nothing was printed for 400 s"));
        assert_eq!(read(HERE).error, None);
    }

    #[test]
    fn the_same_test_has_the_same_name_in_another_build() {
        let there =
            read(&HERE.replace("target/debug/deps/guest_debug-0123", "target/arm64/debug/deps/guest_debug-9999"));
        assert_eq!(there.passed, read(HERE).passed);
    }

    #[test]
    fn a_test_that_skips_itself_is_not_counted_as_passed() {
        let output = read(
            "SKIPPED: step: no /dev/kvm here\nSKIPPED: step: no SVE either\ntest step ... ok\ntest other ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        let left_out: Vec<_> = output.left_out.iter().map(|(test, reason)| (&*test.test, &**reason)).collect();
        assert_eq!(left_out, [("step", "no /dev/kvm here")]);
        assert_eq!(output.passed.iter().map(|test| &*test.test).collect::<Vec<_>>(), ["other"]);
        assert_eq!(output.counts, Counts { passed: 1, failed: 0, skipped: 0 });
    }
}
