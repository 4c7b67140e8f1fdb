//! Installing packages: what root has to run, the question, and running it.

use std::env;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::system::{knows_arm64, on_path};
use crate::progress::{note, output_of, run_quietly};

/// Everything that is missing, and who can install it.
pub(super) struct Installation {
    packages: Vec<&'static str>,
    /// dpkg has to be told first that it may install packages of this architecture.
    add_arm64: bool,
    installer: Installer,
}

impl Installation {
    pub(super) fn new(packages: Vec<&'static str>) -> Result<Self> {
        let add_arm64 = packages.iter().any(|name| name.ends_with(":arm64")) && !knows_arm64()?;
        Ok(Self { packages, add_arm64, installer: Installer::here() })
    }

    /// Asks, where there is somebody to ask.
    ///
    /// # Errors
    /// [`Declined`], or nobody here can become root; with what root has to run.
    pub(super) fn agree(&self, assume_yes: bool) -> Result<()> {
        let missing = self.packages.join(" ");
        if self.installer == Installer::Nobody {
            bail!(
                "these Debian packages are missing: {missing}. You are not root, and there is no sudo. {}",
                self.for_root()
            );
        }
        let in_ci = env::var("CI").is_ok_and(|value| value == "true");
        if assume_yes || in_ci || !io::stdin().is_terminal() {
            note(format!("missing: {missing}"));
        } else {
            eprint!("{}", self.question());
            io::stderr().flush()?;
            if !is_yes(&mut io::stdin().lock())? {
                return Err(Declined { text: format!("not installed: {missing}. {}", self.for_root()) }.into());
            }
        }
        self.installer.check().map_err(|error| anyhow!("missing: {missing}; {error:#}. {}", self.for_root()))
    }

    /// Brings apt's lists up to date, with those of arm64 if they are needed.
    pub(super) fn update(&self) -> Result<()> {
        if self.add_arm64 {
            self.run("adding the architecture arm64 to dpkg", &ADD_ARM64)?;
        }
        if let Err(error) = self.run("updating apt's package lists", &UPDATE) {
            // Any archive in the list may fail, also one that nothing is wanted from: what is missing shows later.
            note(format!("going on although apt-get update failed: {error:#}"));
        }
        Ok(())
    }

    /// Installs all of it.
    pub(super) fn install(&self) -> Result<()> {
        self.run(&format!("installing {}", self.packages.join(", ")), &[&INSTALL, self.packages.as_slice()].concat())
            .map_err(|error| anyhow!("{error:#}\n{}", self.for_root()))
    }

    fn run(&self, what: &str, command: &[&str]) -> Result<()> {
        run_quietly(what, &mut self.installer.command(command))
    }

    fn question(&self) -> String {
        let (missing, how) = (self.packages.join(" "), self.installer.how());
        format!(
            "xtask: these Debian packages are missing: {missing}\n\
             To install them, this would run {how}:\n\n{}\nDo that now? [Y/n] ",
            self.script()
        )
    }

    fn for_root(&self) -> String {
        format!("To install them, run as root:\n\n{}", self.script())
    }

    /// The commands, one a line.
    fn script(&self) -> String {
        let install = [&INSTALL, self.packages.as_slice()].concat();
        let commands = self.add_arm64.then_some(ADD_ARM64.as_slice()).into_iter().chain([&UPDATE[..], &install]);
        commands.map(|command| format!("    {}\n", command.join(" "))).collect()
    }
}

const ADD_ARM64: [&str; 3] = ["dpkg", "--add-architecture", "arm64"];
const UPDATE: [&str; 2] = ["apt-get", "update"];
const INSTALL: [&str; 4] = ["apt-get", "install", "--yes", "--no-install-recommends"];

/// apt waits for another apt instead of failing, and prints plain lines.
const APT_OPTIONS: [&str; 5] = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"];

