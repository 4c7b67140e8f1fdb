//! The VM on KVM/x86_64: a small PC.
//!
//! Interrupt controllers and timer in the kernel (PIC, IOAPIC, local APICs, PIT), a serial port at COM1, one region of RAM;
//! see [`layout`]. It boots and debugs. Snapshots and migrations of it are not there yet.

mod acpi;
mod boot;
mod debug;
pub mod layout;
mod machine;
mod ports;
mod vcpu;
mod vm;

pub use vcpu::Vcpu;
pub use vm::Vm;

use crate::error::VmError;
use vmm_sys_util::errno;

/// For `map_err` after a KVM call.
fn kvm_error(operation: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Os { operation, source: error.into() }
}
