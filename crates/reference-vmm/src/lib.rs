//! The smallest VMM that is honest: boots a Linux kernel, or a bare-metal program, on KVM, and lets a debugger at it through
//! `guest-debug`.
//!
//! It exists to show and to test that crate. Interrupt controllers are in the kernel, and one device is here, a serial port.
//! On arm64 the guest finds a GICv3, PSCI and a device tree, see [`layout`] for the address map and [`kernel`] for what it
//! boots; on x86_64 a small [PC](pc).
//!
//! * [`guest`]: what is different between the two.
//! * [`boot`], [`kernel`], [`fdt`], [`layout`], [`memory`]: what is in an arm64 guest's memory when vCPU 0 starts.
//! * [`serial`], [`mmio`], [`console`]: the devices.
//! * [`control`], [`kick`], [`signals`]: who may run guest code, and how a vCPU is got out of it.
//! * [`gdb`]: the gdb server's thread.
//! * [`state`], [`snapshot`], [`migration`]: a VM as data, in a directory and on its way to another process.
//! * [`inspect`]: a VM that was saved, looked at without running it.
//! * [`operations`], [`control_socket`]: what can be asked of a running VM.
//! * `kvm`: the VM itself, on hosts of either architecture. Everything else compiles and is tested on every host.

pub mod arrival;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod control_socket;
pub mod error;
pub mod fdt;
pub mod gdb;
pub mod guest;
pub mod inspect;
pub mod kernel;
pub mod kick;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod migration;
pub mod mmio;
pub mod operations;
pub mod pc;
pub mod run;
pub mod serial;
pub mod signals;
pub mod snapshot;
pub mod state;
