//! What is needed from Debian: tools, which are installed, and packages for guests and hosts, which are only unpacked.

mod archive;
mod install;
mod system;

use std::path::Path;

use anyhow::{Result, bail};

use crate::arch::Arch;
use crate::rust_version::{RUST_VERSION, RustVersion};
use archive::Archive;
use install::Installation;

pub use install::Declined;
pub use system::on_path;

/// A tool that has to be on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Emulates the arm64 KVM host.
    Qemu,
    /// Emulates an x86_64 KVM host with SVM.
    QemuX86,
    /// Emulates an x86_64 KVM host with VMX, and what makes a CD for it.
    Bochs,
    /// gdb that knows arm64.
    Gdb,
    /// lldb, for the scenario that attaches it.
    Lldb,
    /// Python, for the scenarios that are clients of their own. gdb has one inside, which is of no use to them.
    Python,
    /// C compiler and linker for arm64, with a static C library.
    CrossGcc,
    /// The same for x86_64.
    Gcc,
    /// Debian's own rustc with a standard library for arm64, for want of rustup's.
    DebianRust,
}

impl Tool {
    /// What emulates a KVM host.
    pub const fn emulator(arch: Arch) -> Self {
        match arch {
            Arch::Arm64 => Self::Qemu,
            Arch::X86_64 => Self::QemuX86,
        }
    }

    /// What compiles programs for guests.
    pub const fn compiler(arch: Arch) -> Self {
        match arch {
            Arch::Arm64 => Self::CrossGcc,
            Arch::X86_64 => Self::Gcc,
        }
    }

    /// Whether it is there. Looks for files and not for packages: a tool may have come another way.
    pub fn present(self) -> bool {
        match self {
            Self::Qemu => on_path("qemu-system-aarch64"),
            Self::QemuX86 => on_path("qemu-system-x86_64"),
            Self::Bochs => {
                ["bochs", "grub-mkrescue", "xorriso", "mformat"].into_iter().all(on_path)
                    && [
                        "/usr/share/bochs/BIOS-bochs-latest",
                        "/usr/share/vgabios/vgabios.bin",
                        "/usr/lib/grub/i386-pc/boot.img",
                        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
                    ]
                    .iter()
                    .all(|path| Path::new(path).exists())
            }
            Self::Gdb => on_path("gdb-multiarch"),
            Self::Lldb => on_path("lldb"),
            Self::Python => on_path("python3"),
            Self::CrossGcc => {
                on_path("aarch64-linux-gnu-gcc")
                    && ["/usr/aarch64-linux-gnu/lib/libc.a", "/usr/lib/aarch64-linux-gnu/libc.a"]
                        .iter()
                        .any(|path| Path::new(path).exists())
            }
            Self::Gcc => on_path(&Arch::X86_64.gnu("gcc")) && Path::new("/usr/lib/x86_64-linux-gnu/libc.a").exists(),
            Self::DebianRust => {
                RustVersion::of(DEBIAN_RUSTC.as_ref()).is_some_and(RustVersion::is_enough)
                    && (cfg!(target_arch = "aarch64")
                        || Path::new("/usr/lib/rustlib/aarch64-unknown-linux-gnu/lib").exists())
            }
        }
    }

    /// Names of its Debian packages.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-system-arm"],
            Self::QemuX86 => &["qemu-system-x86"],
            Self::Bochs => {
                &["bochs", "bochs-term", "bochsbios", "vgabios", "grub-common", "grub-pc-bin", "xorriso", "mtools"]
            }
            Self::Gdb => &["gdb-multiarch"],
            Self::Lldb => &["lldb"],
            Self::Python => &["python3"],
            Self::CrossGcc if cfg!(target_arch = "aarch64") => &["gcc", "libc6-dev"],
            Self::CrossGcc => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::Gcc => &["gcc", "libc6-dev"],
            Self::DebianRust if cfg!(target_arch = "aarch64") => &["rustc-web"],
            Self::DebianRust => &["rustc-web", "libstd-rust-web-dev:arm64"],
        }
    }

    /// Refuses what apt has to offer if it is of no use.
    fn check_offer(self) -> Result<()> {
        if self != Self::DebianRust {
            return Ok(());
        }
        match system::candidate("rustc-web")? {
            Some(version) if RustVersion::parse(&version).is_some_and(RustVersion::is_enough) => Ok(()),
            Some(version) => bail!(
                "rustc-web in this machine's Debian archives is {version}, and Rust {RUST_VERSION} is needed. \
                 Debian 12 has a later one in its security archive. {OTHER_WAYS}"
            ),
            None => bail!("this machine's Debian archives have no rustc-web, which Debian 12 has. {OTHER_WAYS}"),
        }
    }
}

