//! Holds the patches for hypervisors to their form (hypervisor-patches/README.md): they add lines and do nothing else, and
//! carry none of the text around what they add. What they say in a lock file of the crates here is what `cargo --locked` wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::paths;
use crate::toolchain::cargo;

/// What is wrong with a patch, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// Line in the file, from 1.
    line: usize,
    problem: Problem,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// No line `Subject: [PATCH] component: summary`.
    Title,
    /// The commit message says nothing beyond its title.
    NoReason,
    /// No line `Signed-off-by: name <address>`.
    NoSignOff,
    /// No hunk at all.
    Empty,
    /// A line of a file as it was before.
    Removed,
    /// A line around what is added.
    Context,
    /// Something behind the second `@@`: git puts the text of a function there.
    HunkText,
    /// A hunk header that replaces lines, or that can't be read.
    HunkHeader,
    /// The header of a hunk counts other lines than there are.
    HunkLength,
    /// Deletes, renames, copies, changes a mode, or adds a file that is not text.
    Operation,
    /// A lock file says that a crate of this repository does not depend on another one, and it does.
    NotLocked(String, String),
    /// The other way round.
    LockedInVain(String, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match &self.problem {
            Problem::NotLocked(package, dependency) => {
                return write!(f, "line {}: {package} depends on {dependency} as well", self.line);
            }
            Problem::LockedInVain(package, dependency) => {
                return write!(f, "line {}: {package} does not depend on {dependency}", self.line);
            }
            Problem::Title => "the title must be \"Subject: [PATCH] component: summary\", without a final period",
            Problem::NoReason => "the message must say why, below its title",
            Problem::NoSignOff => "there is no \"Signed-off-by: name <address>\"",
            Problem::Empty => "it adds nothing",
            Problem::Removed => "it removes a line",
            Problem::Context => "a line that is not added, in a hunk",
            Problem::HunkText => "text behind the second @@",
            Problem::HunkHeader => "a hunk must be \"@@ -LINE,0 +LINE,COUNT @@\"",
            Problem::HunkLength => "the hunk has another number of lines than its header says",
            Problem::Operation => "it may only add lines and text files",
        };
        write!(f, "line {}: {text}", self.line)
    }
}

/// Checks every patch below hypervisor-patches.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check_all() -> Result<()> {
    let mut patches = Vec::new();
    collect(&paths::root().join("hypervisor-patches"), &mut patches)?;
    patches.sort();
    let crates = crates()?;
    let mut faults = Vec::new();
    for path in patches {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = check(&text).into_iter().chain(check_locks(&text, &crates));
        faults.extend(found.map(|fault| format!("{}: {fault}", paths::short(&path))));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What a crate depends on, and whether in any case.
type Dependencies = BTreeMap<String, bool>;

/// The crates of this repository.
fn crates() -> Result<BTreeMap<String, Dependencies>> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(paths::root());
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    Ok(list(&metadata["packages"]).map(|package| (name(package), dependencies(package))).collect())
}

fn dependencies(package: &Value) -> Dependencies {
    let normal = list(&package["dependencies"]).filter(|dependency| dependency["kind"].is_null());
    normal
        .map(|dependency| (name(dependency), dependency["optional"] == false && dependency["target"].is_null()))
        .collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name(value: &Value) -> String {
    value["name"].as_str().unwrap_or_default().to_owned()
}

/// Holds what a patch adds to lock files against what the crates depend on.
fn check_locks(text: &str, crates: &BTreeMap<String, Dependencies>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let lines: Vec<(usize, &str)> = (1..).zip(text.lines()).collect();
    for (at, (line, text)) in lines.iter().enumerate() {
        let quoted = text.strip_prefix("+name = \"").and_then(|rest| rest.strip_suffix('"'));
        let Some((package, wanted)) = quoted.and_then(|name| crates.get_key_value(name)) else { continue };
        // Up to the empty line behind the package; two versions of a crate are told apart by one behind its name.
        let entry = lines.iter().skip(at).map_while(|(_, text)| text.strip_prefix('+').filter(|text| !text.is_empty()));
        let locked: BTreeSet<&str> =
            entry.filter_map(|text| text.strip_prefix(" \"")?.strip_suffix("\",")?.split(' ').next()).collect();
        let mut fault = |problem| faults.push(Fault { line: *line, problem });
        for (dependency, _) in wanted.iter().filter(|(name, always)| **always && !locked.contains(name.as_str())) {
            fault(Problem::NotLocked(package.clone(), dependency.clone()));
        }
        for dependency in locked.iter().filter(|name| !wanted.contains_key(**name)) {
            fault(Problem::LockedInVain(package.clone(), (*dependency).to_owned()));
        }
    }
    faults
}

fn collect(directory: &Path, patches: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, patches)?;
        } else if path.extension().is_some_and(|extension| extension == "patch") {
            patches.push(path);
        }
    }
    Ok(())
}

