//! [`DebugVcpu`] for KVM's vCPU on x86_64.

mod fpu;
mod general;
mod msr;
mod segments;

use crate::arch::X86_64;
use crate::uapi::x86_64::GuestDebug;
use crate::x86_64::stop::{BP_VECTOR, DB_VECTOR, Exception};
use crate::x86_64::{Dr7, HwDebug, Reg};
use crate::{DebugConfig, DebugVcpu, VcpuError};
use kvm_bindings::{kvm_guest_debug, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

impl DebugVcpu<X86_64> for VcpuFd {
    fn set_guest_debug(&self, config: &DebugConfig<HwDebug>) -> Result<(), VcpuError> {
        let debug = kvm_guest_debug::from(&GuestDebug::new(config));
        VcpuFd::set_guest_debug(self, &debug).map_err(os("KVM_SET_GUEST_DEBUG"))
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let (expected, got) = (reg.size(), value.len());
        if got != expected {
            return Err(VcpuError::RegisterSize { reg: reg.into(), expected, got });
        }
        if let Some(read) = fpu::read(self, reg)? {
            value.copy_from_slice(read.get(..expected).unwrap_or_default());
            return Ok(());
        }
        let read = Reads::of(self).value(reg)?;
        value.copy_from_slice(read.to_le_bytes().get(..expected).unwrap_or_default());
        Ok(())
    }

    fn get_u64s(&self, regs: &[Reg], values: &mut [u64]) -> Result<(), VcpuError> {
        let mut reads = Reads::of(self);
        for (reg, value) in regs.iter().zip(values) {
            *value = reads.value(*reg)?;
        }
        Ok(())
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        let (expected, got) = (reg.size(), value.len());
        if got != expected {
            return Err(VcpuError::RegisterSize { reg: reg.into(), expected, got });
        }
        if fpu::write(self, reg, value)? {
            return Ok(());
        }
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        if general::write(self, reg, value)? || segments::write(self, reg, value)? || msr::write(self, reg, value)? {
            return Ok(());
        }
        Err(VcpuError::NoSuchRegister(reg.into()))
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        let always = Reg::CORE.into_iter().chain(Reg::SSE).chain(Reg::SEGMENTS).chain(Reg::SYSTEM).chain(Reg::HIDDEN);
        let avx = if fpu::has_avx(self)? { &Reg::AVX[..] } else { &[] };
        Ok(always.chain(avx.iter().copied()).collect())
    }

    fn inject(&self, exception: Exception) -> Result<(), VcpuError> {
        let vector = match exception {
            Exception::Breakpoint => BP_VECTOR,
            Exception::Debug { dr6 } => {
                // As if the CPU had raised it (SDM 17.2.4): the handler may use the debug registers.
                let mut debug = self.get_debug_regs().map_err(os("KVM_GET_DEBUGREGS"))?;
                debug.dr6 = dr6;
                debug.dr7 = Dr7 { gd: false, ..Dr7::from_bits(debug.dr7) }.to_bits();
                self.set_debug_regs(&debug).map_err(os("KVM_SET_DEBUGREGS"))?;
                DB_VECTOR
            }
        };
        let mut events = self.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.nr = vector as u8;
        events.exception.has_error_code = 0;
        events.exception.error_code = 0;
        // Whatever else is pending stays as it is.
        events.flags &= KEPT_EVENTS;
        self.set_vcpu_events(&events).map_err(os("KVM_SET_VCPU_EVENTS"))
    }
}

/// Registers that are read together: each call to KVM is made once, when the first register of its group is asked for.
struct Reads<'a> {
    fd: &'a VcpuFd,
    general: Option<kvm_regs>,
    segments: Option<kvm_sregs>,
}

impl<'a> Reads<'a> {
    fn of(fd: &'a VcpuFd) -> Self {
        Self { fd, general: None, segments: None }
    }

    fn value(&mut self, reg: Reg) -> Result<u64, VcpuError> {
        let value = if general::has(reg) {
            let regs = match self.general {
                Some(regs) => regs,
                None => *self.general.insert(general::get(self.fd)?),
            };
            general::value(regs, reg)
        } else if segments::has(reg) {
            let sregs = match self.segments {
                Some(sregs) => sregs,
                None => *self.segments.insert(segments::get(self.fd)?),
            };
            segments::value(sregs, reg)
        } else {
            msr::read(self.fd, reg)?
        };
        value.ok_or(VcpuError::NoSuchRegister(reg.into()))
    }
}

/// `KVM_VCPUEVENT_VALID_*` of what KVM has just told: SMM and the interrupt shadow. With that of a payload, an exception would
/// be pending instead of injected.
const KEPT_EVENTS: u32 = kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW | kvm_bindings::KVM_VCPUEVENT_VALID_SMM;

fn os(operation: &'static str) -> impl Fn(errno::Error) -> VcpuError {
    move |error| VcpuError::Os { operation, errno: error.errno() }
}
