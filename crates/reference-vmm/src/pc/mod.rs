//! A small PC: what an x86_64 guest finds.
//!
//! Interrupt controllers and timer in the kernel (PIC, IOAPIC, local APICs, PIT), a serial port at COM1, RAM around the
//! devices; see [`layout`].

#[cfg(target_arch = "x86_64")]
mod acpi;
#[cfg(target_arch = "x86_64")]
mod boot;
pub mod layout;
#[cfg(target_arch = "x86_64")]
mod ports;

#[cfg(target_arch = "x86_64")]
pub(crate) use boot::{EntryPoint, Payload};
#[cfg(target_arch = "x86_64")]
pub(crate) use ports::Ports;
