//! What is needed from Debian: tools, which are installed, and arm64 packages, which are only unpacked.

use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::paths;
use crate::progress::{note, output_of, run_quietly};

/// A tool that has to be on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Emulates the arm64 KVM host.
    Qemu,
    /// gdb that knows arm64.
    Gdb,
    /// lldb, for the scenario that attaches it.
    Lldb,
    /// C compiler and linker for arm64, with a static C library.
    CrossGcc,
    /// Debian's own rustc with a standard library for arm64, for want of rustup's.
    DebianRust,
}

impl Tool {
    /// Everything that the tests and the demo use, apart from a compiler that may be there already.
    pub const ALL: [Self; 4] = [Self::Qemu, Self::Gdb, Self::Lldb, Self::CrossGcc];

    /// Whether it is there. Looks for files and not for packages: a tool may have come another way.
    pub fn present(self) -> bool {
        match self {
            Self::Qemu => on_path("qemu-system-aarch64"),
            Self::Gdb => on_path("gdb-multiarch"),
            Self::Lldb => on_path("lldb"),
            Self::CrossGcc => {
                on_path("aarch64-linux-gnu-gcc")
                    && ["/usr/aarch64-linux-gnu/lib/libc.a", "/usr/lib/aarch64-linux-gnu/libc.a"]
                        .iter()
                        .any(|path| Path::new(path).exists())
            }
            Self::DebianRust => {
                Path::new(DEBIAN_RUSTC).exists()
                    && (cfg!(target_arch = "aarch64")
                        || Path::new("/usr/lib/rustlib/aarch64-unknown-linux-gnu/lib").exists())
            }
        }
    }

    /// Names of its Debian packages.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-system-arm"],
            Self::Gdb => &["gdb-multiarch"],
            Self::Lldb => &["lldb"],
            Self::CrossGcc if cfg!(target_arch = "aarch64") => &["gcc", "libc6-dev"],
            Self::CrossGcc => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::DebianRust if cfg!(target_arch = "aarch64") => &["rustc-web"],
            Self::DebianRust => &["rustc-web", "libstd-rust-web-dev:arm64"],
        }
    }
}

/// Where Debian's rustc is.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Gets packages through apt.
pub struct Packages {
    assume_yes: bool,
    updated: Cell<bool>,
}

impl Packages {
    /// `assume_yes`: install without asking.
    pub fn new(assume_yes: bool) -> Self {
        Self { assume_yes, updated: Cell::new(false) }
    }

    /// Makes sure that all these tools are there; installs what is missing.
    ///
    /// # Errors
    /// If the machine is not Debian-like, the user says no, or apt fails. The message names what is missing.
    pub fn ensure(&self, tools: &[Tool]) -> Result<()> {
        let missing: Vec<_> = tools.iter().copied().filter(|tool| !tool.present()).collect();
        let names: Vec<_> = missing.iter().flat_map(|tool| tool.packages()).copied().collect();
        if names.is_empty() {
            return Ok(());
        }
        require_debian(&format!("the packages {} (or what they contain)", names.join(", ")))?;
        self.ask(&names)?;
        if names.iter().any(|name| name.ends_with(":arm64")) {
            self.add_arm64()?;
        }
        self.update()?;
        run_quietly(
            &format!("installing {}", names.join(", ")),
            privileged("apt-get").args(APT_OPTIONS).args(["install", "--yes", "--no-install-recommends"]).args(&names),
        )?;
        match missing.iter().find(|tool| !tool.present()) {
            Some(tool) => bail!("{tool:?} is still not there after installing {}", tool.packages().join(", ")),
            None => Ok(()),
        }
    }