/// Where Debian's rustc is.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What somebody does whose Debian has no compiler for us.
const OTHER_WAYS: &str = "Otherwise `rustup target add aarch64-unknown-linux-gnu` is enough, \
                          or XTASK_RUSTC names a rustc that has this target";

/// Gets packages through apt.
pub struct Packages {
    assume_yes: bool,
    arch: Arch,
    archive: Archive,
}

impl Packages {
    /// `assume_yes`: install without asking. `arch`: of the packages that are not installed.
    pub fn new(assume_yes: bool, arch: Arch) -> Self {
        Self { assume_yes, arch, archive: Archive::new(arch.debian()) }
    }

    /// What they are for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Makes sure that all these tools are there; installs what is missing, after one question.
    ///
    /// # Errors
    /// [`Declined`] if the user says no. Otherwise the machine is not Debian-like, nobody may install there, or apt
    /// fails; the message names what is missing, and what root would run.
    pub fn ensure(&self, tools: &[Tool]) -> Result<()> {
        let mut missing: Vec<Tool> = Vec::new();
        for tool in tools {
            if !missing.contains(tool) && !tool.present() {
                missing.push(*tool);
            }
        }
        let names: Vec<_> = missing.iter().flat_map(|tool| tool.packages()).copied().collect();
        if names.is_empty() {
            return Ok(());
        }
        system::require_debian(&format!("the packages {} (or what they contain)", names.join(", ")))?;
        let installation = Installation::new(names)?;
        installation.agree(self.assume_yes)?;
        installation.update()?;
        for tool in &missing {
            tool.check_offer()?;
        }
        installation.install()?;
        match missing.iter().find(|tool| !tool.present()) {
            Some(tool) => bail!("{tool:?} is still not there after installing {}", tool.packages().join(", ")),
            None => Ok(()),
        }
    }

    /// Downloads a package and unpacks it into `directory`, without installing it. Needs no root.
    ///
    /// # Errors
    /// If the machine is not Debian-like, or apt or dpkg fails.
    pub fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        system::require_debian(&format!("the {} package {package}", self.arch.debian()))?;
        self.archive.unpack(package, directory)
    }

    /// Downloads a package and takes one file out of it, named as in `dpkg --contents`.
    ///
    /// # Errors
    /// As [`Packages::unpack`], and if it has no such file.
    pub fn unpack_file(&self, package: &str, file: &str, target: &Path) -> Result<()> {
        system::require_debian(&format!("the {} package {package}", self.arch.debian()))?;
        self.archive.unpack_file(package, file, target)
    }

    /// As [`Packages::unpack`], with every package that this one depends on.
    ///
    /// # Errors
    /// As [`Packages::unpack`].
    pub fn unpack_with_dependencies(&self, package: &str, directory: &Path) -> Result<()> {
        system::require_debian(&format!("the {} package {package}", self.arch.debian()))?;
        self.archive.unpack_with_dependencies(package, directory)
    }

    /// Name of the kernel package on which Debian's cloud kernel depends today.
    ///
    /// # Errors
    /// If apt does not know it, as on releases that are not Debian's own.
    pub fn kernel_package(&self) -> Result<String> {
        system::require_debian(&format!("Debian's {} kernel", self.arch.debian()))?;
        self.archive.kernel_package()
    }
}
