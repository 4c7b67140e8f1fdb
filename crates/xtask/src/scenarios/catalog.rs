//! The scenarios: what each file in tests/scenarios says it needs.
//!
//! A scenario is one Python file. Its first line is its declaration,
//!
//! ```text
//! # scenario: guest=bare cpus=2 timeout=60
//! ```
//!
//! so that adding a scenario means adding a file. Keys: `guest` is `bare` or `linux`; `cpus` and `timeout` (seconds) are
//! numbers; `moves=yes` gives it a guest of its own that it may save and move; `tool` is `gdb` (the default: the file
//! runs inside gdb) or `python`; `last=yes` puts a scenario that leaves its guest changed behind the others of that guest;
//! `symbols=debug-info` wants the kernel's whole debug information instead of its functions' names, and is run where that may be fetched;
//! `needs` are the abilities without which a host is of no use to it, with commas between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::abilities::Ability;
use crate::arch::Arch;
use crate::vmm::GuestOptions;

/// What starts the declaration.
const DECLARATION: &str = "# scenario:";

/// The guest that a scenario debugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GuestKind {
    /// tests/guest/bare, started anew for each scenario and stopped at its first instruction.
    Bare,
    /// Debian's kernel with tests/guest/agent.c, up and running; one guest for all scenarios that leave it in order.
    Linux,
}

/// What executes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interpreter {
    /// gdb, as a script.
    Gdb,
    /// Python by itself.
    Python,
}

/// One scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    /// Its file's name without the suffix; stable, it is what results are known by.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    pub guest: GuestKind,
    pub cpus: u32,
    /// Longest it may take on the slowest host, the guest's boot apart.
    pub timeout: Duration,
    pub interpreter: Interpreter,
    /// Runs behind the others of its guest.
    pub last: bool,
    /// What a host has to be able to do, beside running the guest.
    pub needs: Vec<Ability>,
    /// Has a guest of its own, which it saves and moves.
    pub moves: bool,
    /// Wants the kernel's whole debug information.
    pub debug_info: bool,
    /// Drives the VMM itself, beside the guest: its guest is its own, and whether the VMM goes on is its business.
    pub drives_vmm: bool,
}

impl Scenario {
    /// What it wants of its guest, whichever that is.
    pub(super) fn guest_options(&self) -> GuestOptions {
        GuestOptions { cpus: self.cpus, spare: self.drives_vmm, moves: self.moves, ..GuestOptions::default() }
    }
}

/// All scenarios of a directory, in the order in which they run: those that can share a guest side by side.
///
/// # Errors
/// If a file cannot be read or its declaration is bad; with the file and the key.
pub(super) fn load(directory: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = read(directory)?;
    order(&mut scenarios);
    Ok(scenarios)
}

/// The same, with those of one architecture in the directory of its name.
///
/// # Errors
/// As [`load`].
pub(super) fn load_for(directory: &Path, arch: Arch) -> Result<Vec<Scenario>> {
    let mut scenarios = read(directory)?;
    scenarios.extend(read(&directory.join(arch.name()))?);
    order(&mut scenarios);
    Ok(scenarios)
}

fn order(scenarios: &mut [Scenario]) {
    scenarios.sort_by(|a, b| (a.guest, a.moves, a.last, &a.name).cmp(&(b.guest, b.moves, b.last, &b.name)));
}

fn read(directory: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "py") {
            scenarios.push(load_file(&path)?);
        }
    }
    Ok(scenarios)
}

/// The scenario in one file.
///
/// # Errors
/// If it cannot be read or its declaration is bad.
pub(super) fn load_file(path: &Path) -> Result<Scenario> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(path, &text).with_context(|| format!("{}, first line", path.display()))
}

/// Scenarios that drive one VMM through its own interface, in the directory with its name; none if there is no such
/// directory.
///
/// # Errors
/// As [`load`].
pub(super) fn load_own(directory: &Path, vmm: &str) -> Result<Vec<Scenario>> {
    let own = directory.join(vmm);
    if !own.is_dir() {
        return Ok(Vec::new());
    }
    let mut scenarios = load(&own)?;
    scenarios.iter_mut().for_each(|scenario| scenario.drives_vmm = true);
    Ok(scenarios)
}

