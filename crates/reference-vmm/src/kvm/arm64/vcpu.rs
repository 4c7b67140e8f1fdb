//! A vCPU: how it is made, and its state, read out of KVM and written into a new vCPU.
//!
//! The registers are those that KVM_GET_REG_LIST names, among them what the guest has in its own debug registers
//! (DBGBVR, DBGBCR, DBGWVR, DBGWCR, MDSCR_EL1, the OS lock). KVM keeps those apart from the debugger's: between two
//! KVM_RUNs ONE_REG answers the guest's own (kernel: arch/arm64/kvm/debug.c).

use super::kvm_error;
use crate::error::VmError;
use crate::kvm::Vcpu;
use crate::state::arm64::{Features as Saved, RegisterState, VCPU_FEATURE_WORDS, VcpuState, register_size};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, RegList, kvm_mp_state,
    kvm_vcpu_events, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::sync::Arc;

/// What kvm-bindings' list has room for.
const MAX_REGISTERS: usize = 500;

// Registers for KVM_GET_ONE_REG: core registers by their offset in struct kvm_regs, in units of 4 bytes.
const CORE: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64;
const REG_X0: u64 = CORE;
const REG_PC: u64 = CORE | 64;
/// KVM_REG_ARM64_SVE_VLS (kernel: arch/arm64/include/uapi/asm/kvm.h).
const REG_SVE_VLS: u64 = 0x6060_0000_0015_ffff;
const REG_MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | 3 << 14 | 5;
/// MPIDR_EL1: Aff3, and Aff2 to Aff0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// What a vCPU has beside its descriptor.
#[derive(Debug)]
pub(in crate::kvm) struct Parts {
    init: kvm_vcpu_init,
    mpidr: u64,
}

/// What every vCPU of a VM is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kvm) struct Features {
    /// As KVM_ARM_VCPU_INIT takes them.
    words: [u32; VCPU_FEATURE_WORDS],
    /// Vector lengths of SVE; all that the host has where it is none.
    sve_vls: Option<Vec<u8>>,
}

impl Features {
    /// Everything that KVM offers.
    pub(in crate::kvm) fn of_host(_: &Kvm, vm: &VmFd) -> Result<Self, VmError> {
        Ok(Self { words: Self::offered(vm), sve_vls: None })
    }

    fn offered(vm: &VmFd) -> [u32; VCPU_FEATURE_WORDS] {
        let pauth = vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric);
        let offered = [
            (KVM_ARM_VCPU_PSCI_0_2, true),
            (KVM_ARM_VCPU_SVE, vm.check_extension(Cap::ArmSve)),
            // KVM takes these two together only.
            (KVM_ARM_VCPU_PTRAUTH_ADDRESS, pauth),
            (KVM_ARM_VCPU_PTRAUTH_GENERIC, pauth),
        ];
        let mut words = [0; VCPU_FEATURE_WORDS];
        words[0] = offered.iter().fold(0, |word, (feature, wanted)| word | u32::from(*wanted) << feature);
        words
    }

    /// Those that a saved VM had.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] when this host does not offer one of them.
    pub(in crate::kvm) fn saved(saved: &Saved, _: &Kvm, vm: &VmFd) -> Result<Self, VmError> {
        let offered = Self::offered(vm);
        let words: Vec<u32> = saved.vcpu_features.clone();
        let bad = || VmError::State {
            field: "machine.vcpu_features".to_owned(),
            value: format!("{:#x?}", saved.vcpu_features),
            acceptable: format!("at most what KVM offers here, {offered:#x?}"),
        };
        let words: [u32; VCPU_FEATURE_WORDS] = words.try_into().map_err(|_| bad())?;
        if words.iter().zip(offered).any(|(wanted, offered)| wanted & !offered != 0) {
            return Err(bad());
        }
        Ok(Self { words, sve_vls: saved.sve_vls.clone() })
    }

    fn has(&self, feature: u32) -> bool {
        self.words[0] >> feature & 1 != 0
    }

    /// What was made of it.
    pub(in crate::kvm) fn describe(&self, vcpus: &[Arc<Vcpu>]) -> Result<Saved, VmError> {
        // Without the one that differs from vCPU to vCPU.
        let vcpu_features = self.words.to_vec();
        Ok(Saved { vcpu_features, sve_vls: vcpus.first().map_or(Ok(None), |vcpu| vcpu.sve_vls())? })
    }
}