    /// Downloads an arm64 package and unpacks it into `directory`, without installing it.
    ///
    /// # Errors
    /// If the machine is not Debian-like, or apt or dpkg fails.
    pub fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        require_debian(&format!("the arm64 package {package}"))?;
        let downloads = paths::cache().join(format!("download-{package}"));
        paths::remove(&downloads)?;
        fs::create_dir_all(&downloads)?;
        let name = format!("{package}:arm64");
        let download = || {
            let mut command = Command::new("apt-get");
            command.args(APT_OPTIONS).args(["download", &name]).current_dir(&downloads);
            run_quietly(&format!("downloading {name}"), &mut command)
        };
        self.look_up(&name)?;
        if let Err(error) = download() {
            // The lists may name a version that the mirror has replaced since.
            if self.updated.get() {
                return Err(error);
            }
            self.update()?;
            download()?;
        }
        let deb = fs::read_dir(&downloads)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {name} left no package in {}", downloads.display()))?;
        run_quietly(&format!("unpacking {package}"), Command::new("dpkg").arg("-x").arg(&deb).arg(directory))?;
        paths::remove(&downloads)
    }

    /// Name of the kernel package on which Debian's arm64 cloud kernel depends today.
    ///
    /// # Errors
    /// If apt does not know it, as on releases that are not Debian's own.
    pub fn kernel_package(&self) -> Result<String> {
        require_debian(&format!("the arm64 package {KERNEL_META_PACKAGE}"))?;
        let record = self.look_up(&format!("{KERNEL_META_PACKAGE}:arm64"))?;
        kernel_dependency(&record)
            .with_context(|| format!("{KERNEL_META_PACKAGE} depends on no linux-image package:\n{record}"))
    }

    /// apt's record of a package; adds the architecture and updates the lists if it is not known yet.
    fn look_up(&self, name: &str) -> Result<String> {
        let show = || output_of(Command::new("apt-cache").args(["show", "--no-all-versions", name]));
        if let Ok(record) = show()
            && !record.trim().is_empty()
        {
            return Ok(record);
        }
        self.add_arm64()?;
        self.update()?;
        show()
            .with_context(|| format!("apt knows no package {name}: Debian 12 or later with its main archive is needed"))
    }

    fn add_arm64(&self) -> Result<()> {
        let native = output_of(Command::new("dpkg").arg("--print-architecture"))?;
        let foreign = output_of(Command::new("dpkg").arg("--print-foreign-architectures"))?;
        if native.lines().chain(foreign.lines()).any(|line| line.trim() == "arm64") {
            return Ok(());
        }
        self.updated.set(false);
        run_quietly("adding the architecture arm64 to dpkg", privileged("dpkg").args(["--add-architecture", "arm64"]))
    }

    /// Updates the package lists, once in a run.
    fn update(&self) -> Result<()> {
        if self.updated.replace(true) {
            return Ok(());
        }
        let updated =
            run_quietly("updating apt's package lists", privileged("apt-get").args(APT_OPTIONS).arg("update"));
        if let Err(error) = updated {
            // Any archive in the list may fail, also one that nothing is wanted from: what is missing shows later.
            note(format!("going on although apt-get update failed: {error:#}"));
        }
        Ok(())
    }

    fn ask(&self, names: &[&str]) -> Result<()> {
        let wanted = names.join(" ");
        let in_ci = env::var("CI").is_ok_and(|value| value == "true");
        if self.assume_yes || in_ci || !io::stdin().is_terminal() {
            note(format!("missing: {wanted}"));
            return Ok(());
        }
        eprint!("xtask: these Debian packages are missing: {wanted}\nInstall them now? [Y/n] ");
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "" | "y" | "yes" => Ok(()),
            _ => bail!("not installed: {wanted}"),
        }
    }
}

const KERNEL_META_PACKAGE: &str = "linux-image-cloud-arm64";

/// Waits for another apt instead of failing, and prints plain lines.
const APT_OPTIONS: [&str; 5] = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"];

/// A command that runs as root: itself where we are root, or else through sudo.
fn privileged(program: &str) -> Command {
    let root = output_of(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command;
    if root {
        command = Command::new("env");
    } else {
        command = Command::new("sudo");
        if !io::stdin().is_terminal() {
            command.arg("--non-interactive");
        }
        command.arg("env");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    command
}

/// Fails with a message unless this is Debian or something made from it.
fn require_debian(what: &str) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if is_debian_like(&release) && on_path("apt-get") && on_path("dpkg") {
        return Ok(());
    }
    let name = field(&release, "PRETTY_NAME").unwrap_or_else(|| "this machine".to_owned());
    bail!(
        "needed: {what}. They come from Debian through apt-get, which {name} does not have; please use Debian 12 or later"
    )
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

fn kernel_dependency(record: &str) -> Option<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .map(|name| name.trim_end_matches(":arm64").to_owned())
}

/// Whether a program is found on PATH.
pub fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_in_the_meta_package() {
        let record = "Package: linux-image-cloud-arm64\nVersion: 6.1.1\n\
                      Depends: foo, linux-image-6.1.0-56-cloud-arm64 (= 6.1.192-2)\nSize: 1\n";
        assert_eq!(kernel_dependency(record).as_deref(), Some("linux-image-6.1.0-56-cloud-arm64"));
        assert_eq!(kernel_dependency("Package: x\nDepends: y\n"), None);
    }

    #[test]
    fn debian_and_its_children_are_recognised() {
        assert!(is_debian_like("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(is_debian_like("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian_like("ID=fedora\n"));
        assert!(!is_debian_like(""));
    }
}