fn parse(path: &Path, text: &str) -> Result<Scenario> {
    let first = text.lines().next().unwrap_or_default();
    let pairs = first.strip_prefix(DECLARATION).with_context(|| format!("it does not start with {DECLARATION:?}"))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).context("its name is no text")?;
    let (mut guest, mut cpus, mut timeout, mut interpreter) = (None, None, None, Interpreter::Gdb);
    let (mut last, mut moves, mut debug_info, mut needs) = (false, false, false, Vec::new());
    for pair in pairs.split_whitespace() {
        let (key, value) = pair.split_once('=').with_context(|| format!("{pair:?} is not of the form key=value"))?;
        let number = || value.parse::<u32>().map_err(|_| anyhow!("{key}={value} is no number"));
        match (key, value) {
            ("guest", "bare") => guest = Some(GuestKind::Bare),
            ("guest", "linux") => guest = Some(GuestKind::Linux),
            ("cpus", _) => cpus = Some(number()?),
            ("timeout", _) => timeout = Some(Duration::from_secs(number()?.into())),
            ("tool", "gdb") => interpreter = Interpreter::Gdb,
            ("tool", "python") => interpreter = Interpreter::Python,
            ("last", "yes") => last = true,
            ("moves", "yes") => moves = true,
            ("symbols", "debug-info") => debug_info = true,
            ("needs", names) => needs = names.split(',').map(Ability::parse).collect::<Result<_>>()?,
            _ => bail!("{pair:?} is unknown"),
        }
    }
    Ok(Scenario {
        name: name.to_owned(),
        path: path.to_owned(),
        guest: guest.context("it has no guest=")?,
        cpus: cpus.context("it has no cpus=")?,
        timeout: timeout.context("it has no timeout=")?,
        interpreter,
        last,
        moves,
        debug_info,
        needs,
        drives_vmm: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    fn parsed(line: &str) -> Result<Scenario> {
        parse(Path::new("dir/some-name.py"), line)
    }

    #[test]
    fn a_declaration_says_everything() {
        let scenario =
            parsed("# scenario: guest=linux cpus=2 timeout=90 tool=python last=yes moves=yes symbols=debug-info needs=watchpoint,test:x\n\"\"\"Text.\"\"\"")
                .unwrap();
        let expected = Scenario {
            name: "some-name".to_owned(),
            path: "dir/some-name.py".into(),
            guest: GuestKind::Linux,
            cpus: 2,
            timeout: Duration::from_secs(90),
            interpreter: Interpreter::Python,
            last: true,
            moves: true,
            debug_info: true,
            needs: vec![Ability::Watchpoint, Ability::Test("x".to_owned())],
            drives_vmm: false,
        };
        assert_eq!(scenario, expected);
    }

    #[test]
    fn a_bad_declaration_names_what_is_wrong() {
        for (line, problem) in [
            ("import gdb", "scenario:"),
            ("# scenario: cpus=1 timeout=1", "guest="),
            ("# scenario: guest=bare cpus=x timeout=1", "cpus=x"),
            ("# scenario: guest=bare cpus=1", "timeout="),
            ("# scenario: guest=bare cpus=1 timeout=1 color=red", "color=red"),
            ("# scenario: guest", "key=value"),
            ("# scenario: guest=bare cpus=1 timeout=1 needs=wings", "wings"),
        ] {
            let error = format!("{:#}", parsed(line).unwrap_err());
            assert!(error.contains(problem), "{line}: {error}");
        }
    }

    #[test]
    fn the_suite_is_well_formed_and_ordered() {
        for arch in [Arch::Arm64, Arch::X86_64] {
            is_well_formed_and_ordered(&load_for(&paths::root().join("tests/scenarios"), arch).unwrap());
        }
    }

    fn is_well_formed_and_ordered(scenarios: &[Scenario]) {
        assert!(scenarios.len() > 30, "{} scenarios", scenarios.len());
        assert!(scenarios.windows(2).all(|pair| pair[0].guest <= pair[1].guest));
        let shared: Vec<_> =
            scenarios.iter().filter(|scenario| scenario.guest == GuestKind::Linux && !scenario.moves).collect();
        assert!(shared.windows(2).all(|pair| pair[0].last <= pair[1].last));
        assert!(
            shared.iter().all(|scenario| scenario.cpus == 2),
            "the Linux guest is shared, so they all have 2 vCPUs"
        );
    }
}
