//! A vCPU's state: read out of KVM, and written into a new vCPU.
//!
//! The registers are those that KVM_GET_REG_LIST names, among them what the guest has in its own debug registers
//! (DBGBVR, DBGBCR, DBGWVR, DBGWCR, MDSCR_EL1, the OS lock). KVM keeps those apart from the debugger's: between two
//! KVM_RUNs ONE_REG answers the guest's own (kernel: arch/arm64/kvm/debug.c).

use super::kvm_error;
use super::vcpu::{REG_SVE_VLS, Vcpu};
use crate::error::VmError;
use crate::state::{RegisterState, VcpuState, register_size};
use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

/// What kvm-bindings' list has room for.
const MAX_REGISTERS: usize = 500;

impl Vcpu {
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