/// The user does not want packages to be installed. What they would have been is in the message.
#[derive(Debug)]
pub struct Declined {
    text: String,
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Declined {}

/// Who can install packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installer {
    /// We are root.
    Root,
    /// sudo, which may want a password.
    Sudo,
    /// Neither.
    Nobody,
}

impl Installer {
    fn here() -> Self {
        if output_of(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
            Self::Root
        } else if on_path("sudo") {
            Self::Sudo
        } else {
            Self::Nobody
        }
    }

    fn how(self) -> &'static str {
        if self == Self::Sudo { "through sudo" } else { "as root" }
    }

    /// Whether sudo lets us. It asks for its password now, and not among the messages of a step under way.
    fn check(self) -> Result<()> {
        if self != Self::Sudo {
            return Ok(());
        }
        let status = self.command(&["true"]).status().context("cannot start sudo")?;
        if !status.success() {
            bail!("sudo does not let you ({status})");
        }
        Ok(())
    }

    fn command(self, argv: &[&str]) -> Command {
        let mut command = Command::new(if self == Self::Sudo { "sudo" } else { "env" });
        if self == Self::Sudo {
            if !io::stdin().is_terminal() {
                command.arg("--non-interactive");
            }
            command.arg("env");
        }
        command.arg("DEBIAN_FRONTEND=noninteractive");
        for (index, argument) in argv.iter().enumerate() {
            command.arg(argument);
            if index == 0 && *argument == "apt-get" {
                command.args(APT_OPTIONS);
            }
        }
        command
    }
}

/// Reads an answer, for which an empty line is a yes. The end of the input is none.
fn is_yes(input: &mut impl BufRead) -> io::Result<bool> {
    let mut answer = String::new();
    let length = input.read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        eprintln!();
    }
    Ok(length > 0 && ["", "y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(add_arm64: bool, installer: Installer) -> Installation {
        Installation { packages: vec!["gdb-multiarch", "python3"], add_arm64, installer }
    }

    #[test]
    fn the_question_names_everything_that_would_run() {
        let question = installation(true, Installer::Sudo).question();
        let lines: Vec<_> = question.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "xtask: these Debian packages are missing: gdb-multiarch python3",
                "To install them, this would run through sudo:",
                "dpkg --add-architecture arm64",
                "apt-get update",
                "apt-get install --yes --no-install-recommends gdb-multiarch python3",
                "Do that now? [Y/n]",
            ]
        );
        assert!(!installation(false, Installer::Root).question().contains("dpkg"));
    }

    #[test]
    fn answers_are_understood() {
        for yes in ["\n", "y\n", "YES\n", " y \n", "y"] {
            assert!(is_yes(&mut yes.as_bytes()).unwrap(), "{yes:?}");
        }
        for no in ["", "n\n", "no\n", "what?\n"] {
            assert!(!is_yes(&mut no.as_bytes()).unwrap(), "{no:?}");
        }
    }

    #[test]
    fn who_cannot_become_root_is_told_what_root_has_to_run() {
        // Also where nothing would have been asked.
        let error = installation(false, Installer::Nobody).agree(true).unwrap_err().to_string();
        assert!(error.contains("no sudo") && error.contains("apt-get install --yes"), "{error}");
    }

    #[test]
    fn commands_go_through_sudo_and_apt_gets_its_options() {
        let words = |command: Command| {
            let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
            [command.get_program().to_string_lossy().into_owned()]
                .into_iter()
                .chain(words)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let sudo = words(Installer::Sudo.command(&ADD_ARM64));
        assert!(
            sudo.starts_with("sudo ")
                && sudo.ends_with("env DEBIAN_FRONTEND=noninteractive dpkg --add-architecture arm64")
        );
        let root = words(Installer::Root.command(&UPDATE));
        assert_eq!(root, format!("env DEBIAN_FRONTEND=noninteractive apt-get {} update", APT_OPTIONS.join(" ")));
    }
}
