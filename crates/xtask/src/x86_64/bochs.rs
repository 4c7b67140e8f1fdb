//! A PC that Bochs emulates.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::KERNEL_LINE;
use crate::assets::Kernel;
use crate::host::tied;
use crate::progress::run_quietly;

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// For Bochs' own files.
    directory: &'a Path,
    /// The file that its first serial port is.
    console: &'a Path,
    /// Its memory in MiB.
    memory: u32,
    /// Instructions that take one second of the machine's time.
    speed: u32,
    /// An image of a disk.
    disk: Option<&'a Path>,
    /// A port of this machine that its second serial port connects to.
    line: Option<u16>,
}

impl<'a> Machine<'a> {
    /// One with a console only, whose time goes slowly.
    pub const fn new(directory: &'a Path, console: &'a Path) -> Self {
        Self { directory, console, memory: 512, speed: 200_000_000, disk: None, line: None }
    }

    /// One with a disk and a serial line. Its clock goes about as fast as ours, so that the line, which has a byte for 87
    /// microseconds of the machine's, carries as much as it can.
    pub const fn with_line(self, memory: u32, disk: &'a Path, line: u16) -> Self {
        Self { memory, speed: 40_000_000, disk: Some(disk), line: Some(line), ..self }
    }

    /// The command that boots it. Bochs boots from media only, and Debian's has a debugger that has to be told to go on, and no
    /// display without a terminal.
    ///
    /// # Errors
    /// If what it boots from cannot be made.
    pub fn command(&self, kernel: &Kernel, initramfs: &Path) -> Result<Command> {
        let Self { directory, console, memory, speed, disk, line } = self;
        let iso = directory.join("host.iso");
        let tree = directory.join("iso");
        let boot = tree.join("boot");
        fs::create_dir_all(boot.join("grub"))?;
        fs::copy(&kernel.image, boot.join("vmlinuz")).context("cannot copy the kernel")?;
        fs::copy(initramfs, boot.join("initrd")).context("cannot copy the initramfs")?;
        let menu = format!("set timeout=0\nlinux /boot/vmlinuz {KERNEL_LINE}\ninitrd /boot/initrd\nboot\n");
        fs::write(boot.join("grub").join("grub.cfg"), menu)?;
        run_quietly("making a CD for Bochs", Command::new("grub-mkrescue").arg("-o").arg(&iso).arg(&tree))?;
        let mut settings = vec![
            format!("cpu: model=corei7_skylake_x, count=1, ips={speed}"),
            format!("megs: {memory}"),
            "romimage: file=/usr/share/bochs/BIOS-bochs-latest".to_owned(),
            "vgaromimage: file=/usr/share/vgabios/vgabios.bin".to_owned(),
            format!("ata0-master: type=cdrom, path={}, status=inserted", iso.display()),
            "boot: cdrom".to_owned(),
            format!("com1: enabled=1, mode=file, dev={}", console.display()),
            "display_library: term".to_owned(),
            "plugin_ctrl: serial=1".to_owned(),
            "clock: sync=none".to_owned(),
            format!("log: {}", directory.join("bochs.log").display()),
            // It has thousands a second to say of registers that it does not know.
            "error: action=ignore".to_owned(),
        ];
        settings.extend(disk.map(|disk| format!("ata1-master: type=disk, mode=flat, path={}", disk.display())));
        settings.extend(line.map(|port| format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}")));
        if disk.is_some() {
            settings.push("ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15".to_owned());
        }
        fs::write(directory.join("bochsrc"), settings.join("\n") + "\n")?;
        fs::write(directory.join("commands"), "c\n")?;
        let mut command = tied("script");
        // Its display is a terminal of its own that nobody reads. On one that can hide its cursor Bochs makes it blink, until
        // the terminal is full after some minutes, and then waits for ever.
        command.args(["-qfc", "bochs -q -f bochsrc -rc commands", "/dev/null"]).env("TERM", "vt100");
        Ok(command)
    }
}
