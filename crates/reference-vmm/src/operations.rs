//! What can be done with a running VM from outside: by its control socket, and by `monitor` commands in gdb.

use crate::error::VmError;
use crate::migration::MigrationAddress;
use guest_debug::VcpuId;
use guest_debug_gdb::Monitor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A running VM. Each call answers when it is done, with what to tell the user.
pub trait Operations: Send + Sync {
    /// Saves the VM in a directory; see [`crate::snapshot`]. The VM goes on afterwards.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`] and what keeps the VM from being saved. It goes on as it was.
    fn snapshot(&self, directory: &Path, progress: &mut dyn FnMut(String)) -> Result<String, VmError>;

    /// Moves the VM to a destination that waits there; see [`crate::migration`]. The VM is gone afterwards.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`] and what keeps the VM from being moved. It goes on as it was.
    fn migrate(&self, to: &MigrationAddress, progress: &mut dyn FnMut(String)) -> Result<String, VmError>;

    /// What the VM and its debug session are doing.
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`].
    fn status(&self) -> Result<String, VmError>;

    /// Ends the VM.
    fn quit(&self);
}

/// A command to a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// [`Operations::snapshot`]
    Snapshot(PathBuf),
    /// [`Operations::migrate`]
    Migrate(MigrationAddress),
    /// [`Operations::status`]
    Status,
    /// [`Operations::quit`]
    Quit,
}

impl Command {
    /// Name with arguments, and what it does.
    pub const HELP: [(&str, &str); 4] = [
        ("snapshot DIR", "save the VM, its breakpoints and this stop in a new directory"),
        ("migrate ADDR", "move the VM to where `reference-vmm receive ADDR` waits"),
        ("status", "what the VM is doing"),
        ("quit", "end the VM"),
    ];

    /// Parses a command line. `Ok(None)` for a word that is no command.
    ///
    /// # Errors
    ///
    /// What is wrong with the arguments.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim();
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let usage = |(usage, _): &(&str, &str)| usage.split_whitespace().next() == Some(name);
        let Some((usage, _)) = Self::HELP.iter().find(|entry| usage(entry)) else { return Ok(None) };
        if usage.contains(' ') == argument.is_empty() {
            return Err(format!("usage: {usage}"));
        }
        Ok(Some(match name {
            "snapshot" => Self::Snapshot(argument.into()),
            "migrate" => Self::Migrate(argument.parse()?),
            "status" => Self::Status,
            _ => Self::Quit,
        }))
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// As the operation.
    pub fn run(&self, vm: &dyn Operations, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
        match self {
            Self::Snapshot(directory) => vm.snapshot(directory, progress),
            Self::Migrate(to) => vm.migrate(to, progress),
            Self::Status => vm.status(),
            Self::Quit => {
                vm.quit();
                Ok("the VM ends".to_owned())
            }
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(directory) => write!(f, "snapshot {}", directory.display()),
            Self::Migrate(to) => write!(f, "migrate {to}"),
            Self::Status => f.write_str("status"),
            Self::Quit => f.write_str("quit"),
        }
    }
}

/// The commands as gdb's `monitor` has them.
pub struct MonitorCommands(pub Arc<dyn Operations>);

impl Monitor for MonitorCommands {
    fn run(&self, _: VcpuId, line: &str) -> Result<Option<String>, guest_debug_gdb::VmError> {
        let other = guest_debug_gdb::VmError::Other;
        let Some(command) = Command::parse(line).map_err(other)? else { return Ok(None) };
        // gdb shows them all at once; who looks at the VMM sees them as they come.
        let mut lines = String::new();
        let mut progress = |line: String| {
            log::info!("{command}: {line}");
            lines += &format!("{line}\n");
        };
        let done = command.run(&*self.0, &mut progress).map_err(|error| other(error.to_string()))?;
        Ok(Some(format!("{lines}{done}\n")))
    }

    fn help(&self) -> Vec<(String, String)> {
        Command::HELP.iter().map(|(usage, help)| ((*usage).to_owned(), (*help).to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let parse = |line| Command::parse(line);
        assert_eq!(parse(" snapshot  /a b "), Ok(Some(Command::Snapshot("/a b".into()))));
        assert_eq!(
            parse("migrate tcp:1"),
            Ok(Some(Command::Migrate(MigrationAddress::Tcp("127.0.0.1".to_owned(), 1))))
        );
        assert_eq!(parse("status"), Ok(Some(Command::Status)));
        assert_eq!(parse("quit"), Ok(Some(Command::Quit)));
        assert_eq!(parse("snapshots /a"), Ok(None));
        assert_eq!(parse(""), Ok(None));
        for (line, problem) in
            [("snapshot", "usage: snapshot DIR"), ("status now", "usage"), ("migrate x", "unix:PATH")]
        {
            assert!(parse(line).unwrap_err().contains(problem), "{line}");
        }
        for line in ["snapshot /a b", "migrate unix:/x", "status", "quit"] {
            assert_eq!(parse(line).unwrap().unwrap().to_string(), line);
        }
    }
}
