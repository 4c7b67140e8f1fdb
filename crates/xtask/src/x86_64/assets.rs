//! Debian's amd64 kernel and busybox.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

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
