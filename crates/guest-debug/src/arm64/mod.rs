//! What the architecture defines: registers, syndromes, instructions, exceptions, translation tables.
//!
//! Pure functions and plain types, compiled and tested on every host. Section numbers are those of the
//! Arm Architecture Reference Manual for A-profile, DDI 0487.

pub mod dbgreg;
pub mod exception;
pub mod insn;
pub mod pstate;
mod reg;
pub mod syndrome;
pub mod translate;
pub mod watch;

pub use dbgreg::{BreakpointSlot, HwDebug, WatchSlot};
pub use pstate::Pstate;
pub use reg::{Reg, SysReg};
