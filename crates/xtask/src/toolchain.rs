//! A Rust compiler that makes programs for the KVM host, wherever it comes from.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::packages::{DEBIAN_RUSTC, Packages, Tool, on_path};
use crate::paths;
use crate::progress::{Progress, note, output_of};
use crate::rust_version::{RUST_VERSION, RustVersion};

/// Names a rustc to use for arm64, instead of looking for one.
const OVERRIDE: &str = "XTASK_RUSTC";

/// The compiler that was found.
#[derive(Clone, Debug)]
pub struct CrossToolchain {
    arch: Arch,
    /// `None`: the rustc that cargo uses anyway.
    rustc: Option<PathBuf>,
}

impl CrossToolchain {
    /// [`CrossToolchain::find`], or else Debian's through apt.
    ///
    /// # Errors
    /// If that does not work either.
    pub fn get(packages: &Packages) -> Result<Self> {
        let arch = packages.arch();
        if let Some(found) = Self::find(arch)? {
            return Ok(found);
        }
        packages.ensure(&[Tool::DebianRust])?;
        let debian = Self { arch, rustc: Some(DEBIAN_RUSTC.into()) };
        debian.compiles().context("Debian's rustc does not work with Debian's arm64 standard library")?;
        Ok(debian)
    }

    /// The rustc in use if it has the target, Debian's if that is installed, or the target through rustup, which installs
    /// it for this user alone. `None` if none of these works.
    ///
    /// # Errors
    /// If the user names a rustc, and that does not work.
    pub fn find(arch: Arch) -> Result<Option<Self>> {
        if let Some(rustc) = env::var_os(OVERRIDE).filter(|_| arch == Arch::Arm64) {
            let found = Self { arch, rustc: Some(rustc.into()) };
            return found.check().map(|()| Some(found)).with_context(|| format!("the rustc of {OVERRIDE}"));
        }
        let own = Self { arch, rustc: None };
        if own.has_target() && own.compiles().is_ok() {
            return Ok(Some(own));
        }
        if arch != Arch::Arm64 {
            bail!("the Rust compiler makes no programs for {}, which is this machine", arch.target());
        }
        let debian = Self { arch, rustc: Some(DEBIAN_RUSTC.into()) };
        if Tool::DebianRust.present() && debian.compiles().is_ok() {
            return Ok(Some(debian));
        }
        if on_path("rustup") && add_with_rustup(arch.target()) && own.compiles().is_ok() {
            return Ok(Some(own));
        }
        if let Some(version) = RustVersion::of(DEBIAN_RUSTC.as_ref()).filter(|version| !version.is_enough()) {
            note(format!("{DEBIAN_RUSTC} is Rust {version}, and {RUST_VERSION} is needed: it is not used"));
        }
        Ok(None)
    }

    /// Whether clippy works: it reads only the standard library of its own version of rustc.
    pub fn has_clippy(&self) -> bool {
        self.rustc.is_none()
    }

    /// The compiler and its version, for messages.
    pub fn describe(&self) -> String {
        output_of(self.rustc().arg("--version")).map_or_else(|_| "rustc".to_owned(), |text| text.trim().to_owned())
    }

    /// Variables for cargo. Build scripts and procedural macros are compiled without these flags, because cargo gets
    /// `--target` in addition.
    pub fn env(&self) -> Vec<(String, OsString)> {
        let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
        if !flags.is_empty() {
            flags.push(" ");
        }
        // The emulated host has no C library.
        flags.push("-C target-feature=+crt-static");
        let variable = self.arch.target().replace('-', "_").to_uppercase();
        let mut variables = vec![
            ("CARGO_TARGET_DIR".to_owned(), self.directory().into()),
            // Programs that are emulated gain far more than their compilation costs: property tests are 10 times as fast.
            ("CARGO_PROFILE_DEV_OPT_LEVEL".to_owned(), "1".into()),
            (format!("CARGO_TARGET_{variable}_LINKER"), self.arch.gnu("gcc").into()),
            (format!("CARGO_TARGET_{variable}_RUSTFLAGS"), flags),
        ];
        if let Some(rustc) = &self.rustc {
            variables.push(("RUSTC".to_owned(), rustc.into()));
        }
        variables
    }

    /// cargo with these variables, in the workspace's directory.
    pub fn cargo(&self) -> Command {
        let mut command = cargo();
        // It would win over the target's own flags, which contain it.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").envs(self.env());
        command
    }

    /// Builds a binary of the workspace and returns its path.
    ///
    /// # Errors
    /// If it does not build; cargo has printed why.
    pub fn build(&self, package: &str) -> Result<PathBuf> {
        let status = self
            .cargo()
            .args(["build", "--quiet", "--target", self.arch.target(), "--package", package, "--bin", package])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("cannot start cargo")?;
        if !status.success() {
            bail!("{package} does not build for {}", self.arch.name());
        }
        Ok(self.directory().join(self.arch.target()).join("debug").join(package))
    }

    /// Where cargo builds.
    fn directory(&self) -> PathBuf {
        paths::root().join("target").join(self.arch.name())
    }

    fn rustc(&self) -> Command {
        match &self.rustc {
            Some(path) => Command::new(path),
            None => Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())),
        }
    }

    fn has_target(&self) -> bool {
        output_of(self.rustc().args(["--print", "target-libdir", "--target", self.arch.target()]))
            .is_ok_and(|directory| Path::new(directory.trim()).exists())
    }

    fn check(&self) -> Result<()> {
        let version = RustVersion::of(self.rustc().get_program()).context("it does not say its version")?;
        if !version.is_enough() {
            bail!("it is Rust {version}, and {RUST_VERSION} is needed");
        }
        self.compiles()
    }

    /// Compiles an empty program: that finds a standard library of another version, too.
    fn compiles(&self) -> Result<()> {
        let directory = paths::cache().join(format!("probe-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut rustc = self.rustc();
        rustc.args(["--target", self.arch.target(), "--crate-name", "probe", "--emit", "metadata", "--out-dir"]);
        rustc.arg(&directory).arg("-").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = rustc.spawn().context("cannot start rustc")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"fn main() {}")?;
        }
        let output = child.wait_with_output()?;
        paths::remove(&directory)?;
        if !output.status.success() {
            bail!("cannot compile for {}: {}", self.arch.target(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// The cargo that runs us, in the workspace's directory.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

fn add_with_rustup(target: &str) -> bool {
    let progress = Progress::start(format!("rustup target add {target}"));
    match output_of(Command::new("rustup").args(["target", "add", target])) {
        Ok(_) => {
            progress.done();
            true
        }
        Err(error) => {
            note(format!("rustup cannot add {target}, so Debian's compiler is used: {error:#}"));
            false
        }
    }
}
