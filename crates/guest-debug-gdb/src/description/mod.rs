//! The target description: which registers the client sees, under which number, and where their bytes are.
//!
//! It is made at attach from what the vCPU reports, so that a client is never offered a register that the host
//! does not have. Features and register names are those that gdb documents (appendix G of its manual).

mod arm64;
mod x86_64;

use crate::vm::VmError;
use guest_debug::{Arch, Register as _};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Values of vCPU registers, as the VM gave them.
pub(crate) type Values<A> = BTreeMap<<A as Arch>::Reg, Vec<u8>>;

/// An architecture whose guests gdb can debug: [`guest_debug::Arm64`] or [`guest_debug::X86_64`].
pub trait GdbArch: Described<Self> + Arch {}

impl<A: Described<A> + Arch> GdbArch for A {}

/// What the server has to know of an architecture.
pub trait Described<A: Arch>: Sized {
    /// What of a description is no register of the vCPU.
    type Special: Copy + Debug + Eq;

    /// Registers that a client asks for at every stop: frame pointer, link register if there is one, stack pointer, program
    /// counter.
    const EXPEDITED: &[usize];
    /// The registers whose values [`Self::describe`] looks at.
    const IDENTITY: &[A::Reg];
    /// Those that [`Self::state`] looks at.
    const STATE: &[A::Reg];
    /// The only kind of breakpoint in `Z0` and `Z1`, which is the length of a breakpoint instruction.
    const BREAKPOINT_KIND: u64;
    /// For lldb. No operating system: the guest's is its own business, and lldb would look for a dynamic linker.
    const TRIPLE: &str;

    /// The registers of a vCPU that can't list them.
    fn least() -> Vec<A::Reg>;

    /// Describes a vCPU that has these registers, with the values that don't change while it exists.
    fn describe(regs: &[A::Reg], values: &Values<A>) -> Description<A>
    where
        A: GdbArch;

    /// What mode a vCPU is in, for a person.
    fn state(values: &Values<A>) -> Option<String>;

    /// The session's number of a register for expressions, if they can read it.
    fn expression_number(source: Source<A>) -> Option<u16>
    where
        A: GdbArch;

    /// The vCPU registers that reading it needs.
    fn reads(special: Self::Special) -> Vec<A::Reg>;

    /// Its bytes, if the values it needs are there.
    fn compose(special: Self::Special, values: &Values<A>) -> Option<Vec<u8>>;

    /// The vCPU registers that must be read before it is written.
    fn reads_for_write(special: Self::Special) -> Vec<A::Reg>;

    /// The vCPU register that is meant when it is written. `None` if it can't be.
    fn target(special: Self::Special, values: &Values<A>) -> Option<Result<A::Reg, Missing>>;
}

/// A register that another one depends on can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing;

/// Where the bytes of a described register come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<A: GdbArch> {
    /// The first bytes of a vCPU register; the rest of it is left alone by writes.
    Register(A::Reg),
    /// A constant that can't be written.
    Constant(u64),
    /// Something that depends on other registers.
    Special(A::Special),
}

/// A described register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<A: GdbArch> {
    /// The client's name for it.
    pub(crate) name: String,
    /// Its length in bytes.
    pub(crate) size: usize,
    /// Where it comes from.
    pub(crate) source: Source<A>,
}

/// All described registers; a register's number is its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description<A: GdbArch> {
    entries: Vec<Entry<A>>,
    general: usize,
    xml: String,
}

impl<A: GdbArch> Description<A> {
    /// `architecture` is gdb's name of it, `general` the number of registers in the `g` packet.
    fn new(architecture: &str, general: usize, builder: Builder<A>) -> Self {
        // Without an OS ABI gdb takes the target for a Linux process, and looks for the frame of a signal handler at every stop:
        // six reads of memory, each a round trip. A file that says which ABI it is for has precedence.
        let xml = format!(
            "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n\
             <architecture>{architecture}</architecture>\n<osabi>none</osabi>\n{}</target>\n",
            builder.xml
        );
        Self { entries: builder.entries, general, xml }
    }

    /// target.xml.
    pub(crate) fn xml(&self) -> &str {
        &self.xml
    }

    /// The register of that number.
    pub(crate) fn entry(&self, number: usize) -> Option<&Entry<A>> {
        self.entries.get(number)
    }

    /// The number of the register that the client knows by this name.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// The registers of the `g` packet.
    pub(crate) fn general(&self) -> &[Entry<A>] {
        self.entries.get(..self.general).unwrap_or_default()
    }
}

impl<A: GdbArch> Entry<A> {
    /// The vCPU registers that reading this one needs.
    pub(crate) fn reads(&self) -> Vec<A::Reg> {
        match self.source {
            Source::Register(reg) => vec![reg],
            Source::Constant(_) => Vec::new(),
            Source::Special(special) => A::reads(special),
        }
    }

    /// The register's bytes, if the values it needs are there.
    pub(crate) fn compose(&self, values: &Values<A>) -> Option<Vec<u8>> {
        match self.source {
            Source::Register(reg) => values.get(&reg)?.get(..self.size).map(<[u8]>::to_vec),
            Source::Constant(value) => Some(value.to_le_bytes().to_vec()),
            Source::Special(special) => A::compose(special, values),
        }
    }

    /// The vCPU registers that must be read before this one is written.
    pub(crate) fn reads_for_write(&self) -> Vec<A::Reg> {
        match self.source {
            Source::Register(reg) if reg.size() != self.size => vec![reg],
            Source::Special(special) => A::reads_for_write(special),
            _ => Vec::new(),
        }
    }

    /// The vCPU register to write, and its new value, for these bytes from a client.
    ///
    /// # Errors
    ///
    /// [`VmError::Unsupported`] for a register that can't be written, [`VmError::Other`] for a wrong length.
    pub(crate) fn decompose(&self, bytes: &[u8], values: &Values<A>) -> Result<(A::Reg, Vec<u8>), VmError> {
        if bytes.len() != self.size {
            let message = format!("{} has {} bytes, the client sent {}", self.name, self.size, bytes.len());
            return Err(VmError::Other(message));
        }
        let missing = || VmError::Other(format!("{}: a register that it depends on can't be read", self.name));
        let fixed = || VmError::Unsupported(format!("{} can't be written", self.name));
        match self.source {
            Source::Register(reg) if reg.size() == self.size => Ok((reg, bytes.to_vec())),
            Source::Register(reg) => {
                let mut value = values.get(&reg).cloned().ok_or_else(missing)?;
                value.get_mut(..self.size).ok_or_else(missing)?.copy_from_slice(bytes);
                Ok((reg, value))
            }
            Source::Constant(_) => Err(fixed()),
            Source::Special(special) => match A::target(special, values) {
                Some(reg) => Ok((reg.map_err(|Missing| missing())?, bytes.to_vec())),
                None => Err(fixed()),
            },
        }
    }
}

fn to_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// Collects entries and the XML that describes them.
#[derive(Debug)]
struct Builder<A: GdbArch> {
    entries: Vec<Entry<A>>,
    xml: String,
}

impl<A: GdbArch> Default for Builder<A> {
    fn default() -> Self {
        Self { entries: Vec::new(), xml: String::new() }
    }
}

impl<A: GdbArch> Builder<A> {
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
    fn register(&mut self, name: impl Into<String>, size: usize, source: Source<A>, attributes: &str) {
        let (name, number, bits) = (name.into(), self.entries.len(), 8 * size);
        self.line(&format!("<reg name=\"{name}\" bitsize=\"{bits}\" regnum=\"{number}\" {attributes}/>"));
        self.entries.push(Entry { name, size, source });
    }
}
