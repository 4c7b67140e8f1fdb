//! The VM: owns memory, interrupt controller, serial port and vCPUs, and runs them.

use super::debug::{self, Debugger};
use super::gic::{Gic, GicState};
use super::kvm_error;
use super::vcpu::Vcpu;
use crate::boot::Payload;
use crate::config::{DebugMode, VmConfig};
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick;
use crate::layout::{self, RAM_BASE, SERIAL_SPI};
use crate::memory::{self, Ram};
use crate::mmio::MmioBus;
use crate::serial::{Output, SerialConsole};
use guest_debug::DebugSession;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::Arc;
use std::thread;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// A VM, ready to run.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<Arc<Vcpu>>,
    gic: Gic,
    /// The GIC's state when it was new.
    gic_reset: GicState,
    serial: Arc<SerialConsole>,
    bus: MmioBus,
    control: Arc<Control>,
    payload: Payload,
    /// Of the VM, and not of a client's connection; none where the VM was made without a debugger.
    session: Option<Arc<DebugSession>>,
    _vm: VmFd,
    /// Last, KVM maps it into the guest.
    ram: Arc<Ram>,
}

impl Vm {
    /// Makes a VM with its payload loaded; the guest's console writes to `output`.
    ///
    /// # Errors
    ///
    /// A setting outside its range, a file that can't be used, or something that KVM on this host can't do.
    pub fn new(config: &VmConfig, output: Output) -> Result<Self, VmError> {
        config.check()?;
        let payload = Payload::open(config)?;
        let vm = create_vm(config)?;
        let ram = memory::allocate(config.memory_mib)?;
        map_ram(&vm, &ram, config.memory_mib << 20)?;

        let vcpus: Vec<_> = (0..config.cpus).map(|i| Vcpu::new(&vm, i).map(Arc::new)).collect::<Result<_, _>>()?;
        let mpidrs: Vec<_> = vcpus.iter().map(|vcpu| vcpu.mpidr()).collect();
        let gic = Gic::new(&vm, &mpidrs)?;
        let gic_reset = gic.state()?;

        let serial = Arc::new(SerialConsole::new(output)?);
        vm.register_irqfd(&serial.interrupt()?, SERIAL_SPI).map_err(kvm_error("KVM_IRQFD"))?;
        let (bus, control) = (MmioBus::new(serial.clone()), Arc::new(Control::new(config.cpus)));
        let session = match config.debug {
            DebugMode::Off => None,
            mode => Some(debug::session(&vm, ram.clone(), &vcpus, mode == DebugMode::Hold)?),
        };
        let vm = Self { vcpus, gic, gic_reset, serial, bus, control, payload, session, _vm: vm, ram };
        vm.load()?;
        Ok(vm)
    }

    /// The serial port, for input.
    pub fn serial(&self) -> &Arc<SerialConsole> {
        &self.serial
    }

    /// For ending the VM from another thread.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The vCPUs, in the order of their indices.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The debug session, if the VM was made with one.
    pub fn session(&self) -> Option<&Arc<DebugSession>> {
        self.session.as_ref()
    }

    /// Runs the guest until it powers itself off, or [`Request::Quit`].
    ///
    /// # Errors
    ///
    /// What ended the VM otherwise.
    pub fn run(&self) -> Result<(), VmError> {
        kick::install_handler()?;
        thread::scope(|scope| {
            let started = self.vcpus.iter().try_for_each(|vcpu| {
                let thread = thread::Builder::new().name(format!("vcpu{}", vcpu.index()));
                let debugger = Debugger::new(self.session.as_ref(), vcpu.index())?;
                let body = || vcpu.run(&self.control, &self.bus, debugger);
                thread.spawn_scoped(scope, body).map(drop).map_err(VmError::io("clone"))
            });
            let result = started.and_then(|()| self.supervise());
            self.control.end();
            if let Some(session) = &self.session {
                session.close();
            }
            self.kick_all();
            result
        })
    }

    fn supervise(&self) -> Result<(), VmError> {
        loop {
            self.control.resume();
            match self.control.wait_request() {
                Request::PowerOff | Request::Quit => return Ok(()),
                Request::Fail(error) => return Err(error),
                Request::Reset => {
                    self.control.pause(|| self.kick_all());
                    self.reset()?;
                }
            }
        }
    }

    /// Every vCPU is outside the guest. Memory keeps its contents, as on a machine, but for what is loaded.
    fn reset(&self) -> Result<(), VmError> {
        if let Some(session) = &self.session {
            session.before_reset()?;
        }
        // The vCPUs first: it makes KVM forget what caches hold of the memory that is written next.
        self.vcpus.iter().try_for_each(|vcpu| vcpu.reset())?;
        self.gic.set_state(&self.gic_reset)?;
        self.serial.reset();
        self.load()?;
        self.session.as_ref().map_or(Ok(()), |session| Ok(session.after_reset()?))
    }

    fn load(&self) -> Result<(), VmError> {
        let mpidrs: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.mpidr()).collect();
        let entry = self.payload.load(&self.ram, &mpidrs)?;
        self.vcpus.first().map_or(Ok(()), |boot| boot.set_entry(entry.pc, entry.fdt))
    }

    fn kick_all(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.kick());
    }
}

fn create_vm(config: &VmConfig) -> Result<VmFd, VmError> {
    let kvm = Kvm::new().map_err(|error| VmError::File { path: "/dev/kvm".into(), source: error.into() })?;
    // 0 where KVM can't say; its default, 40 bits, is then all there is.
    let bits = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
    let end = layout::ram_end(config.memory_mib << 20);
    if bits != 0 && bits < 64 && end > 1 << bits {
        return Err(VmError::Setting {
            name: "--memory",
            value: config.memory_mib.to_string(),
            acceptable: format!("at most {} MiB on this host", ((1 << bits) - RAM_BASE.min(1 << bits)) >> 20),
        });
    }
    let max_cpus = kvm.get_max_vcpus();
    if config.cpus as usize > max_cpus {
        return Err(VmError::Setting {
            name: "--cpus",
            value: config.cpus.to_string(),
            acceptable: format!("at most {max_cpus} on this host"),
        });
    }
    for (capability, name) in [
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(VmError::MissingCapability(name));
        }
    }
    kvm.create_vm_with_ipa_size(bits).map_err(kvm_error("KVM_CREATE_VM"))
}

#[expect(unsafe_code, reason = "hands the mapping to KVM")]
fn map_ram(vm: &VmFd, ram: &Ram, size: u64) -> Result<(), VmError> {
    let host = ram
        .get_host_address(GuestAddress(RAM_BASE))
        .map_err(|error| VmError::Write { what: "RAM", reason: error.to_string() })?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: RAM_BASE,
        memory_size: size,
        userspace_addr: host as u64,
    };
    // SAFETY: the region is mapped, with that size, for as long as the Vm that owns both lives.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))
}
