//! The initramfs: busybox, KVM's modules, and the program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Emulator;
use crate::assets::Kernel;
use crate::cpio::Archive;
use crate::modules::load_order;

/// The line before the program's output.
pub(super) const BEGIN: &str = "x86_64 host: the program begins";
/// The line behind it, with the exit code at its end.
pub(super) const END: &str = "x86_64 host: the program has ended with ";

/// The console is a UART that takes its time, so it gets some before the machine goes.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
while read -r module; do /bin/busybox insmod /modules/$module; done </modules/order
set --
while IFS= read -r argument; do set -- "$@" "$argument"; done </arguments
while IFS= read -r file; do export "$file"; done </files/list
echo "BEGIN"
/program "$@" 2>&1
echo "END$?"
/bin/busybox sleep 2
/bin/busybox poweroff -f
"#;

/// What is in it beside the kernel's modules.
pub(super) struct Contents<'a> {
    pub(super) busybox: &'a Path,
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [String],
    /// Files of this machine, by the variables that name them to the program.
    pub(super) files: &'a [(String, PathBuf)],
}

/// Writes it.
///
/// # Errors
/// If a part of it cannot be read, or it not be written.
pub(super) fn write(emulator: Emulator, kernel: &Kernel, contents: &Contents<'_>, path: &Path) -> Result<()> {
    let Contents { busybox, program, arguments, files } = contents;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::new();
    for directory in ["proc", "sys", "dev", "tmp"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, INIT.replace("BEGIN", BEGIN).replace("END", END).as_bytes());
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    archive.file("program", 0o755, &read(program)?);
    archive.file(
        "arguments",
        0o644,
        arguments.iter().map(|argument| format!("{argument}\n")).collect::<String>().as_bytes(),
    );
    let mut list = String::new();
    for (name, file) in *files {
        let place = format!("files/{name}");
        archive.file(&place, 0o644, &read(file)?);
        list.push_str(&format!("{name}=/{place}\n"));
    }
    archive.file("files/list", 0o644, list.as_bytes());
    let vendor = match emulator {
        Emulator::Qemu => "kvm_amd",
        Emulator::Bochs => "kvm_intel",
    };
    let mut order = String::new();
    for module in load_order(&kernel.modules, &[vendor])? {
        let name = format!("{}.ko", module.name);
        archive.file(&format!("modules/{name}"), 0o644, &module.content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}
