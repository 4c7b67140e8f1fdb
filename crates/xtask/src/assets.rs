//! What guests are made of: Debian's kernel, an initramfs, test programs. Of which architecture, the packages know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::cpio::Archive;
use crate::packages::{Packages, Tool};
use crate::paths;
use crate::progress::{output_of, tail};

/// Debian's cloud kernel, the same for the emulated host and for the guests in it.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What is booted: an uncompressed Image on arm64, a bzImage on x86_64.
    pub image: PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Its module tree.
    pub modules: PathBuf,
}

/// The kernel; downloaded the first time.
///
/// # Errors
/// If it cannot be downloaded, or is none.
pub fn kernel(packages: &Packages) -> Result<Kernel> {
    let directory = paths::cache_of(packages.arch()).join("kernel");
    if !directory.exists() {
        let package = packages.kernel_package()?;
        paths::create_atomically(&directory, |partial| packages.unpack(&package, partial))?;
    }
    let boot = directory.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| release_of(path).is_some())
        .with_context(|| format!("no vmlinuz in {}", boot.display()))?;
    let release = release_of(&image).unwrap_or_default();
    // Documentation/arch/arm64/booting.rst and Documentation/arch/x86/boot.rst in the Linux tree.
    let (what, place, magic) = match packages.arch() {
        Arch::Arm64 => ("an uncompressed arm64 Image", 0x38..0x3c, b"ARM\x64"),
        Arch::X86_64 => ("a bzImage", 0x202..0x206, b"HdrS"),
    };
    if fs::read(&image)?.get(place) != Some(magic) {
        bail!("{} is not {what}", image.display());
    }
    let modules = ["lib", "usr/lib"]
        .map(|lib| directory.join(lib).join("modules").join(&release))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("no modules of {release} in {}", directory.display()))?;
    Ok(Kernel { image, release, modules })
}

/// The kernel's `vmlinux` with all debug information, from Debian's debug package: 262 MB to download, once. It has that name, by which
/// Linux's own scripts for gdb look for it.
///
/// # Errors
/// If it cannot be downloaded. The archive keeps such a package for as long as it has that kernel.
pub fn debug_vmlinux(packages: &Packages) -> Result<PathBuf> {
    let release = kernel(packages)?.release;
    let path = paths::cache_of(packages.arch()).join("debug-info").join(&release).join("vmlinux");
    if !path.exists() {
        let (package, file) = debug_package(&release);
        paths::create_atomically(&path, |partial| packages.unpack_file(&package, &file, partial))?;
    }
    Ok(path)
}

/// The package with a kernel's debug information, and the kernel's file in it.
fn debug_package(release: &str) -> (String, String) {
    (format!("linux-image-{release}-dbg"), format!("./usr/lib/debug/boot/vmlinux-{release}"))
}

fn release_of(image: &Path) -> Option<String> {
    Some(image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned())
}

/// Debian's static busybox; downloaded the first time.
///
/// # Errors
/// If it cannot be downloaded.
pub fn busybox(packages: &Packages) -> Result<PathBuf> {
    let directory = paths::cache_of(packages.arch()).join("busybox");
    if !directory.exists() {
        paths::create_atomically(&directory, |partial| packages.unpack("busybox-static", partial))?;
    }
    ["bin/busybox", "usr/bin/busybox"]
        .map(|name| directory.join(name))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("no busybox in {}", directory.display()))
}

/// A file for a guest.
#[derive(Clone, Debug)]
pub struct GuestFile {
    /// Where it goes.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

impl GuestFile {
    /// A program from this machine.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn program(path: impl Into<String>, source: &Path) -> Result<Self> {
        let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        Ok(Self { path: path.into(), mode: 0o755, content })
    }

    /// A shell script.
    pub fn script(path: impl Into<String>, text: &str) -> Self {
        Self { path: path.into(), mode: 0o755, content: text.into() }
    }
}

/// Init of a guest, unless the caller brings another `/init`: mounts what programs expect, says [`GUEST_READY`] on the
/// console, runs `/main` if there is one, and offers a shell.
pub const GUEST_INIT: &str = r"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
echo guest is ready
[ -x /main ] && /main
exec setsid cttyhack sh -i
";

/// The line that [`GUEST_INIT`] prints.
pub const GUEST_READY: &str = "guest is ready";

/// An initramfs for a guest: busybox, [`GUEST_INIT`] and these files (one named `/init` replaces it).
///
/// # Errors
/// If busybox cannot be had or the archive not be written.
pub fn guest_initramfs(packages: &Packages, files: &[GuestFile]) -> Result<PathBuf> {
    let busybox = fs::read(busybox(packages)?)?;
    let mut archive = Archive::new();
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    archive.link("bin/sh", "busybox");
    if !files.iter().any(|file| file.path.trim_matches('/') == "init") {
        archive.file("init", 0o755, GUEST_INIT.as_bytes());
    }
    for file in files {
        archive.file(&file.path, file.mode, &file.content);
    }
    let bytes = archive.finish();
    let path = paths::cache().join("guest-initramfs").join(format!("{}.cpio", paths::fingerprint(&[&bytes])));
    if !path.exists() {
        paths::create_atomically(&path, |partial| Ok(fs::write(partial, &bytes)?))?;
    }
    Ok(path)
}

/// Compiles a C or assembler program for a guest, statically. It is compiled again only if the source, the flags or the
/// compiler changed; included files are not looked at.
///
/// # Errors
/// What the compiler prints.
pub fn compile_guest_program(packages: &Packages, source: &Path, flags: &[&str]) -> Result<PathBuf> {
    let compiler = packages.arch().gnu("gcc");
    packages.ensure(&[Tool::compiler(packages.arch())])?;
    let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    let version = output_of(Command::new(&compiler).arg("--version"))?;
    let key = paths::fingerprint(&[compiler.as_bytes(), &content, flags.join("\0").as_bytes(), version.as_bytes()]);
    let stem = source.file_stem().unwrap_or_default();
    let target = paths::cache().join("guest-programs").join(key).join(stem);
    if target.exists() {
        return Ok(target);
    }
    paths::create_atomically(&target, |partial| {
        let mut gcc = Command::new(&compiler);
        gcc.args(["-static", "-g", "-Wall", "-Wextra", "-Werror"]).args(flags).arg("-o").arg(partial).arg(source);
        let output = gcc.output().with_context(|| format!("cannot start {compiler}"))?;
        if !output.status.success() {
            bail!("{} does not compile:\n{}", paths::short(source), tail(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    })?;
    Ok(target)
}

/// A copy of a program without its debug information, which is most of what would be uploaded. Function names stay, for
/// backtraces.
///
/// # Errors
/// If strip fails.
pub fn without_debug_info(arch: Arch, program: &Path) -> Result<PathBuf> {
    let name = program.file_name().unwrap_or_default();
    let target = paths::cache().join("stripped").join(paths::file_fingerprint(program)?).join(name);
    if !target.exists() {
        paths::create_atomically(&target, |partial| {
            output_of(Command::new(arch.gnu("strip")).arg("--strip-debug").arg("-o").arg(partial).arg(program))
                .map(drop)
        })?;
    }
    Ok(target)
}
