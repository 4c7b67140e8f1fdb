//! The target description: which registers the client sees, under which number, and where their bytes are.
//!
//! It is made at attach from what the vCPU reports, so that a client is never offered a register that the host
//! does not have. Features and register names are those that gdb documents ("AArch64 Features" in appendix G of
//! its manual).

mod features;
mod pauth;
mod sysreg_names;
mod vectors;

use crate::vm::VmError;
use guest_debug::arm64::{Pstate, Reg, SysReg};
use std::collections::BTreeMap;

/// Number of the stack pointer.
pub(crate) const SP: usize = 31;
/// Number of the program counter.
pub(crate) const PC: usize = 32;
/// Number of the frame pointer, X29.
pub(crate) const FP: usize = 29;
/// Number of x30, the link register.
pub(crate) const LR: usize = 30;

/// Values of vCPU registers, as the VM gave them.
pub(crate) type Values = BTreeMap<Reg, Vec<u8>>;

/// Where the bytes of a described register come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The first bytes of a vCPU register; the rest of it is left alone by writes.
    Register(Reg),
    /// The stack pointer that the current exception level uses.
    StackPointer,
    /// A constant that can't be written.
    Constant(u64),
    /// Bits of a pointer that hold an authentication code.
    PauthMask(pauth::Mask),
}

/// A described register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The client's name for it.
    pub name: String,
    /// Its length in bytes.
    pub size: usize,
    /// Where it comes from.
    pub source: Source,
}

/// All described registers; a register's number is its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    entries: Vec<Entry>,
    general: usize,
    xml: String,
}

impl Description {
    /// Describes a vCPU that has these registers, with the values that don't change while it exists: the
    /// identification registers and the vector lengths.
    pub(crate) fn new(regs: &[Reg], values: &Values) -> Self {
        let mut builder = Builder::default();
        features::core(&mut builder);
        let general = if regs.contains(&Reg::Z(0)) {
            vectors::sve(&mut builder, vectors::vector_length(values))
        } else if regs.contains(&Reg::V(0)) {
            vectors::fpu(&mut builder)
        } else {
            builder.entries.len()
        };
        if pauth::has_address_authentication(values) && regs.contains(&Reg::Sys(SysReg::TCR_EL1)) {
            pauth::feature(&mut builder);
        }
        if regs.contains(&Reg::Sys(SysReg::TPIDR_EL0)) {
            features::tls(&mut builder);
        }
        features::system(&mut builder, regs);
        // Without an OS ABI gdb takes the target for a Linux process, and looks for the frame of a signal handler at every stop:
        // six reads of memory, each a round trip. A file that says which ABI it is for has precedence.
        let xml = format!(
            "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n\
             <architecture>aarch64</architecture>\n<osabi>none</osabi>\n{}</target>\n",
            builder.xml
        );
        Self { entries: builder.entries, general, xml }
    }

    /// The registers whose values [`Self::new`] looks at.
    pub(crate) const IDENTITY: [Reg; 3] =
        [Reg::SveVls, Reg::Sys(SysReg::ID_AA64ISAR1_EL1), Reg::Sys(SysReg::ID_AA64ISAR2_EL1)];

    /// target.xml.
    pub(crate) fn xml(&self) -> &str {
        &self.xml
    }

    /// The register of that number.
    pub(crate) fn entry(&self, number: usize) -> Option<&Entry> {
        self.entries.get(number)
    }

    /// The number of the register that the client knows by this name.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// The registers of the `g` packet.
    pub(crate) fn general(&self) -> &[Entry] {
        self.entries.get(..self.general).unwrap_or_default()
    }
}

impl Entry {
    /// The vCPU registers that reading this one needs.
    pub(crate) fn reads(&self) -> Vec<Reg> {
        match self.source {
            Source::Register(reg) => vec![reg],
            Source::StackPointer => vec![Reg::Pstate, Reg::SpEl0, Reg::SpEl1],
            Source::Constant(_) => Vec::new(),
            Source::PauthMask(_) => vec![Reg::Sys(SysReg::TCR_EL1)],
        }
    }