/// Everything that is wrong with one patch.
fn check(text: &str) -> Vec<Fault> {
    let lines: Vec<(usize, &str)> = (1..).zip(text.lines()).collect();
    let start = lines.iter().position(|(_, line)| line.starts_with("diff --git ")).unwrap_or(lines.len());
    let (message, diff) = lines.split_at(start);
    let mut faults = check_message(message);
    check_diff(diff, &mut faults);
    faults
}

fn check_message(message: &[(usize, &str)]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |line, problem| faults.push(Fault { line, problem });
    let subject = message.iter().position(|(_, line)| line.starts_with("Subject: "));
    let title = subject.and_then(|at| message.get(at)).and_then(|(_, line)| line.strip_prefix("Subject: [PATCH] "));
    if !title.is_some_and(is_title) {
        fault(subject.map_or(1, |at| at + 1), Problem::Title);
    }
    let body = message.get(subject.map_or(0, |at| at + 1)..).unwrap_or_default();
    let is_trailer = |line: &str| line.starts_with("Signed-off-by: ");
    let is_prose = |line: &str| !line.is_empty() && line != "---" && !is_trailer(line);
    if !body.iter().any(|(_, line)| is_prose(line)) {
        fault(subject.map_or(1, |at| at + 1), Problem::NoReason);
    }
    let signed = |line: &str| {
        let name = line.strip_prefix("Signed-off-by: ").and_then(|rest| rest.strip_suffix('>'));
        let parts = name.and_then(|rest| rest.split_once(" <"));
        parts.is_some_and(|(name, address)| !name.trim().is_empty() && address.contains('@'))
    };
    if !body.iter().any(|(_, line)| signed(line)) {
        fault(message.len().max(1), Problem::NoSignOff);
    }
    faults
}

/// `component: summary`, `component, component: summary`.
fn is_title(title: &str) -> bool {
    let Some((component, summary)) = title.split_once(": ") else { return false };
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_/, ".contains(c);
    let whole = !summary.trim().is_empty() && !summary.ends_with('.');
    !component.is_empty() && component.chars().all(named) && whole && title.len() <= 72
}

struct Hunk {
    /// Of its header.
    line: usize,
    /// Lines that the header counts, if it can be read.
    expected: Option<usize>,
    found: usize,
}

fn close(hunk: Option<Hunk>, faults: &mut Vec<Fault>) {
    if let Some(Hunk { line, expected: Some(expected), found }) = hunk
        && expected != found
    {
        faults.push(Fault { line, problem: Problem::HunkLength });
    }
}

