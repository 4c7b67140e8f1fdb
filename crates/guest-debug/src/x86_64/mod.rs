//! What the architecture defines for x86_64: debug registers, watches, debug exits, paging, register names.
//!
//! Pure functions and plain types, compiled and tested on every host. "SDM" is the Intel 64 and
//! IA-32 Architectures Software Developer's Manual, volume 3 (its chapter 17 "Debug, Branch Profile..." is chapter 18 in newer
//! editions); "APM" is the AMD64 Architecture Programmer's Manual, volume 2.

pub mod dbgreg;
pub mod fpu;
pub mod idt;
pub mod insn;
pub mod mode;
mod reg;
pub mod slot;
pub mod stop;
pub mod translate;
mod va;
pub mod watch;
pub mod xsave;

pub use dbgreg::{Dr6, Dr7};
pub use reg::Reg;
pub use slot::{HwDebug, Slot};
pub use va::VaBits;
