//! The in-kernel GICv3: creation, and its state as a list of register values.
//!
//! KVM can't reset a GIC or make a second one in a VM, so that a reset writes the state back that was read when the
//! GIC was new. Registers: Arm GIC Architecture Specification (IHI 0069); how KVM wants them accessed: Linux,
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst. The GIC has no ITS, so that there are no LPIs.

use super::kvm_error;
use crate::error::VmError;
use crate::kvm::Vcpu;
use crate::layout::{GIC_LINES, GICD, GICR_BASE};
use crate::state::arm64::{Devices, GicRegister, GicState};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use std::sync::Arc;

/// Lines 0 to 31 are private to a vCPU and belong to its redistributor.
const PRIVATE_LINES: u64 = 32;
const LINES: u64 = GIC_LINES as u64;

// Distributor registers; the redistributor's SGI frame has the same at the same offsets.
const CTLR: u64 = 0x0;
/// Its revision field selects the behaviour of KVM's GIC (arm-vgic-v3.rst), so it is written before anything else.
const IIDR: u64 = 0x8;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
const SGI_FRAME: u64 = 0x1_0000;

/// ICC_CTLR_EL1, bits 10:8: implemented priority bits, less one.
const ICC_CTLR_PRIBITS_SHIFT: u64 = 8;

const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

const ICC_CTLR_EL1: u64 = sysreg(3, 0, 12, 12, 4);
const ICC_PMR_EL1: u64 = sysreg(3, 0, 4, 6, 0);
const ICC_BPR0_EL1: u64 = sysreg(3, 0, 12, 8, 3);
const ICC_BPR1_EL1: u64 = sysreg(3, 0, 12, 12, 3);
const ICC_IGRPEN0_EL1: u64 = sysreg(3, 0, 12, 12, 6);
const ICC_IGRPEN1_EL1: u64 = sysreg(3, 0, 12, 12, 7);
const ICC_AP0R0_EL1: u64 = sysreg(3, 0, 12, 8, 4);
const ICC_AP1R0_EL1: u64 = sysreg(3, 0, 12, 9, 0);

/// The VM's interrupt controller.
#[derive(Debug)]
pub(in crate::kvm) struct Gic {
    device: DeviceFd,
    /// Affinity of each vCPU as bits 63:32 of an attribute.
    affinities: Vec<u64>,
}

