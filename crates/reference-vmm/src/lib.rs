//! The smallest VMM that is honest: boots an arm64 Linux kernel, or a bare-metal program, on KVM, and lets a
//! debugger at it through `guest-debug`.
//!
//! It exists to show and to test that crate. One interrupt controller (GICv3 in the kernel), one device (a serial
//! port), one region of RAM; see [`layout`] for the address map and [`kernel`] for what it boots. Power-off and reset go
//! through PSCI.
//!
//! * [`boot`], [`kernel`], [`fdt`], [`layout`], [`memory`]: what is in guest memory when vCPU 0 starts.
//! * [`serial`], [`mmio`], [`console`]: the devices.
//! * [`control`], [`kick`], [`signals`]: who may run guest code, and how a vCPU is got out of it.
//! * [`gdb`]: the gdb server's thread.
//! * [`state`], [`snapshot`], [`migration`]: a VM as data, in a directory and on its way to another process.
//! * [`inspect`]: a VM that was saved, looked at without running it.
//! * [`operations`], [`control_socket`]: what can be asked of a running VM.
//! * `kvm`: the VM itself on arm64. `pc`: the VM itself on x86_64, which boots and debugs, and is neither saved nor moved yet.
//!   Everything else compiles and is tested on every host.

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
pub mod inspect;
pub mod kernel;
pub mod kick;
#[cfg(target_arch = "aarch64")]
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod migration;
pub mod mmio;
pub mod operations;
#[cfg(target_arch = "x86_64")]
pub mod pc;
pub mod run;
pub mod serial;
pub mod signals;
pub mod snapshot;
pub mod state;