impl Vcpu {
    /// Makes a vCPU. All but the first wait to be powered on through PSCI.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] with the KVM call that failed.
    pub(in crate::kvm) fn new(vm: &VmFd, index: u32, features: &Features) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index.into()).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(kvm_error("KVM_ARM_PREFERRED_TARGET"))?;
        init.features = features.words;
        init.features[0] |= u32::from(index != 0) << KVM_ARM_VCPU_POWER_OFF;
        fd.vcpu_init(&init).map_err(kvm_error("KVM_ARM_VCPU_INIT"))?;
        if features.has(KVM_ARM_VCPU_SVE) {
            if let Some(vls) = &features.sve_vls {
                fd.set_one_reg(REG_SVE_VLS, vls).map_err(kvm_error("KVM_SET_ONE_REG (SVE vector lengths)"))?;
            }
            fd.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).map_err(kvm_error("KVM_ARM_VCPU_FINALIZE (SVE)"))?;
        }
        let mut mpidr = [0; 8];
        fd.get_one_reg(REG_MPIDR_EL1, &mut mpidr).map_err(kvm_error("KVM_GET_ONE_REG (MPIDR_EL1)"))?;
        let mpidr = u64::from_le_bytes(mpidr) & MPIDR_AFFINITY;
        Ok(Self::with(index, fd, Parts { init, mpidr }))
    }

    /// Affinity fields of its MPIDR_EL1.
    pub fn mpidr(&self) -> u64 {
        self.parts.mpidr
    }

    /// All registers as after power-on.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn reset(&self) -> Result<(), VmError> {
        self.lock().vcpu_init(&self.parts.init).map_err(kvm_error("KVM_ARM_VCPU_INIT"))
    }

    /// Sets where the vCPU starts, and its first argument.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn set_entry(&self, pc: u64, x0: u64) -> Result<(), VmError> {
        let fd = self.lock();
        for (register, value) in [(REG_PC, pc), (REG_X0, x0)] {
            fd.set_one_reg(register, &value.to_le_bytes()).map_err(kvm_error("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    /// Everything that a guest can have changed. The vCPU is out of KVM_RUN, and has no device access to complete.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`], [`VmError::Vcpu`] with the register that can't be read.
    pub fn state(&self) -> Result<VcpuState, VmError> {
        let fd = self.lock();
        let events = fd.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?.exception;
        let registers = registers(&fd)?.into_iter().map(|id| {
            let mut value = vec![0; register_size(id)];
            fd.get_one_reg(id, &mut value).map_err(|error| self.register_error(id, "read", &error))?;
            Ok(RegisterState { id, value })
        });
        Ok(VcpuState {
            mp_state: fd.get_mp_state().map_err(kvm_error("KVM_GET_MP_STATE"))?.mp_state,
            serror_pending: events.serror_pending != 0,
            serror_esr: (events.serror_has_esr != 0).then_some(events.serror_esr),
            registers: registers.collect::<Result<_, VmError>>()?,
        })
    }

    /// The inverse, on a vCPU that was made with the same features.
    ///
    /// # Errors
    ///
    /// [`VmError::Vcpu`] with the register that this host can't have that value in, [`VmError::Os`].
    pub fn set_state(&self, state: &VcpuState) -> Result<(), VmError> {
        let fd = self.lock();
        for RegisterState { id, value } in &state.registers {
            // It was given to the vCPU when it was made, and is read-only since.
            if *id != REG_SVE_VLS {
                fd.set_one_reg(*id, value).map_err(|error| self.register_error(*id, "set", &error))?;
            }
        }
        let mut events = kvm_vcpu_events::default();
        events.exception.serror_pending = state.serror_pending.into();
        events.exception.serror_has_esr = state.serror_esr.is_some().into();
        events.exception.serror_esr = state.serror_esr.unwrap_or(0);
        fd.set_vcpu_events(&events).map_err(kvm_error("KVM_SET_VCPU_EVENTS"))?;
        // Last: writing core registers does not power a vCPU on.
        fd.set_mp_state(kvm_mp_state { mp_state: state.mp_state }).map_err(kvm_error("KVM_SET_MP_STATE"))
    }

    /// Vector lengths of SVE, if the vCPU has it.
    ///
    /// # Errors
    ///
    /// [`VmError::Vcpu`].
    pub fn sve_vls(&self) -> Result<Option<Vec<u8>>, VmError> {
        let fd = self.lock();
        if !registers(&fd)?.contains(&REG_SVE_VLS) {
            return Ok(None);
        }
        let mut value = vec![0; register_size(REG_SVE_VLS)];
        fd.get_one_reg(REG_SVE_VLS, &mut value).map_err(|error| self.register_error(REG_SVE_VLS, "read", &error))?;
        Ok(Some(value))
    }

    fn register_error(&self, id: u64, verb: &str, error: &vmm_sys_util::errno::Error) -> VmError {
        let name = guest_debug::kvm::regid::decode(id).map(|reg| format!(" ({reg})")).unwrap_or_default();
        let reason = format!("register {id:#x}{name} can't be {verb} on this host: {error}");
        VmError::Vcpu { vcpu: self.index(), reason }
    }
}

fn registers(fd: &VcpuFd) -> Result<Vec<u64>, VmError> {
    let list = RegList::new(MAX_REGISTERS)
        .map_err(|error| VmError::Write { what: "the list of registers", reason: error.to_string() });
    let mut list = list?;
    fd.get_reg_list(&mut list).map_err(kvm_error("KVM_GET_REG_LIST"))?;
    Ok(list.as_slice().to_vec())
}
