//! The machine: memory, interrupt controllers and timers, serial port and vCPUs.

use super::platform::{self, Bus, Chips, Features, SERIAL_LINE};
use super::vcpu::Vcpu;
use super::{dirty, kvm_error};
use crate::error::VmError;
use crate::guest::Guest;
use crate::memory::{self, Ram};
use crate::serial::{Output, SerialConsole};
use crate::state::{MachineState, VmState};
use guest_debug::DebugCaps;
use guest_debug::kvm::HostArch;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::sync::{Arc, MutexGuard};

type DeviceState = <HostArch as Guest>::Devices;

/// A machine without anything in its memory.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Arc<Vcpu>>,
    description: MachineState<HostArch>,
    debug_caps: DebugCaps,
    chips: Chips,
    /// Their state when they were new: KVM can neither reset them nor make others.
    new_chips: DeviceState,
    serial: Arc<SerialConsole>,
    bus: Bus,
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
    pub fn new(
        cpus: u32,
        memory_mib: u64,
        saved: Option<&MachineState<HostArch>>,
        output: Output,
    ) -> Result<Self, VmError> {
        let kvm = open_kvm(cpus)?;
        let fd = platform::create_vm(&kvm, memory_mib)?;
        let features = match saved {
            Some(machine) => Features::saved(&machine.features, &kvm, &fd)?,
            None => Features::of_host(&kvm, &fd)?,
        };
        let ram = memory::allocate(&HostArch::ram(memory_mib))?;
        dirty::map_ram(&fd, &ram, false)?;
        let vcpus: Vec<_> =
            (0..cpus).map(|index| Vcpu::new(&fd, index, &features).map(Arc::new)).collect::<Result<_, _>>()?;
        let chips = Chips::new(&fd, &vcpus)?;
        let serial = Arc::new(SerialConsole::new(output)?);
        fd.register_irqfd(&serial.interrupt()?, SERIAL_LINE).map_err(kvm_error("KVM_IRQFD"))?;
        let bus = Bus::new(serial.clone());
        let description = MachineState { cpus, memory_mib, features: features.describe(&vcpus)? };
        let debug_caps = guest_debug::kvm::probe(&fd);
        let new_chips = chips.state(&fd)?;
        Ok(Self { vcpus, description, debug_caps, chips, new_chips, serial, bus, fd, ram })
    }

    /// A machine like that of a saved VM.
    ///
    /// # Errors
    ///
    /// As [`Machine::new`].
    pub fn like(saved: &MachineState<HostArch>, output: Output) -> Result<Self, VmError> {
        saved.check()?;
        Self::new(saved.cpus, saved.memory_mib, Some(saved), output)
    }

    /// What it is made of.
    pub fn description(&self) -> &MachineState<HostArch> {
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
    pub fn check(&self, saved: &MachineState<HostArch>) -> Result<(), VmError> {
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

    /// Puts vCPUs, chips and serial port in a saved state. Memory has its contents already.
    ///
    /// # Errors
    ///
    /// What this host can't take.
    pub fn set_state(&self, state: &VmState<HostArch>) -> Result<(), VmError> {
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            vcpu.set_state(state)?;
        }
        // Behind the vCPUs, for which it may have interrupts.
        self.set_device_state(&state.devices)?;
        // Behind that: it may raise its interrupt.
        self.serial.set_state(&state.serial)
    }

    /// Everything but memory as after power-on. Every vCPU is outside the guest.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn reset(&self) -> Result<(), VmError> {
        self.vcpus.iter().try_for_each(|vcpu| vcpu.reset())?;
        self.set_device_state(&self.new_chips)?;
        self.serial.reset();
        Ok(())
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }

    /// The vCPUs, in the order of their indices.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// State of interrupt controllers and timers. Every vCPU must be out of KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn device_state(&self) -> Result<DeviceState, VmError> {
        let _vcpus = self.lock_vcpus();
        self.chips.state(&self.fd)
    }

    fn set_device_state(&self, state: &DeviceState) -> Result<(), VmError> {
        let _vcpus = self.lock_vcpus();
        self.chips.set_state(&self.fd, state)
    }

    /// On arm64 KVM answers EBUSY for the GIC while anybody is in any ioctl of a vCPU, and a debugger's client may be reading
    /// registers.
    fn lock_vcpus(&self) -> Vec<MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| vcpu.lock()).collect()
    }

    /// The serial port.
    pub fn serial(&self) -> &Arc<SerialConsole> {
        &self.serial
    }

    /// What the guest reaches outside RAM.
    pub(super) fn bus(&self) -> &Bus {
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

/// Opens KVM, and looks at what every VM needs.
fn open_kvm(cpus: u32) -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|error| VmError::File { path: "/dev/kvm".into(), source: error.into() })?;
    let max_cpus = kvm.get_max_vcpus();
    if cpus as usize > max_cpus {
        return Err(VmError::Setting {
            name: "--cpus",
            value: cpus.to_string(),
            acceptable: format!("at most {max_cpus} on this host"),
        });
    }
    for (capability, name) in [(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"), (Cap::Irqfd, "KVM_CAP_IRQFD")] {
        if !kvm.check_extension(capability) {
            return Err(VmError::MissingCapability(name));
        }
    }
    Ok(kvm)
}
