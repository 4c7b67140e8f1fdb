//! gdbstub's view of the architecture.
//!
//! Which registers a vCPU has is known only when a client attaches, so nothing is static here: registers are
//! numbers and bytes, and [`crate::description`] says what they mean.

use gdbstub::arch::{Arch, RegId, Registers};
use std::num::NonZeroUsize;

/// Any of ours: 64-bit addresses, and registers that are described at attach.
#[derive(Debug)]
pub(crate) enum GuestArch {}

impl Arch for GuestArch {
    type Usize = u64;
    type Registers = RegisterBlock;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;
}

/// A register by the number that the target description gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegisterNumber(pub usize);

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((Self(id), None))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The registers of a `g` or `G` packet: their bytes, `None` where a register could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RegisterBlock(pub Vec<Option<u8>>);

impl Registers for RegisterBlock {
    type ProgramCounter = u64;

    /// gdbstub asks for it in its single-thread mode only, which the server does not use.
    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(*byte));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.iter().copied().map(Some).collect();
        Ok(())
    }
}
