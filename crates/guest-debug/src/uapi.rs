//! The kernel's interface for guest debugging, typed: the common part of `include/uapi/linux/kvm.h`, and that of arm64 in
//! `arch/arm64/include/uapi/asm/kvm.h`. What x86_64 has is in [`x86_64`].
//!
//! The types compile on every host, so that whoever sets and reads them can be tested there. Their layout is checked
//! when the crate is compiled, on arm64 against kvm-bindings as well. `docs/abi.md` explains each field.

pub mod x86_64;

use crate::DebugConfig;
use crate::arm64::HwDebug;
use std::mem::{align_of, offset_of, size_of};

/// `KVM_ARM_MAX_DBG_REGS`: registers of each kind in [`GuestDebugArch`], the architecture's maximum. A CPU may have fewer.
pub const KVM_ARM_MAX_DBG_REGS: usize = 16;

/// `KVM_GUESTDBG_ENABLE`: the debugger has the vCPU. Without it every other flag is ignored and all settings are dropped.
pub const KVM_GUESTDBG_ENABLE: u32 = 1;
/// `KVM_GUESTDBG_SINGLESTEP`: leave the guest after one instruction.
pub const KVM_GUESTDBG_SINGLESTEP: u32 = 1 << 1;
/// `KVM_GUESTDBG_USE_SW_BP`: BRK leaves the guest.
pub const KVM_GUESTDBG_USE_SW_BP: u32 = 1 << 16;
/// `KVM_GUESTDBG_USE_HW`: the debug registers of [`GuestDebugArch`] replace the guest's own.
pub const KVM_GUESTDBG_USE_HW: u32 = 1 << 17;

/// `KVM_DEBUG_ARCH_HSR_HIGH_VALID`, a bit of `kvm_run.flags`: [`DebugExitArch::hsr_high`] is filled in.
pub const KVM_DEBUG_ARCH_HSR_HIGH_VALID: u16 = 1;

/// `struct kvm_guest_debug_arch`: the debug registers to use while the guest runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestDebugArch {
    /// DBGBCR0_EL1 to DBGBCR15_EL1.
    pub dbg_bcr: [u64; KVM_ARM_MAX_DBG_REGS],
    /// DBGBVR0_EL1 to DBGBVR15_EL1.
    pub dbg_bvr: [u64; KVM_ARM_MAX_DBG_REGS],
    /// DBGWCR0_EL1 to DBGWCR15_EL1.
    pub dbg_wcr: [u64; KVM_ARM_MAX_DBG_REGS],
    /// DBGWVR0_EL1 to DBGWVR15_EL1.
    pub dbg_wvr: [u64; KVM_ARM_MAX_DBG_REGS],
}

/// Fills the registers in slot order; those without a slot are 0, which disables them. What is beyond
/// [`KVM_ARM_MAX_DBG_REGS`] has no place and is left out: [`HwDebug::check`] refuses it beforehand.
impl From<&HwDebug> for GuestDebugArch {
    fn from(hw: &HwDebug) -> Self {
        let mut arch = Self::default();
        let registers = arch.dbg_bcr.iter_mut().zip(&mut arch.dbg_bvr);
        for (slot, (control, value)) in hw.breakpoints.iter().zip(registers) {
            (*control, *value) = (slot.dbgbcr(), slot.dbgbvr());
        }
        let registers = arch.dbg_wcr.iter_mut().zip(&mut arch.dbg_wvr);
        for (slot, (control, value)) in hw.watchpoints.iter().zip(registers) {
            (*control, *value) = (slot.dbgwcr(), slot.dbgwvr());
        }
        arch
    }
}

/// `struct kvm_guest_debug`: the argument of `KVM_SET_GUEST_DEBUG`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestDebug {
    /// `KVM_GUESTDBG_*` flags.
    pub control: u32,
    /// Padding, 0.
    pub pad: u32,
    /// Debug registers, used with [`KVM_GUESTDBG_USE_HW`].
    pub arch: GuestDebugArch,
}

impl GuestDebug {
    /// The ioctl's argument for a vCPU's settings. All of it is 0 where debugging is not enabled.
    pub fn new(config: &DebugConfig) -> Self {
        if !config.enabled {
            return Self::default();
        }
        let step = if config.single_step { KVM_GUESTDBG_SINGLESTEP } else { 0 };
        let hw = if config.hw.is_none() { 0 } else { KVM_GUESTDBG_USE_HW };
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | step | hw;
        Self { control, pad: 0, arch: GuestDebugArch::from(&config.hw) }
    }
}

