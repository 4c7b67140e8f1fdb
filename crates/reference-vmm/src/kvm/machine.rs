//! The machine: memory, interrupt controller, serial port and vCPUs.

use super::gic::Gic;
use super::kvm_error;
use super::vcpu::{Vcpu, VcpuFeatures};
use super::{dirty, vm_fd};
use crate::error::VmError;
use crate::layout::SERIAL_SPI;
use crate::memory::{self, Ram};
use crate::mmio::MmioBus;
use crate::serial::{Output, SerialConsole};
use crate::state::{GicState, MachineState, VmState};
use guest_debug::DebugCaps;
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::{Arc, MutexGuard};

/// A machine without anything in its memory.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Arc<Vcpu>>,
    description: MachineState,
    debug_caps: DebugCaps,
    gic: Gic,
    serial: Arc<SerialConsole>,
    bus: MmioBus,
    fd: VmFd,
    /// Last, KVM maps it into the guest.
    ram: Arc<Ram>,
}

impl Machine {
    /// Makes a machine; the guest's console writes to `output`. Its vCPUs have everything that KVM offers, or what
    /// those of a saved VM had.
    ///
    /// # Errors
    ///
    /// [`VmError::Setting`] or [`VmError::State`] for what this host does not have, and whatever KVM refuses.
    pub fn new(cpus: u32, memory_mib: u64, saved: Option<&MachineState>, output: Output) -> Result<Self, VmError> {
        let fd = vm_fd::create(cpus, memory_mib)?;
        let features = match saved {
            Some(machine) => VcpuFeatures::saved(machine, &fd)?,
            None => VcpuFeatures::of_host(&fd),
        };
        let ram = memory::allocate(memory_mib)?;
        dirty::map_ram(&fd, &ram, false)?;
        let vcpus: Vec<_> =
            (0..cpus).map(|index| Vcpu::new(&fd, index, &features).map(Arc::new)).collect::<Result<_, _>>()?;
        let mpidrs: Vec<_> = vcpus.iter().map(|vcpu| vcpu.mpidr()).collect();
        let gic = Gic::new(&fd, &mpidrs)?;
        let serial = Arc::new(SerialConsole::new(output)?);
        fd.register_irqfd(&serial.interrupt()?, SERIAL_SPI).map_err(kvm_error("KVM_IRQFD"))?;
        let bus = MmioBus::new(serial.clone());
        let description = MachineState {
            cpus,
            memory_mib,
            vcpu_features: features.words().to_vec(),
            sve_vls: vcpus.first().map_or(Ok(None), |vcpu| vcpu.sve_vls())?,
        };
        let debug_caps = guest_debug::kvm::probe(&fd);
        Ok(Self { vcpus, description, debug_caps, gic, serial, bus, fd, ram })
    }

    /// A machine like that of a saved VM.
    ///
    /// # Errors
    ///
    /// As [`Machine::new`].
    pub fn like(saved: &MachineState, output: Output) -> Result<Self, VmError> {
        saved.check()?;
        Self::new(saved.cpus, saved.memory_mib, Some(saved), output)
    }

    /// What it is made of.
    pub fn description(&self) -> &MachineState {
        &self.description
    }

    /// What the host can do for a debugger.
    pub fn debug_caps(&self) -> DebugCaps {
        self.debug_caps
    }

    /// Whether a saved VM fits into it.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] when it was made for another one.
    pub fn check(&self, saved: &MachineState) -> Result<(), VmError> {
        let own = &self.description;
        if own == saved {
            return Ok(());
        }
        Err(VmError::State {
            field: "machine".to_owned(),
            value: format!("{saved:?}"),
            acceptable: format!("{own:?}, for which this machine was made"),
        })
    }

    /// Puts vCPUs, interrupt controller and serial port in a saved state.
    ///
    /// # Errors
    ///
    /// What this host can't take.
    pub fn set_state(&self, state: &VmState) -> Result<(), VmError> {
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            vcpu.set_state(state)?;
        }
        self.set_gic_state(&state.gic)?;
        // Behind the GIC: it may raise its interrupt.
        self.serial.set_state(&state.serial)
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }

    /// The vCPUs, in the order of their indices.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// Affinities of the vCPUs.
    pub fn mpidrs(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.mpidr()).collect()
    }

    /// State of the interrupt controller. Every vCPU must be out of KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn gic_state(&self) -> Result<GicState, VmError> {
        let _vcpus = self.lock_vcpus();
        self.gic.state()
    }

    /// Writes the interrupt controller's state. Every vCPU must be out of KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn set_gic_state(&self, state: &GicState) -> Result<(), VmError> {
        let _vcpus = self.lock_vcpus();
        self.gic.set_state(state)
    }

    /// KVM answers EBUSY for the GIC while anybody is in any ioctl of a vCPU, and a debugger's client may be reading
    /// registers.
    fn lock_vcpus(&self) -> Vec<MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| vcpu.lock()).collect()
    }

    /// The serial port.
    pub fn serial(&self) -> &Arc<SerialConsole> {
        &self.serial
    }

    /// The devices by address.
    pub(super) fn bus(&self) -> &MmioBus {
        &self.bus
    }

    /// KVM's VM.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}
