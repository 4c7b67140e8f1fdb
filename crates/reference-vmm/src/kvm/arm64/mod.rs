//! KVM/arm64: GICv3, PSCI, a serial port in MMIO.

mod gic;
mod vcpu;
mod vm_fd;

pub(super) use crate::boot::Payload;
pub(super) use gic::Gic as Chips;
pub(super) use vcpu::{Features, Parts};
pub(super) use vm_fd::create as create_vm;

use super::kvm_error;
use super::machine::Machine;
use super::vcpu::Outcome;
use crate::control::Request;
use crate::error::VmError;
use crate::mmio::MmioBus;
use crate::serial::SerialConsole;
use guest_debug::DebugExit;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;

pub(super) use crate::layout::SERIAL_SPI as SERIAL_LINE;

/// What the guest reaches outside RAM, and what it asks of its firmware.
#[derive(Debug)]
pub(super) struct Bus(MmioBus);

impl Bus {
    pub(super) fn new(serial: Arc<SerialConsole>) -> Self {
        Self(MmioBus::new(serial))
    }

    /// What an exit comes to; `None` for one that can't be handled.
    pub(super) fn handle(&self, exit: &mut VcpuExit<'_>) -> Option<Outcome> {
        match exit {
            VcpuExit::MmioRead(address, data) => self.0.read(*address, data),
            VcpuExit::MmioWrite(address, data) => self.0.write(*address, data),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Some(Request::PowerOff.into()),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Some(Request::Reset.into()),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => return Some(Request::Fail(VmError::GuestCrash).into()),
            _ => return None,
        }
        Some(Outcome::ACCESS)
    }
}

/// Loads what the machine boots, and has its first vCPU start there.
pub(super) fn load(payload: &Payload, machine: &Machine) -> Result<(), VmError> {
    let mpidrs: Vec<_> = machine.vcpus().iter().map(|vcpu| vcpu.mpidr()).collect();
    let entry = payload.load(machine.ram(), &mpidrs)?;
    machine.vcpus().first().map_or(Ok(()), |boot| boot.set_entry(entry.pc, entry.fdt))
}

/// What KVM says about a debug exit.
pub(super) fn debug_exit(fd: &mut VcpuFd, exit: kvm_debug_exit_arch) -> DebugExit {
    DebugExit::from_kvm(exit, fd.get_kvm_run().flags)
}
