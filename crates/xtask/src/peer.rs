//! QEMU with KVM in the host: the debugger server that others are measured beside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use kvm_agent::Endpoint;

use crate::assets;
use crate::context::Context;
use crate::host::{HostCommand, KvmHost, command};
use crate::packages::{Packages, Tool};
use crate::paths;
use crate::progress::{Progress, output_of};
use crate::vmm::{Guest, GuestOptions, upload, wait_for_socket};

const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "qemu-system-aarch64";
/// The dynamic linker, as arm64 programs name it.
const LINKER: &str = "ld-linux-aarch64.so.1";

/// Linux's name of the serial console.
pub(crate) const CONSOLE: &str = "ttyAMA0";

/// QEMU, as it is started in a host.
pub(crate) struct Qemu<'a> {
    context: &'a Context,
    host: &'a KvmHost,
    /// The program, and what has to be in front of its arguments.
    argv: Vec<String>,
}

impl<'a> Qemu<'a> {
    /// Debian's, or `binary`. On this machine it is the one that is installed; into an emulated host it comes with its
    /// shared libraries, since there is no other program there that needs any.
    ///
    /// # Errors
    /// If it cannot be had, or does not run there.
    pub(crate) fn install(context: &'a Context, host: &'a KvmHost, binary: Option<&Path>) -> Result<Self> {
        let argv = match binary {
            Some(binary) => vec![host.upload_program(binary)?],
            None if host.is_emulated() => send(host, &archive(&context.packages)?)?,
            None => {
                context.packages.ensure(&[Tool::Qemu])?;
                vec![PROGRAM.to_owned()]
            }
        };
        Ok(Self { context, host, argv })
    }

    /// Its first line about itself.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn version(&self) -> Result<String> {
        let output = self.host.output(&command([self.argv.as_slice(), &["--version".to_owned()]].concat()))?;
        ensure!(output.exit.success(), "QEMU does not run in the host: {}", output.stderr_text());
        Ok(output.stdout_text().lines().next().unwrap_or_default().to_owned())
    }

    /// Starts a guest and waits for its gdb socket.
    ///
    /// # Errors
    /// If QEMU ends before; with its output.
    pub(crate) fn start(&self, options: &GuestOptions) -> Result<Guest> {
        static GUESTS: AtomicU32 = AtomicU32::new(0);
        let number = GUESTS.fetch_add(1, Ordering::Relaxed);
        let socket = self.host.path(&format!("qemu-{}-{number}.sock", std::process::id()));
        let kernel = match &options.kernel {
            Some(kernel) => kernel.clone(),
            None => assets::kernel(&self.context.packages)?.image,
        };
        let mut argv = self.argv.clone();
        let mut add = |arguments: &[&str]| argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
        add(&["-M", "virt,gic-version=3", "-accel", "kvm", "-cpu", "host"]);
        // Without a network card, which would want an option ROM.
        add(&["-display", "none", "-nic", "none", "-monitor", "none", "-serial", "stdio"]);
        add(&["-smp", &options.cpus.to_string(), "-m", &options.memory.to_string()]);
        add(&["-kernel", &upload(self.host, &kernel)?]);
        if let Some(initrd) = &options.initrd {
            add(&["-initrd", &upload(self.host, initrd)?, "-append", &options.cmdline]);
        }
        add(&["-gdb", &format!("unix:{socket},server=on,wait=off")]);
        if options.wait_for_gdb {
            add(&["-S"]);
        }
        argv.extend(options.extra.iter().cloned());
        let vmm = self.host.spawn(&HostCommand { argv, ..HostCommand::default() })?;
        wait_for_socket(self.host, &vmm, &socket)?;
        let gdb = self.host.forward(Endpoint::Unix(socket.clone()))?;
        Ok(Guest { vmm, gdb, socket, control: String::new() })
    }
}

/// Unpacks the archive in the host; answers how to start what is in it.
fn send(host: &KvmHost, archive: &Path) -> Result<Vec<String>> {
    let progress = Progress::start("taking QEMU into the host");
    let directory = host.path("peer-qemu");
    let uploaded = host.upload(archive)?;
    let script = format!("mkdir -p {directory} && tar -xf {uploaded} -C {directory}");
    let output = host.output(&command(["sh", "-c", &script]))?;
    ensure!(output.exit.success(), "QEMU can't be unpacked in the host: {}", output.stderr_text());
    progress.done();
    let file = |name: &str| format!("{directory}/{name}");
    Ok(vec![file(LINKER), "--library-path".to_owned(), directory.clone(), file(PROGRAM)])
}

/// QEMU, its dynamic linker and every library that it names, side by side in a tar file; made the first time.
fn archive(packages: &Packages) -> Result<PathBuf> {
    let target = paths::cache().join("peer/qemu.tar");
    if target.exists() {
        return Ok(target);
    }
    packages.ensure(&[Tool::CrossGcc])?;
    paths::create_atomically(&target, |partial| {
        let (tree, flat) = (partial.with_extension("tree"), partial.with_extension("flat"));
        let made = packages.unpack_with_dependencies(PACKAGE, &tree).and_then(|()| {
            fs::create_dir_all(&flat)?;
            for (name, path) in closure(&tree)? {
                fs::copy(&path, flat.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
            }
            output_of(Command::new("tar").arg("-cf").arg(partial).arg("-C").arg(&flat).arg(".")).map(drop)
        });
        paths::remove(&tree)?;
        paths::remove(&flat)?;
        made
    })?;
    Ok(target)
}

/// Name and path of the program and of all that it loads.
fn closure(tree: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let find = |name: &str| {
        let places = ["usr/bin", "lib", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu"];
        // Some libraries are in a directory of their own, to which the program has a path.
        let places = places.map(PathBuf::from).into_iter().chain(["usr/lib/aarch64-linux-gnu/pulseaudio".into()]);
        places.map(|place| tree.join(place).join(name)).find(|path| path.is_file())
    };
    let mut found = BTreeMap::new();
    let mut wanted = vec![PROGRAM.to_owned(), LINKER.to_owned()];
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let path = find(&name).with_context(|| format!("none of QEMU's packages has {name}"))?;
        let dynamic = output_of(Command::new("aarch64-linux-gnu-readelf").arg("--dynamic").arg(&path))?;
        wanted.extend(needed(&dynamic));
        found.insert(name, path);
    }
    if found.len() < 3 {
        bail!("{PROGRAM} names no libraries");
    }
    Ok(found)
}

/// Libraries that an ELF file names, from what readelf prints of its dynamic section.
fn needed(dynamic: &str) -> Vec<String> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_dynamic_section() {
        let text = " 0x0000000000000001 (NEEDED)             Shared library: [libz.so.1]\n \
                    0x000000000000000e (SONAME)             Library soname: [libx.so.2]\n \
                    0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n";
        assert_eq!(needed(text), ["libz.so.1", "libc.so.6"]);
    }
}
