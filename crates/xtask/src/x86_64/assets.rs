//! Debian's amd64 kernel and busybox.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cpio::Archive;
use crate::packages::Packages;
use crate::paths;

/// Debian's amd64 cloud kernel, of which KVM is a module.
pub(super) struct Kernel {
    /// The bzImage.
    pub(super) image: PathBuf,
    /// Its module tree.
    pub(super) modules: PathBuf,
}

/// The kernel; downloaded the first time.
pub(super) fn kernel(packages: &Packages) -> Result<Kernel> {
    let directory = paths::cache().join("x86_64").join("kernel");
    if !directory.exists() {
        let package = packages.amd64_kernel_package()?;
        paths::create_atomically(&directory, |partial| packages.unpack_amd64(&package, partial))?;
    }
    let boot = directory.join("boot");
    let (image, release) = fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .filter_map(Result::ok)
        .find_map(|entry| Some((entry.path(), entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned())))
        .with_context(|| format!("no vmlinuz in {}", boot.display()))?;
    let modules = ["lib", "usr/lib"]
        .map(|lib| directory.join(lib).join("modules").join(&release))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("no modules of {release} in {}", directory.display()))?;
    Ok(Kernel { image, modules })
}

/// Init of a Linux guest: says that it is there and how many processors it has, and goes after a while.
const GUEST_INIT: &str = r"#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo guest is ready with $(/bin/busybox grep -c ^processor /proc/cpuinfo) processors
/bin/busybox sleep 3
/bin/busybox poweroff -f
";

/// An initramfs for a Linux guest.
pub(super) fn guest(packages: &Packages) -> Result<PathBuf> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, &fs::read(busybox(packages)?)?);
    archive.file("init", 0o755, GUEST_INIT.as_bytes());
    let bytes = archive.finish();
    let name = format!("guest-{}.cpio", paths::fingerprint(&[&bytes]));
    let path = paths::cache().join("x86_64").join(name);
    if !path.exists() {
        paths::create_atomically(&path, |partial| Ok(fs::write(partial, &bytes)?))?;
    }
    Ok(path)
}

/// Debian's static busybox; downloaded the first time.
pub(super) fn busybox(packages: &Packages) -> Result<PathBuf> {
    let directory = paths::cache().join("x86_64").join("busybox");
    if !directory.exists() {
        paths::create_atomically(&directory, |partial| packages.unpack_amd64("busybox-static", partial))?;
    }
    ["bin/busybox", "usr/bin/busybox"]
        .map(|name| directory.join(name))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("no busybox in {}", directory.display()))
}