fn check_diff(diff: &[(usize, &str)], faults: &mut Vec<Fault>) {
    let mut hunks = 0;
    let mut hunk: Option<Hunk> = None;
    for &(line, text) in diff {
        if text.starts_with("diff --git ") {
            close(hunk.take(), faults);
        } else if text.starts_with("@@") {
            close(hunk.take(), faults);
            hunks += 1;
            let expected = hunk_lines(text).map_err(|problem| faults.push(Fault { line, problem })).ok();
            hunk = Some(Hunk { line, expected, found: 0 });
        } else if hunk.is_none() {
            let allowed = ["index ", "new file mode 100644", "--- ", "+++ "];
            if !allowed.iter().any(|start| text.starts_with(start)) || text == "+++ /dev/null" {
                faults.push(Fault { line, problem: Problem::Operation });
            }
        } else if text.starts_with('+') {
            if let Some(hunk) = &mut hunk {
                hunk.found += 1;
            }
        } else {
            let problem = if text.starts_with('-') { Problem::Removed } else { Problem::Context };
            faults.push(Fault { line, problem });
        }
    }
    close(hunk, faults);
    if hunks == 0 {
        faults.push(Fault { line: diff.last().map_or(1, |(line, _)| *line), problem: Problem::Empty });
    }
}