impl Gic {
    /// Makes the GIC of a VM whose vCPUs have all been made and initialised.
    ///
    /// # Errors
    ///
    /// [`VmError::MissingCapability`] where the host has no GICv3, [`VmError::Os`] for anything else.
    pub(in crate::kvm) fn new(vm: &VmFd, vcpus: &[Arc<Vcpu>]) -> Result<Self, VmError> {
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let device = vm.create_device(&mut device).map_err(|error| match error.errno() {
            libc::ENODEV => VmError::MissingCapability("GICv3 (KVM_DEV_TYPE_ARM_VGIC_V3)"),
            _ => kvm_error("KVM_CREATE_DEVICE (GICv3)")(error),
        })?;
        // Aff3 is in bits 39:32 of MPIDR_EL1, and above the other three in an attribute.
        let affinity = |mpidr: u64| (mpidr >> 32 & 0xff) << 56 | (mpidr & 0xff_ffff) << 32;
        let affinities = vcpus.iter().map(|vcpu| affinity(vcpu.mpidr())).collect();
        let gic = Self { device, affinities };
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, GIC_LINES.into())?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), GICD.base)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST.into(), GICR_BASE)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)?;
        Ok(gic)
    }

    /// Reads all state. Every vCPU must be out of KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`]; EBUSY means that a vCPU runs.
    pub(in crate::kvm) fn state(&self, _: &VmFd) -> Result<Devices, VmError> {
        let mut registers = Vec::new();
        self.read(&mut registers, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, IIDR)?;
        self.read_lines(&mut registers, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, PRIVATE_LINES..LINES)?;
        for line in PRIVATE_LINES..LINES {
            self.read(&mut registers, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, IROUTER + 8 * line)?;
            self.read(&mut registers, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, IROUTER + 8 * line + 4)?;
        }
        for affinity in &self.affinities {
            let frame = affinity | SGI_FRAME;
            self.read_lines(&mut registers, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, frame, 0..PRIVATE_LINES)?;
            self.read_cpu_interface(&mut registers, *affinity)?;
        }
        // Last, so that a restored GIC forwards nothing before it is whole.
        self.read(&mut registers, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, CTLR)?;
        Ok(Devices { gic: GicState(registers) })
    }

    /// Writes all state. Every vCPU must be out of KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`]; EBUSY means that a vCPU runs, and EINVAL that the state is of another kind of GIC.
    pub(in crate::kvm) fn set_state(&self, _: &VmFd, state: &Devices) -> Result<(), VmError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, CTLR, 0)?;
        state.gic.0.iter().try_for_each(|register| self.set(register.group, register.attr, register.value))
    }

    /// Registers with bits or fields per line, of the distributor or of one redistributor's SGI frame.
    fn read_lines(
        &self,
        registers: &mut Vec<GicRegister>,
        group: u32,
        base: u64,
        lines: std::ops::Range<u64>,
    ) -> Result<(), VmError> {
        for line in lines.clone().step_by(4) {
            self.read(registers, group, base | (IPRIORITYR + line))?;
        }
        // ICFGR0 covers the SGIs, which are always edge.
        for line in lines.clone().step_by(16).filter(|line| *line >= 16) {
            self.read(registers, group, base | (ICFGR + line / 4))?;
        }
        for word in lines.step_by(32).map(|line| line / 8) {
            self.read(registers, group, base | (IGROUPR + word))?;
            // A write of ISPENDR from here sets and clears the pending latches; the others only set.
            self.read(registers, group, base | (ISPENDR + word))?;
            registers.push(GicRegister { group, attr: base | (ICACTIVER + word), value: u32::MAX.into() });
            self.read(registers, group, base | (ISACTIVER + word))?;
            registers.push(GicRegister { group, attr: base | (ICENABLER + word), value: u32::MAX.into() });
            self.read(registers, group, base | (ISENABLER + word))?;
        }
        Ok(())
    }

    fn read_cpu_interface(&self, registers: &mut Vec<GicRegister>, affinity: u64) -> Result<(), VmError> {
        let group = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
        let control = self.get(group, affinity | ICC_CTLR_EL1)?;
        registers.push(GicRegister { group, attr: affinity | ICC_CTLR_EL1, value: control });
        for register in [ICC_PMR_EL1, ICC_BPR0_EL1, ICC_BPR1_EL1] {
            self.read(registers, group, affinity | register)?;
        }
        // One active priorities register for each 32 preemption levels: 5 bits of priority have one, 7 have four.
        let priority_bits = (control >> ICC_CTLR_PRIBITS_SHIFT & 7) + 1;
        for index in 0..1 << priority_bits.clamp(5, 7) - 5 {
            self.read(registers, group, affinity | (ICC_AP0R0_EL1 + index))?;
            self.read(registers, group, affinity | (ICC_AP1R0_EL1 + index))?;
        }
        for register in [ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1] {
            self.read(registers, group, affinity | register)?;
        }
        Ok(())
    }

    fn read(&self, registers: &mut Vec<GicRegister>, group: u32, attr: u64) -> Result<(), VmError> {
        let value = self.get(group, attr)?;
        registers.push(GicRegister { group, attr, value });
        Ok(())
    }

    #[expect(unsafe_code, reason = "KVM writes the value through an address")]
    fn get(&self, group: u32, attr: u64) -> Result<u64, VmError> {
        // KVM moves 32 or 64 bits, depending on the group; both are little-endian.
        let mut value = 0_u64;
        let mut attr = kvm_device_attr { flags: 0, group, attr, addr: (&raw mut value).expose_provenance() as u64 };
        // SAFETY: no group that is read here moves more than the 64 bits of `value`.
        unsafe { self.device.get_device_attr(&mut attr) }.map_err(kvm_error("KVM_GET_DEVICE_ATTR (GICv3)"))?;
        Ok(value)
    }

    fn set(&self, group: u32, attr: u64, value: u64) -> Result<(), VmError> {
        let attr = kvm_device_attr { flags: 0, group, attr, addr: (&raw const value).expose_provenance() as u64 };
        self.device.set_device_attr(&attr).map_err(kvm_error("KVM_SET_DEVICE_ATTR (GICv3)"))
    }
}
