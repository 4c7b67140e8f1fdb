//! The initramfs of the emulated host.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::assets::{self, Kernel, without_debug_info};
use crate::context::Context;
use crate::cpio::Archive;
use crate::modules::load_order;

/// How the agent is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Over the only port of virtio-serial.
    Virtio,
    /// Over the second serial port of a machine that has no other way.
    Serial,
}

impl Link {
    /// Modules for it and for the upload disk, and KVM where it is one.
    const fn modules(self, arch: Arch) -> &'static [&'static str] {
        match (self, arch) {
            (Self::Virtio, Arch::Arm64) => &["virtio_pci", "virtio_console", "virtio_blk"],
            (Self::Virtio, Arch::X86_64) => &["virtio_pci", "virtio_console", "virtio_blk", "kvm_amd"],
            (Self::Serial, _) => &["ata_piix", "sd_mod", "kvm_intel"],
        }
    }

    /// What init does for it, and the agent's first argument.
    fn init(self) -> (&'static str, &'static str) {
        match self {
            // The driver makes its device when it has heard of the port.
            Self::Virtio => ("until [ -c /dev/vport*p1 ]; do sleep 0.05; done\n", "/dev/vport*p1"),
            Self::Serial => ("stty -F /dev/ttyS1 raw -echo clocal -crtscts 115200\n", "/dev/ttyS1"),
        }
    }
}

const INIT: &str = r"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /dev/shm /dev/pts /tmp
/bin/busybox mount -t tmpfs -o mode=1777,size=80% tmpfs /tmp
/bin/busybox mount -t tmpfs tmpfs /dev/shm
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TMPDIR=/tmp
mkdir -p /tmp/host
while read -r module; do insmod /modules/$module; done </modules/order
ip link set lo up
LINK
/bin/kvm-agent PLACE /token
echo the agent ended with $?
poweroff -f
";

/// The archive; readable by the user alone, because it holds the token.
///
/// # Errors
/// If a part of it cannot be had.
pub(super) fn write(context: &Context, kernel: &Kernel, token: &str, link: Link, path: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let agent = without_debug_info(context.arch(), &context.toolchain()?.build("kvm-agent")?)?;
    let mut archive = Archive::new();
    let (way, place) = link.init();
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, INIT.replace("LINK\n", way).replace("PLACE", place).as_bytes());
    archive.file("token", 0o600, token.as_bytes());
    archive.file("bin/busybox", 0o755, &fs::read(assets::busybox(&context.packages)?)?);
    archive.link("bin/sh", "busybox");
    archive.file("bin/kvm-agent", 0o755, &fs::read(agent)?);
    let mut order = String::new();
    for module in load_order(&kernel.modules, link.modules(context.arch()))? {
        let name = format!("{}.ko", module.name);
        archive.file(&format!("modules/{name}"), 0o644, &module.content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}