/// How many lines `@@ -LINE,0 +LINE,COUNT @@` adds.
fn hunk_lines(header: &str) -> Result<usize, Problem> {
    let ranges = header.strip_prefix("@@ -").ok_or(Problem::HunkHeader)?;
    let (ranges, behind) = ranges.split_once(" @@").ok_or(Problem::HunkHeader)?;
    if !behind.is_empty() {
        return Err(Problem::HunkText);
    }
    let (old, new) = ranges.split_once(" +").ok_or(Problem::HunkHeader)?;
    let (at, count) = old.split_once(',').ok_or(Problem::HunkHeader)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| Problem::HunkHeader);
    number(at)?;
    if number(count)? != 0 {
        return Err(Problem::HunkHeader);
    }
    match new.split_once(',') {
        Some((at, count)) => number(at).and_then(|_| number(count)),
        None => number(new).map(|_| 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
From: A Developer <developer@example.org>
Subject: [PATCH] vmm: count the beans

Nobody knew how many there are.

Signed-off-by: A Developer <developer@example.org>
---
diff --git a/src/lib.rs b/src/lib.rs
index 1234567..89abcde 100644
--- a/src/lib.rs
+++ b/src/lib.rs
@@ -12,0 +13,2 @@
+mod beans;
+
@@ -40,0 +43 @@
+    beans::count();
diff --git a/src/beans.rs b/src/beans.rs
new file mode 100644
index 0000000..89abcde
--- /dev/null
+++ b/src/beans.rs
@@ -0,0 +1 @@
+pub fn count() {}
";

    /// Problems of the good patch with one text replaced by another.
    fn problems(from: &str, to: &str) -> Vec<Problem> {
        assert!(GOOD.contains(from), "{from}");
        check(&GOOD.replacen(from, to, 1)).into_iter().map(|fault| fault.problem).collect()
    }

    #[test]
    fn a_good_patch_has_no_fault() {
        assert_eq!(check(GOOD), []);
    }

    #[test]
    fn the_title_names_a_component_and_ends_without_a_period() {
        let long = format!("vmm: {}", "x".repeat(70));
        for title in ["Count the beans", "vmm:", "vmm: ", "VMM: count", ": count", "vmm: count the beans.", &long] {
            assert_eq!(problems("vmm: count the beans", title), [Problem::Title], "{title}");
        }
        assert_eq!(problems("[PATCH] ", ""), [Problem::Title]);
        assert_eq!(problems("vmm: count", "vmm, vm-migration: count"), []);
    }

    #[test]
    fn the_message_says_why() {
        assert_eq!(problems("Nobody knew how many there are.\n\n", ""), [Problem::NoReason]);
    }

    #[test]
    fn it_is_signed_off() {
        assert_eq!(problems("Signed-off-by: A Developer <developer@example.org>\n", ""), [Problem::NoSignOff]);
        for wrong in ["Signed-off-by: A Developer", "Signed-off-by: <a@b>", "Signed-off-by: A <b>"] {
            let signed = "Signed-off-by: A Developer <developer@example.org>";
            assert_eq!(problems(signed, wrong), [Problem::NoSignOff], "{wrong}");
        }
    }

    #[test]
    fn it_adds_something() {
        let start = GOOD.find("diff --git").unwrap();
        let found: Vec<_> = check(&GOOD[..start]).into_iter().map(|fault| fault.problem).collect();
        assert_eq!(found, [Problem::Empty]);
    }

    #[test]
    fn nothing_is_removed() {
        assert_eq!(problems("+mod beans;\n", "-mod peas;\n+mod beans;\n"), [Problem::Removed]);
    }

    #[test]
    fn no_line_around_it_is_carried() {
        assert_eq!(problems("+mod beans;\n", " mod peas;\n+mod beans;\n"), [Problem::Context]);
        assert_eq!(problems("+pub fn count() {}\n", "+pub fn count() {}\n\n"), [Problem::Context]);
        let unended = "+pub fn count() {}\n\\ No newline at end of file\n";
        assert_eq!(problems("+pub fn count() {}\n", unended), [Problem::Context]);
        assert_eq!(problems("+pub fn count() {}\n", "+pub fn count() {}\n-- \n2.39.5\n").len(), 2, "a signature");
    }

    #[test]
    fn no_text_is_behind_the_second_at_signs() {
        assert!(problems("@@ -12,0 +13,2 @@", "@@ -12,0 +13,2 @@ fn peas()").contains(&Problem::HunkText));
        assert!(problems("@@ -12,0 +13,2 @@", "@@ -12,0 +13,2 @@ ").contains(&Problem::HunkText));
    }

    #[test]
    fn a_hunk_replaces_nothing() {
        for header in
            ["@@ -12 +13,2 @@", "@@ -12,1 +13,2 @@", "@@ -x,0 +13,2 @@", "@@ -12,0 +y @@", "@@@ -1,0 -1,0 +1 @@@"]
        {
            assert!(problems("@@ -12,0 +13,2 @@", header).contains(&Problem::HunkHeader), "{header}");
        }
    }

    #[test]
    fn a_hunk_has_as_many_lines_as_it_says() {
        assert_eq!(problems("+13,2 @@", "+13,3 @@"), [Problem::HunkLength]);
        assert_eq!(problems("+1 @@", "+1,2 @@"), [Problem::HunkLength]);
    }

    #[test]
    fn files_are_only_added() {
        for operation in ["deleted file mode 100644", "old mode 100644", "rename from x", "Binary files differ"] {
            let header = format!("{operation}\nindex 1234567");
            assert_eq!(problems("index 1234567", &header), [Problem::Operation], "{operation}");
        }
        assert_eq!(problems("new file mode 100644", "new file mode 120000"), [Problem::Operation], "a link");
        assert_eq!(problems("+++ b/src/lib.rs", "+++ /dev/null"), [Problem::Operation]);
    }

    #[test]
    fn a_lock_file_says_what_a_crate_depends_on() {
        let entry = "+[[package]]\n+name = \"beans\"\n+version = \"0.1.0\"\n+dependencies = [\n+ \"log\",\n+ \"peas 2.0.0\",\n+]\n+\n+\
                     [[package]]\n+name = \"carrots\"\n+version = \"0.1.0\"\n+\n";
        let problems = |dependencies: &[(&str, bool)]| {
            let dependencies = dependencies.iter().map(|(name, always)| ((*name).to_owned(), *always)).collect();
            let crates = BTreeMap::from([("beans".to_owned(), dependencies)]);
            check_locks(entry, &crates).into_iter().map(|fault| (fault.line, fault.problem)).collect::<Vec<_>>()
        };
        assert_eq!(problems(&[("log", true), ("peas", false), ("lentils", false)]), []);
        let not_locked = Problem::NotLocked("beans".to_owned(), "lentils".to_owned());
        assert_eq!(problems(&[("log", true), ("peas", true), ("lentils", true)]), [(2, not_locked)]);
        let in_vain = Problem::LockedInVain("beans".to_owned(), "peas".to_owned());
        assert_eq!(problems(&[("log", true)]), [(2, in_vain)]);
    }

    #[test]
    fn every_patch_of_this_repository_has_the_form() {
        check_all().unwrap();
    }
}