/// `struct kvm_debug_exit_arch`: what `KVM_EXIT_DEBUG` says in `kvm_run`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DebugExitArch {
    /// ESR_EL2 bits 31:0.
    pub hsr: u32,
    /// ESR_EL2 bits 63:32, if `kvm_run.flags` has [`KVM_DEBUG_ARCH_HSR_HIGH_VALID`]; padding without.
    pub hsr_high: u32,
    /// FAR_EL2, written for watchpoints only.
    pub far: u64,
}

impl DebugExitArch {
    /// ESR_EL2, its upper half 0 where `run_flags`, the `flags` of `kvm_run`, does not vouch for it.
    pub const fn syndrome(&self, run_flags: u16) -> u64 {
        let high = if run_flags & KVM_DEBUG_ARCH_HSR_HIGH_VALID != 0 { self.hsr_high } else { 0 };
        (high as u64) << 32 | self.hsr as u64
    }
}

const _: () = {
    assert!(size_of::<GuestDebugArch>() == 512 && align_of::<GuestDebugArch>() == 8);
    assert!(offset_of!(GuestDebugArch, dbg_bcr) == 0);
    assert!(offset_of!(GuestDebugArch, dbg_bvr) == 128);
    assert!(offset_of!(GuestDebugArch, dbg_wcr) == 256);
    assert!(offset_of!(GuestDebugArch, dbg_wvr) == 384);
    assert!(size_of::<GuestDebug>() == 520 && align_of::<GuestDebug>() == 8);
    assert!(offset_of!(GuestDebug, control) == 0);
    assert!(offset_of!(GuestDebug, pad) == 4);
    assert!(offset_of!(GuestDebug, arch) == 8);
    assert!(size_of::<DebugExitArch>() == 16 && align_of::<DebugExitArch>() == 8);
    assert!(offset_of!(DebugExitArch, hsr) == 0);
    assert!(offset_of!(DebugExitArch, hsr_high) == 4);
    assert!(offset_of!(DebugExitArch, far) == 8);
};

/// The same types as kvm-bindings has them, for its ioctl wrappers.
#[cfg(all(target_arch = "aarch64", target_os = "linux", feature = "kvm"))]
mod bindings {
    use super::*;
    use kvm_bindings::{kvm_debug_exit_arch, kvm_guest_debug, kvm_guest_debug_arch};

    impl From<&GuestDebug> for kvm_guest_debug {
        fn from(debug: &GuestDebug) -> Self {
            let GuestDebugArch { dbg_bcr, dbg_bvr, dbg_wcr, dbg_wvr } = debug.arch;
            let arch = kvm_guest_debug_arch { dbg_bcr, dbg_bvr, dbg_wcr, dbg_wvr };
            Self { control: debug.control, pad: debug.pad, arch }
        }
    }

    impl From<kvm_debug_exit_arch> for DebugExitArch {
        fn from(exit: kvm_debug_exit_arch) -> Self {
            Self { hsr: exit.hsr, hsr_high: exit.hsr_high, far: exit.far }
        }
    }

