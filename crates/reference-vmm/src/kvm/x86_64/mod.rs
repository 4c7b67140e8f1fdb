//! KVM/x86_64: a PC with its interrupt controllers and timers in the kernel; see [`crate::pc`].

mod chips;
mod convert;
mod features;
mod msrs;
mod vcpu;
mod vm_fd;

pub(super) use crate::pc::Payload;
pub(super) use chips::Chips;
pub(super) use features::Features;
pub(super) use vcpu::Parts;
pub(super) use vm_fd::create as create_vm;

use super::kvm_error;
use super::machine::Machine;
use super::vcpu::Outcome;
use crate::control::Request;
use crate::error::VmError;
use crate::pc::Ports;
use crate::serial::SerialConsole;
use guest_debug::x86_64::stop::DebugExitArch;
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;

pub(super) use crate::pc::layout::SERIAL_IRQ as SERIAL_LINE;

/// What the guest reaches outside RAM.
#[derive(Debug)]
pub(super) struct Bus(Ports);

impl Bus {
    pub(super) fn new(serial: Arc<SerialConsole>) -> Self {
        Self(Ports::new(serial))
    }

    /// What an exit comes to; `None` for one that can't be handled.
    pub(super) fn handle(&self, exit: &mut VcpuExit<'_>) -> Option<Outcome> {
        match exit {
            VcpuExit::IoIn(port, data) => self.0.read(*port, data),
            VcpuExit::IoOut(port, data) => return Some(Outcome::access_for(self.0.write(*port, data))),
            // A PC's kernel looks for devices that are not there.
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::MmioWrite(..) => {}
            // A triple fault.
            VcpuExit::Shutdown => return Some(Request::Reset.into()),
            _ => return None,
        }
        Some(Outcome::ACCESS)
    }
}

/// Loads what the machine boots, and has its first vCPU start there.
pub(super) fn load(payload: &Payload, machine: &Machine) -> Result<(), VmError> {
    let entry = payload.load(machine.ram(), machine.cpus())?;
    machine.vcpus().first().map_or(Ok(()), |boot| boot.set_entry(entry))
}

/// What KVM says about a debug exit.
pub(super) fn debug_exit(_: &mut VcpuFd, exit: kvm_debug_exit_arch) -> DebugExitArch {
    exit.into()
}
