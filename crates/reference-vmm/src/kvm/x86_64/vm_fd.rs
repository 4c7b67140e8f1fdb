//! The machine: memory, interrupt controllers, timer, serial port and vCPUs.

use super::kvm_error;
use super::layout::{KVM_IDENTITY_MAP, KVM_TSS, SERIAL_IRQ};
use super::ports::Ports;
use super::vcpu::Vcpu;
use crate::error::VmError;
use crate::memory::{self, Ram};
use crate::serial::{Output, SerialConsole};
use guest_debug::DebugCaps;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A machine without anything in its memory.
#[derive(Debug)]
pub(super) struct Machine {
    vcpus: Vec<Arc<Vcpu>>,
    debug_caps: DebugCaps,
    serial: Arc<SerialConsole>,
    ports: Ports,
    /// Interrupt controllers and timer when they were new.
    chips: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    fd: VmFd,
    /// Last, KVM maps it into the guest.
    ram: Arc<Ram>,
}

impl Machine {
    /// Makes a machine; the guest's console writes to `output`.
    ///
    /// # Errors
    ///
    /// Whatever KVM on this host refuses.
    pub(super) fn new(cpus: u32, memory_mib: u64, output: Output) -> Result<Self, VmError> {
        let kvm = Kvm::new().map_err(|error| VmError::File { path: "/dev/kvm".into(), source: error.into() })?;
        for (capability, name) in [
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(VmError::MissingCapability(name));
            }
        }
        let fd = kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(KVM_TSS as usize).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
        let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(timer).map_err(kvm_error("KVM_CREATE_PIT2"))?;
        let ram = memory::allocate_at(0, memory_mib)?;
        map_ram(&fd, &ram)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
        let vcpus: Vec<_> =
            (0..cpus).map(|index| Vcpu::new(&fd, index, cpuid.clone()).map(Arc::new)).collect::<Result<_, _>>()?;
        let serial = Arc::new(SerialConsole::new(output)?);
        fd.register_irqfd(&serial.interrupt()?, SERIAL_IRQ).map_err(kvm_error("KVM_IRQFD"))?;
        let chips = CHIPS.map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            fd.get_irqchip(&mut chip).map_err(kvm_error("KVM_GET_IRQCHIP")).map(|()| chip)
        });
        Ok(Self {
            vcpus,
            debug_caps: guest_debug::kvm::probe(&fd),
            ports: Ports(serial.clone()),
            serial,
            chips: chips.into_iter().collect::<Result<_, _>>()?,
            timer: fd.get_pit2().map_err(kvm_error("KVM_GET_PIT2"))?,
            fd,
            ram,
        })
    }

    /// As after power-on, but for memory. Every vCPU is outside the guest.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub(super) fn reset(&self) -> Result<(), VmError> {
        self.vcpus.iter().try_for_each(|vcpu| vcpu.reset())?;
        for chip in &self.chips {
            self.fd.set_irqchip(chip).map_err(kvm_error("KVM_SET_IRQCHIP"))?;
        }
        self.fd.set_pit2(&self.timer).map_err(kvm_error("KVM_SET_PIT2"))?;
        self.serial.reset();
        Ok(())
    }

    /// What the host can do for a debugger.
    pub(super) fn debug_caps(&self) -> DebugCaps {
        self.debug_caps
    }

    /// The vCPUs, in the order of their indices.
    pub(super) fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// The serial port.
    pub(super) fn serial(&self) -> &Arc<SerialConsole> {
        &self.serial
    }

    /// The devices by port.
    pub(super) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Guest memory.
    pub(super) fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}

#[expect(unsafe_code, reason = "hands the mapping to KVM")]
fn map_ram(vm: &VmFd, ram: &Ram) -> Result<(), VmError> {
    let host = ram.get_host_address(GuestAddress(0));
    let host = host.map_err(|error| VmError::Write { what: "RAM", reason: error.to_string() })?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory::size(ram),
        userspace_addr: host as u64,
    };
    // SAFETY: the region is mapped, with that size, for as long as the machine that owns both lives.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))
}
