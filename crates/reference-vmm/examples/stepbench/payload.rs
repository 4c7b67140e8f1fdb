//! Guests without an operating system: machine code at the start of RAM.

use crate::Error;
use guest_debug::DebugVcpu;
use guest_debug::arm64::Reg;
use reference_vmm::config::{DebugMode, VmConfig};
use reference_vmm::kvm::Vm;
use std::io::{self, Write};
use vmm_sys_util::tempfile::TempFile;

/// Where the code is.
pub(crate) const BASE: u64 = reference_vmm::layout::FLAT_BASE;
/// Instructions that are stepped over in a round.
pub(crate) const STEPS: u64 = 4000;
/// Memory that the code reads and writes, in X2.
const DATA: u64 = BASE + 0x10_0000;

/// `b .`
const STAY: u32 = 0x1400_0000;
/// `add x0, x0, #1`
const ADD: u32 = 0x9100_0400;
/// `ldr x1, [x2]`
const LOAD: u32 = 0xf940_0041;
/// `str x1, [x2, #8]`
const STORE: u32 = 0xf900_0441;
/// `mrs x4, sp_el0`, with which a kernel finds its current task.
const MRS_SP_EL0: u32 = 0xd538_4104;
/// `b .+4`
const BRANCH: u32 = 0x1400_0001;
/// `cmp x0, #0`
const COMPARE: u32 = 0xf100_001f;

/// A straight line of instructions.
pub(crate) struct Payload {
    /// What the instructions are.
    pub(crate) name: &'static str,
    code: Vec<u8>,
}

/// Everything that is stepped through.
pub(crate) fn all() -> [Payload; 3] {
    let mix = [ADD, LOAD, COMPARE, BRANCH, STORE, MRS_SP_EL0, ADD, LOAD];
    [line("additions", &[ADD]), line("loads and stores", &[LOAD, STORE]), line("a kernel's mix", &mix)]
}

fn line(name: &'static str, pattern: &[u32]) -> Payload {
    Payload::new(name, pattern.iter().copied().cycle().take(STEPS as usize).chain([STAY]))
}

impl Payload {
    pub(crate) fn new(name: &'static str, words: impl IntoIterator<Item = u32>) -> Self {
        Self { name, code: words.into_iter().flat_map(u32::to_le_bytes).collect() }
    }

    /// A VM with it. All VMs here have the same shape: one vCPU, GIC, timer, serial port.
    pub(crate) fn vm(&self, debug: DebugMode) -> Result<Vm, Error> {
        let kernel = TempFile::new()?;
        kernel.as_file().write_all(&self.code)?;
        let config = VmConfig { memory_mib: 16, debug, ..VmConfig::new(kernel.as_path()) };
        Ok(Vm::new(&config, Box::new(io::sink()))?)
    }
}

/// Puts a vCPU at the start of the code.
pub(crate) fn rewind(vcpu: &dyn DebugVcpu) -> Result<(), Error> {
    vcpu.set_u64(Reg::X(2), DATA)?;
    Ok(vcpu.set_u64(Reg::Pc, BASE)?)
}

/// Whether the vCPU has stepped over all of the code.
pub(crate) fn check_end(vcpu: &dyn DebugVcpu) -> Result<(), Error> {
    let (pc, end) = (vcpu.get_u64(Reg::Pc)?, BASE + 4 * STEPS);
    if pc == end { Ok(()) } else { Err(format!("the steps ended at {pc:#x} instead of {end:#x}").into()) }
}