    const _: () = {
        assert!(size_of::<GuestDebugArch>() == size_of::<kvm_guest_debug_arch>());
        assert!(align_of::<GuestDebugArch>() == align_of::<kvm_guest_debug_arch>());
        assert!(offset_of!(GuestDebugArch, dbg_bcr) == offset_of!(kvm_guest_debug_arch, dbg_bcr));
        assert!(offset_of!(GuestDebugArch, dbg_bvr) == offset_of!(kvm_guest_debug_arch, dbg_bvr));
        assert!(offset_of!(GuestDebugArch, dbg_wcr) == offset_of!(kvm_guest_debug_arch, dbg_wcr));
        assert!(offset_of!(GuestDebugArch, dbg_wvr) == offset_of!(kvm_guest_debug_arch, dbg_wvr));
        assert!(size_of::<GuestDebug>() == size_of::<kvm_guest_debug>());
        assert!(align_of::<GuestDebug>() == align_of::<kvm_guest_debug>());
        assert!(offset_of!(GuestDebug, control) == offset_of!(kvm_guest_debug, control));
        assert!(offset_of!(GuestDebug, pad) == offset_of!(kvm_guest_debug, pad));
        assert!(offset_of!(GuestDebug, arch) == offset_of!(kvm_guest_debug, arch));
        assert!(size_of::<DebugExitArch>() == size_of::<kvm_debug_exit_arch>());
        assert!(align_of::<DebugExitArch>() == align_of::<kvm_debug_exit_arch>());
        assert!(offset_of!(DebugExitArch, hsr) == offset_of!(kvm_debug_exit_arch, hsr));
        assert!(offset_of!(DebugExitArch, hsr_high) == offset_of!(kvm_debug_exit_arch, hsr_high));
        assert!(offset_of!(DebugExitArch, far) == offset_of!(kvm_debug_exit_arch, far));
        assert!(KVM_ARM_MAX_DBG_REGS == kvm_bindings::KVM_ARM_MAX_DBG_REGS as usize);
        assert!(KVM_GUESTDBG_ENABLE == kvm_bindings::KVM_GUESTDBG_ENABLE);
        assert!(KVM_GUESTDBG_SINGLESTEP == kvm_bindings::KVM_GUESTDBG_SINGLESTEP);
        assert!(KVM_GUESTDBG_USE_SW_BP == kvm_bindings::KVM_GUESTDBG_USE_SW_BP);
        assert!(KVM_GUESTDBG_USE_HW == kvm_bindings::KVM_GUESTDBG_USE_HW);
        assert!(KVM_DEBUG_ARCH_HSR_HIGH_VALID as u32 == kvm_bindings::KVM_DEBUG_ARCH_HSR_HIGH_VALID);
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WatchKind;
    use crate::arm64::{BreakpointSlot, WatchSlot};

    fn armed(breakpoints: usize) -> HwDebug {
        let address = |n| 0xffff_8000_8000_0000 + 4 * n as u64;
        HwDebug {
            breakpoints: (0..breakpoints).map(|n| BreakpointSlot { address: address(n) }).collect(),
            watchpoints: vec![WatchSlot { address: 0x1000, mask: 0, bas: 0x0f, kind: WatchKind::Write }],
        }
    }

    #[test]
    fn slots_go_to_registers_in_order() {
        let arch = GuestDebugArch::from(&armed(2));
        assert_eq!(arch.dbg_bvr[..3], [0xffff_8000_8000_0000, 0xffff_8000_8000_0004, 0]);
        assert_eq!(arch.dbg_bcr[..3], [0x1e7, 0x1e7, 0]);
        assert_eq!((arch.dbg_wvr[0], arch.dbg_wcr[0]), (0x1000, 0x1f7));
        assert_eq!((arch.dbg_wvr[1], arch.dbg_wcr[1]), (0, 0));
    }

    #[test]
    fn a_seventeenth_slot_has_no_register() {
        let arch = GuestDebugArch::from(&armed(17));
        assert_eq!(arch.dbg_bcr, [0x1e7; 16]);
        assert!(armed(17).check(KVM_ARM_MAX_DBG_REGS, KVM_ARM_MAX_DBG_REGS).is_err());
    }

    #[test]
    fn control_flags_follow_the_settings() {
        let config = |enabled, single_step, hw| {
            GuestDebug::new(&DebugConfig { enabled, single_step, block_interrupts: false, hw })
        };
        assert_eq!(config(false, true, armed(1)), GuestDebug::default(), "nothing is left of a disabled debugger");
        assert_eq!(config(true, false, HwDebug::none()).control, 0x1_0001);
        assert_eq!(config(true, true, HwDebug::none()).control, 0x1_0003);
        assert_eq!(config(true, false, armed(1)).control, 0x3_0001);
    }

    #[test]
    fn the_upper_half_of_the_syndrome_needs_its_flag() {
        let exit = DebugExitArch { hsr: 0xf200_0001, hsr_high: 0x5a5a_5a5a, far: 0 };
        assert_eq!(exit.syndrome(0), 0xf200_0001);
        assert_eq!(exit.syndrome(KVM_DEBUG_ARCH_HSR_HIGH_VALID), 0x5a5a_5a5a_f200_0001);
    }
}
