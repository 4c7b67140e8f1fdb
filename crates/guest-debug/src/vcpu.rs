//! The hypervisor boundary: what a debug session asks of a vCPU.
//!
//! [`DebugVcpu`] is the only thing this crate knows about a hypervisor. It is object-safe, takes `&self` and
//! names no hypervisor type, so that KVM's `VcpuFd`, a VMM's own vCPU trait object and a mock in a test
//! implement it alike.

use crate::arch::{AnyReg, Arch, Arm64, Register as _};
use crate::arm64::HwDebug;
use thiserror::Error;

/// Why a vCPU could not do what it was asked.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VcpuError {
    /// The hypervisor, or this vCPU, has no such ability.
    #[error("not supported by this hypervisor: {0}")]
    Unsupported(&'static str),
    /// The vCPU has no register of that name.
    #[error("the vCPU has no register {0}")]
    NoSuchRegister(AnyReg),
    /// A buffer's length is not the register's.
    #[error("register {reg} has {expected} bytes, the buffer has {got}")]
    RegisterSize {
        /// The register asked for.
        reg: AnyReg,
        /// Its length in bytes.
        expected: usize,
        /// The length of the buffer that was given.
        got: usize,
    },
    /// A system call of the hypervisor failed.
    #[error("{operation} failed: errno {errno}")]
    Os {
        /// The call, as the kernel names it.
        operation: &'static str,
        /// The error number it answered.
        errno: i32,
    },
}

/// What the host can do for a debugger.
///
/// Zero slots mean that the ability is missing, not that it is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DebugCaps {
    /// `KVM_CAP_SET_GUEST_DEBUG`: the vCPU can be debugged at all, software breakpoints and steps included.
    pub guest_debug: bool,
    /// `KVM_CAP_GUEST_DEBUG_HW_BPS`: hardware breakpoint slots of a vCPU.
    pub hw_bps: usize,
    /// `KVM_CAP_GUEST_DEBUG_HW_WPS`: watchpoint slots of a vCPU.
    pub hw_wps: usize,
    /// `KVM_CAP_SET_GUEST_DEBUG2`: mask of the control flags that KVM accepts, 0 where KVM does not say.
    pub control_flags: u32,
}

/// All debug settings of one vCPU. Setting one replaces whatever was set before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DebugConfig<Hw = HwDebug> {
    /// Whether the debugger has the vCPU at all: BRK and the other debug exceptions leave the guest.
    pub enabled: bool,
    /// Return after one instruction.
    pub single_step: bool,
    /// x86_64: no interrupt is delivered during the step. Asked for only where [`DebugCaps::control_flags`] has
    /// `KVM_GUESTDBG_BLOCKIRQ`.
    pub block_interrupts: bool,
    /// Hardware breakpoints and watchpoints.
    pub hw: Hw,
}

impl<Hw: Default> DebugConfig<Hw> {
    /// Nothing armed, the guest has its debug exceptions to itself.
    pub fn disabled() -> Self {
        Self { enabled: false, single_step: false, block_interrupts: false, hw: Hw::default() }
    }
}

/// What the hypervisor says about a debug exit of an arm64 guest, undecoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebugExit {
    /// arm64: ESR_EL2 of the exit, `hsr` in bits 31:0 and, where the kernel reports it, `hsr_high` in 63:32.
    pub syndrome: u64,
    /// arm64: FAR_EL2 of the exit; meaningful for watchpoints only.
    pub far: u64,
}

/// One vCPU, as a debugger sees it.
///
/// None of the calls may be made while the vCPU runs guest code: stop it first.
///
/// # Errors
///
/// Every call answers [`VcpuError::Unsupported`] for what the hypervisor cannot do, and leaves the vCPU as it
/// was when it fails.
pub trait DebugVcpu<A: Arch = Arm64>: Send + Sync {
    /// Replaces the vCPU's debug settings.
    fn set_guest_debug(&self, config: &DebugConfig<A::Hw>) -> Result<(), VcpuError> {
        let _ = config;
        Err(VcpuError::Unsupported("guest debugging"))
    }

    /// Reads a register into `value`, little-endian; the length must be [`crate::Register::size`].
    fn get_reg(&self, reg: A::Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let _ = value;
        Err(VcpuError::NoSuchRegister(reg.into()))
    }

    /// Writes a register from `value`, little-endian; the length must be [`crate::Register::size`].
    fn set_reg(&self, reg: A::Reg, value: &[u8]) -> Result<(), VcpuError> {
        let _ = value;
        Err(VcpuError::NoSuchRegister(reg.into()))
    }

    /// Has the guest take an exception of its own at the next entry. Asked for only where the session can't give it to the
    /// guest by writing registers, which it does on arm64.
    fn inject(&self, exception: A::Exception) -> Result<(), VcpuError> {
        let _ = exception;
        Err(VcpuError::Unsupported("injecting exceptions"))
    }

    /// Every register that [`DebugVcpu::get_reg`] can read, in the hypervisor's order.
    fn reg_list(&self) -> Result<Vec<A::Reg>, VcpuError> {
        Err(VcpuError::Unsupported("listing registers"))
    }

    /// Reads a register of up to eight bytes.
    fn get_u64(&self, reg: A::Reg) -> Result<u64, VcpuError> {
        let mut bytes = [0; 8];
        let size = reg.size();
        let value = bytes.get_mut(..size).ok_or(VcpuError::RegisterSize { reg: reg.into(), expected: size, got: 8 })?;
        self.get_reg(reg, value)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads registers of up to eight bytes each, `regs` in their order into `values`; the shorter of the two counts. For
    /// hypervisors that read many with one call, as KVM does on x86_64; otherwise they are read one by one.
    fn get_u64s(&self, regs: &[A::Reg], values: &mut [u64]) -> Result<(), VcpuError> {
        for (reg, value) in regs.iter().zip(values) {
            *value = self.get_u64(*reg)?;
        }
        Ok(())
    }

    /// Writes a register of up to eight bytes; bits that do not fit in the register are dropped.
    fn set_u64(&self, reg: A::Reg, value: u64) -> Result<(), VcpuError> {
        let size = reg.size();
        let bytes = value.to_le_bytes();
        let value = bytes.get(..size).ok_or(VcpuError::RegisterSize { reg: reg.into(), expected: size, got: 8 })?;
        self.set_reg(reg, value)
    }
}
