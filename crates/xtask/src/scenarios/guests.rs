//! Builds the guests of tests/guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::assets::{GuestFile, guest_initramfs, kernel, without_debug_info};
use crate::context::Context;
use crate::modules::{Module, load_order};
use crate::packages::Tool;
use crate::paths;
use crate::progress::tail;

/// Where a VMM puts what a bare-metal guest has to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestLayout {
    /// First byte of RAM, a multiple of 1 GiB.
    pub ram_base: u64,
    /// Where in RAM a bare-metal guest may be loaded: not on top of the device tree.
    pub load_offset: u64,
    /// Its interrupt controller.
    pub machine: Machine,
}

/// The parts of a machine that a bare-metal guest drives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Machine {
    /// An arm64 machine, by the first addresses of its GICv3.
    Gic { distributor: u64, redistributor: u64 },
    /// A PC, by the address of its local APICs.
    Pc { apic: u64 },
}

/// Flags for programs without anything below them.
const BARE_FLAGS: &str = "-nostdlib -ffreestanding -mgeneral-regs-only -fno-pic -no-pie -fno-stack-protector -O1 \
                          -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments \
                          -Wl,-T,bare/payload.ld";

/// The bare-metal guest's ELF file, linked for a VMM's layout.
///
/// # Errors
/// What the compiler prints.
pub(super) fn bare(context: &Context, layout: &GuestLayout) -> Result<PathBuf> {
    let GuestLayout { ram_base, load_offset, machine } = layout;
    let base = ram_base + load_offset;
    let mut flags: Vec<_> = BARE_FLAGS.split_whitespace().map(str::to_owned).collect();
    flags.push(format!("-Wl,--defsym=BASE={base:#x}"));
    match machine {
        Machine::Gic { distributor, redistributor } => flags.extend([
            "-mno-outline-atomics".to_owned(),
            format!("-DRAM_BASE={ram_base:#x}"),
            format!("-DGICD={distributor:#x}"),
            format!("-DGICR={redistributor:#x}"),
        ]),
        Machine::Pc { apic } => flags.extend([
            "-mno-red-zone".to_owned(),
            "-fcf-protection=none".to_owned(),
            format!("-DBASE_HIGH={:#x}", base >> 16),
            format!("-DAPIC={apic:#x}"),
        ]),
    }
    let own = ["start.S", "vectors.S", "steps.S", "regs.S", "machine.c"];
    let own = own.map(|name| format!("bare/{}/{name}", context.arch().name()));
    let sources: Vec<_> = own.iter().map(String::as_str).chain(["bare/main.c"]).collect();
    compile(context, "bare.elf", &sources, &flags)
}

/// The Linux guest's init, with debug information, and an initramfs that holds it and loads these modules first.
///
/// # Errors
/// What the compiler prints, and a module that the kernel does not have.
pub(super) fn agent(context: &Context, drivers: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let flags = ["-no-pie", "-O1", "-fno-omit-frame-pointer", "-pthread"].map(str::to_owned);
    let program = compile(context, "agent", &["agent.c"], &flags)?;
    let mut files = vec![GuestFile::program("/init", &without_debug_info(context.arch(), &program)?)?];
    if !drivers.is_empty() {
        let modules = load_order(&kernel(&context.packages)?.modules, drivers)?;
        let file = |(n, Module { content, .. })| GuestFile { path: format!("/modules/{n}.ko"), mode: 0o644, content };
        files.extend(modules.into_iter().enumerate().map(file));
    }
    Ok((program, guest_initramfs(&context.packages, &files)?))
}

/// Compiles sources of tests/guest. Done again when any file there, the flags or the compiler changed.
fn compile(context: &Context, name: &str, sources: &[&str], flags: &[String]) -> Result<PathBuf> {
    context.packages.ensure(&[Tool::compiler(context.arch())])?;
    let compiler = context.arch().gnu("gcc");
    let directory = paths::root().join("tests/guest");
    let version =
        Command::new(&compiler).arg("--version").output().with_context(|| format!("cannot start {compiler}"))?;
    let files = files_below(&directory)?;
    let mut parts = vec![compiler.as_bytes(), version.stdout.as_slice()];
    parts.extend(flags.iter().map(String::as_bytes));
    parts.extend(files.iter().map(Vec::as_slice));
    let target = paths::cache().join("guest-programs").join(paths::fingerprint(&parts)).join(name);
    if target.exists() {
        return Ok(target);
    }
    paths::create_atomically(&target, |partial| {
        let mut gcc = Command::new(&compiler);
        gcc.current_dir(&directory).args(["-static", "-g", "-Wall", "-Wextra", "-Werror"]);
        let output = gcc.args(flags).arg("-o").arg(partial).args(sources).output()?;
        if !output.status.success() {
            bail!("{name} does not compile:\n{}", tail(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    })?;
    Ok(target)
}

/// Content of every file, in the order of their names.
fn files_below(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    entries.sort();
    let mut files = Vec::new();
    for path in entries {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(files)
}