    /// The register's bytes, if the values it needs are there.
    pub(crate) fn compose(&self, values: &Values) -> Option<Vec<u8>> {
        match self.source {
            Source::Register(reg) => values.get(&reg)?.get(..self.size).map(<[u8]>::to_vec),
            Source::StackPointer => {
                let pstate = Pstate(to_u64(values.get(&Reg::Pstate)?)?);
                values.get(&stack_pointer(pstate)).cloned()
            }
            Source::Constant(value) => Some(value.to_le_bytes().to_vec()),
            Source::PauthMask(mask) => {
                let tcr = to_u64(values.get(&Reg::Sys(SysReg::TCR_EL1))?)?;
                Some(mask.bits(tcr).to_le_bytes().to_vec())
            }
        }
    }

    /// The vCPU registers that must be read before this one is written.
    pub(crate) fn reads_for_write(&self) -> Vec<Reg> {
        match self.source {
            Source::Register(reg) if reg.size() != self.size => vec![reg],
            Source::StackPointer => vec![Reg::Pstate],
            _ => Vec::new(),
        }
    }

    /// The vCPU register to write, and its new value, for these bytes from a client.
    ///
    /// # Errors
    ///
    /// [`VmError::Unsupported`] for a register that can't be written, [`VmError::Other`] for a wrong length.
    pub(crate) fn decompose(&self, bytes: &[u8], values: &Values) -> Result<(Reg, Vec<u8>), VmError> {
        if bytes.len() != self.size {
            let message = format!("{} has {} bytes, the client sent {}", self.name, self.size, bytes.len());
            return Err(VmError::Other(message));
        }
        let missing = || VmError::Other(format!("{}: a register that it depends on can't be read", self.name));
        match self.source {
            Source::Register(reg) if reg.size() == self.size => Ok((reg, bytes.to_vec())),
            Source::Register(reg) => {
                let mut value = values.get(&reg).cloned().ok_or_else(missing)?;
                value.get_mut(..self.size).ok_or_else(missing)?.copy_from_slice(bytes);
                Ok((reg, value))
            }
            Source::StackPointer => {
                let pstate = values.get(&Reg::Pstate).and_then(|bytes| to_u64(bytes)).ok_or_else(missing)?;
                Ok((stack_pointer(Pstate(pstate)), bytes.to_vec()))
            }
            Source::Constant(_) | Source::PauthMask(_) => {
                Err(VmError::Unsupported(format!("{} can't be written", self.name)))
            }
        }
    }
}

/// The register that SP means (Arm ARM, D1.4.2): SP_EL0 at EL0 and wherever PSTATE.SP is 0.
fn stack_pointer(pstate: Pstate) -> Reg {
    if pstate.el() == 0 || !pstate.sp_sel() { Reg::SpEl0 } else { Reg::SpEl1 }
}

fn to_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// Collects entries and the XML that describes them.
#[derive(Debug, Default)]
struct Builder {
    entries: Vec<Entry>,
    xml: String,
}

impl Builder {
    fn open(&mut self, feature: &str) {
        self.line(&format!("<feature name=\"{feature}\">"));
    }

    fn close(&mut self) {
        self.line("</feature>");
    }

    fn line(&mut self, text: &str) {
        self.xml.push_str(text);
        self.xml.push('\n');
    }

    /// Adds a register; `attributes` is what comes after its size.
    fn register(&mut self, name: impl Into<String>, size: usize, source: Source, attributes: &str) {
        let (name, number, bits) = (name.into(), self.entries.len(), 8 * size);
        self.line(&format!("<reg name=\"{name}\" bitsize=\"{bits}\" regnum=\"{number}\" {attributes}/>"));
        self.entries.push(Entry { name, size, source });
    }
}

#[cfg(test)]
mod tests;
