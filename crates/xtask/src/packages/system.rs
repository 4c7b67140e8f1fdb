//! What this machine is, and what its apt knows.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::output_of;

/// Fails with a message unless this is Debian or something made from it.
pub(super) fn require_debian(what: &str) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if is_debian_like(&release) && on_path("apt-get") && on_path("dpkg") {
        return Ok(());
    }
    let name = field(&release, "PRETTY_NAME").unwrap_or_else(|| "this machine".to_owned());
    bail!(
        "needed: {what}. They come from Debian through apt-get, which {name} does not have; please use Debian 12 or later"
    )
}

/// Whether dpkg takes arm64 packages: it is the machine's own architecture, or was added.
pub(super) fn knows_arm64() -> Result<bool> {
    let native = output_of(Command::new("dpkg").arg("--print-architecture"))?;
    let foreign = output_of(Command::new("dpkg").arg("--print-foreign-architectures"))?;
    Ok(native.lines().chain(foreign.lines()).any(|line| line.trim() == "arm64"))
}

/// The version of a package that apt would install.
pub(super) fn candidate(package: &str) -> Result<Option<String>> {
    Ok(candidate_in(&output_of(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))?))
}

/// Whether a program is found on PATH.
pub fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).exists()))
}

fn is_debian_like(release: &str) -> bool {
    ["ID", "ID_LIKE"]
        .iter()
        .filter_map(|name| field(release, name))
        .any(|value| value.split_whitespace().any(|id| id == "debian"))
}

fn field(release: &str, name: &str) -> Option<String> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_recognised() {
        assert!(is_debian_like("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(is_debian_like("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian_like("ID=fedora\n"));
        assert!(!is_debian_like(""));
    }

    #[test]
    fn the_candidate_is_found_in_the_policy() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.85.0+dfsg3-1~deb12u3\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1.85.0+dfsg3-1~deb12u3"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
