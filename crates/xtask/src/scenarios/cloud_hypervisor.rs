//! cloud-hypervisor on a KVM host: a binary for arm64 that somebody has built, patched or not.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kvm_agent::Endpoint;

use super::guests::GuestLayout;
use super::vmm::{RunningGuest, Vmm};
use crate::assets;
use crate::context::Context;
use crate::host::{Forward, HostCommand, HostProcess, KvmHost};
use crate::paths;
use crate::progress::output_of;
use crate::vmm::{GuestOptions, upload, wait_for_socket};

/// Below this are the interrupt controller's registers (cloud-hypervisor, arch/src/aarch64/layout.rs).
const MAPPED_IO_START: u64 = 0x0900_0000;

/// cloud-hypervisor on a KVM host.
pub(super) struct CloudHypervisor<'a> {
    context: &'a Context,
    host: &'a KvmHost,
    /// Its path in the host.
    program: String,
}

impl<'a> CloudHypervisor<'a> {
    pub(super) fn new(context: &'a Context, host: &'a KvmHost, binary: &Path) -> Result<Self> {
        Ok(Self { context, host, program: host.upload_program(binary)? })
    }
}

impl Vmm for CloudHypervisor<'_> {
    fn layout(&self, cpus: u32) -> GuestLayout {
        let gicd = MAPPED_IO_START - 0x1_0000;
        let gicr = gicd - 0x2_0000 * u64::from(cpus);
        // Device tree and ACPI tables are in front of the kernel.
        GuestLayout { ram_base: 0x4000_0000, load_offset: 0x40_0000, gicd, gicr }
    }

    fn console(&self) -> &'static str {
        "ttyAMA0"
    }

    fn start(&self, options: &GuestOptions) -> Result<Box<dyn RunningGuest>> {
        static GUESTS: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), GUESTS.fetch_add(1, Ordering::Relaxed));
        let (gdb, api) = (self.host.path(&format!("ch-gdb-{name}")), self.host.path(&format!("ch-api-{name}")));
        let kernel = match &options.kernel {
            Some(kernel) => flat_image(kernel)?,
            None => assets::kernel(&self.context.packages)?.image,
        };
        let mut argv = vec![self.program.clone(), "--kernel".to_owned(), upload(self.host, &kernel)?];
        if let Some(initrd) = &options.initrd {
            argv.extend(["--initramfs".to_owned(), upload(self.host, initrd)?]);
            argv.extend(["--cmdline".to_owned(), options.cmdline.clone()]);
        }
        argv.extend(["--cpus".to_owned(), format!("boot={}", options.cpus)]);
        argv.extend(["--memory".to_owned(), format!("size={}M", options.memory)]);
        argv.extend(["--serial", "tty", "--console", "off"].map(str::to_owned));
        argv.extend(["--api-socket".to_owned(), api.clone(), "--gdb".to_owned(), format!("path={gdb}")]);
        argv.extend(options.extra.iter().cloned());
        let vmm = self.host.spawn(&HostCommand { argv, env: Vec::new() })?;
        wait_for_socket(self.host, &vmm, &gdb)?;
        if !options.wait_for_gdb {
            // With --gdb it waits for a client at boot, whatever one says on its command line.
            wait_for_socket(self.host, &vmm, &api)?;
            self.put(&api, "vm.resume")?;
        }
        let forward = self.host.forward(Endpoint::Unix(gdb))?;
        Ok(Box::new(Guest { vmm, gdb: forward }))
    }
}

impl CloudHypervisor<'_> {
    /// A call of the REST API that has no body. A VM that is not there yet is asked again.
    fn put(&self, socket: &str, call: &str) -> Result<()> {
        let mut answer = String::new();
        for _ in 0..100 {
            let mut stream = self.host.connect(&Endpoint::Unix(socket.to_owned()))?;
            stream.write_all(
                format!("PUT /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n").as_bytes(),
            )?;
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes)?;
            answer = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
            if answer.starts_with("HTTP/1.1 2") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("cloud-hypervisor answers {call} with {answer}")
    }
}

struct Guest {
    vmm: HostProcess,
    gdb: Forward,
}

impl RunningGuest for Guest {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.gdb.port())
    }

    fn output(&self) -> String {
        self.vmm.output_text()
    }

    fn ended(&mut self) -> Option<String> {
        match self.vmm.wait(Duration::ZERO) {
            Ok(exit) => exit.map(|exit| exit.to_string()),
            Err(error) => Some(format!("{error:#}")),
        }
    }
}

/// The bare-metal guest as an Image, the only kind of kernel that cloud-hypervisor loads on arm64.
fn flat_image(elf: &Path) -> Result<PathBuf> {
    const OBJCOPY: &str = "aarch64-linux-gnu-objcopy";
    let target = paths::cache().join("flat").join(paths::file_fingerprint(elf)?).join("Image");
    if !fs::exists(&target).with_context(|| format!("cannot look at {}", target.display()))? {
        paths::create_atomically(&target, |partial| {
            output_of(Command::new(OBJCOPY).args(["-O", "binary"]).arg(elf).arg(partial)).map(drop)
        })?;
    }
    Ok(target)
}
