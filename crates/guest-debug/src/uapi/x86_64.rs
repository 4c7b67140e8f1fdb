//! The kernel's interface for guest debugging on x86_64, typed: `arch/x86/include/uapi/asm/kvm.h`.
//!
//! The flags that all architectures have are those of the module above.

use super::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP};
use crate::DebugConfig;
use crate::x86_64::HwDebug;
use std::mem::{align_of, offset_of, size_of};

/// `KVM_GUESTDBG_INJECT_DB`: the guest gets a #DB at the next entry.
pub const KVM_GUESTDBG_INJECT_DB: u32 = 1 << 18;
/// `KVM_GUESTDBG_INJECT_BP`: the guest gets a #BP at the next entry.
pub const KVM_GUESTDBG_INJECT_BP: u32 = 1 << 19;
/// `KVM_GUESTDBG_BLOCKIRQ`, Linux 5.16: no interrupt, NMI or SMI is delivered during a step. `KVM_CAP_SET_GUEST_DEBUG2` says
/// whether there is such a flag.
pub const KVM_GUESTDBG_BLOCKIRQ: u32 = 1 << 20;

/// `struct kvm_guest_debug` with the `struct kvm_guest_debug_arch` of x86: the argument of `KVM_SET_GUEST_DEBUG`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestDebug {
    /// `KVM_GUESTDBG_*` flags.
    pub control: u32,
    /// Padding, 0.
    pub pad: u32,
    /// DR0 to DR7, used with `KVM_GUESTDBG_USE_HW_BP`, which has the value of [`KVM_GUESTDBG_USE_HW`].
    pub debugreg: [u64; 8],
}

impl GuestDebug {
    /// The ioctl's argument for a vCPU's settings. All of it is 0 where debugging is not enabled.
    pub fn new(config: &DebugConfig<HwDebug>) -> Self {
        if !config.enabled {
            return Self::default();
        }
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let armed = config.hw != HwDebug::default();
        let control = KVM_GUESTDBG_ENABLE
            | KVM_GUESTDBG_USE_SW_BP
            | flag(config.single_step, KVM_GUESTDBG_SINGLESTEP)
            | flag(config.single_step && config.block_interrupts, KVM_GUESTDBG_BLOCKIRQ)
            | flag(armed, KVM_GUESTDBG_USE_HW);
        Self { control, pad: 0, debugreg: if armed { config.hw.to_registers() } else { [0; 8] } }
    }
}

const _: () = {
    assert!(size_of::<GuestDebug>() == 72 && align_of::<GuestDebug>() == 8);
    assert!(offset_of!(GuestDebug, debugreg) == 8);
};

/// The same types as kvm-bindings has them, for its ioctl wrappers.
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "kvm"))]
mod bindings {
    use super::*;
    use crate::x86_64::stop::DebugExitArch;
    use kvm_bindings::{kvm_debug_exit_arch, kvm_guest_debug, kvm_guest_debug_arch};

    impl From<&GuestDebug> for kvm_guest_debug {
        fn from(debug: &GuestDebug) -> Self {
            let arch = kvm_guest_debug_arch { debugreg: debug.debugreg };
            Self { control: debug.control, pad: debug.pad, arch }
        }
    }

    impl From<kvm_debug_exit_arch> for DebugExitArch {
        fn from(exit: kvm_debug_exit_arch) -> Self {
            Self { exception: exit.exception, pc: exit.pc, dr6: exit.dr6, dr7: exit.dr7 }
        }
    }

    const _: () = {
        assert!(size_of::<GuestDebug>() == size_of::<kvm_guest_debug>());
        assert!(offset_of!(GuestDebug, control) == offset_of!(kvm_guest_debug, control));
        assert!(offset_of!(GuestDebug, debugreg) == offset_of!(kvm_guest_debug, arch));
        assert!(KVM_GUESTDBG_USE_HW == kvm_bindings::KVM_GUESTDBG_USE_HW_BP);
        assert!(KVM_GUESTDBG_USE_SW_BP == kvm_bindings::KVM_GUESTDBG_USE_SW_BP);
        assert!(KVM_GUESTDBG_INJECT_DB == kvm_bindings::KVM_GUESTDBG_INJECT_DB);
        assert!(KVM_GUESTDBG_INJECT_BP == kvm_bindings::KVM_GUESTDBG_INJECT_BP);
        assert!(KVM_GUESTDBG_BLOCKIRQ == kvm_bindings::KVM_GUESTDBG_BLOCKIRQ);
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::slot::Condition;
    use crate::x86_64::{Slot, VaBits};

    #[test]
    fn control_flags_follow_the_settings() {
        let slot = Slot::new(0x1000, Condition::Execute, VaBits::Bits48).unwrap();
        let (none, armed) = (HwDebug::default(), HwDebug::new(&[slot]).unwrap());
        let config = |enabled, single_step, block_interrupts, hw| {
            GuestDebug::new(&DebugConfig { enabled, single_step, block_interrupts, hw })
        };
        assert_eq!(config(false, true, true, armed), GuestDebug::default(), "nothing is left of a disabled debugger");
        assert_eq!(config(true, false, true, none).control, 0x1_0001, "interrupts are blocked under steps only");
        assert_eq!(config(true, true, false, none).control, 0x1_0003);
        assert_eq!(config(true, true, true, none).control, 0x11_0003);
        let debug = config(true, false, false, armed);
        assert_eq!((debug.control, debug.debugreg), (0x3_0001, [0x1000, 0, 0, 0, 0, 0, 0, 0x602]));
        assert_eq!(config(true, false, false, none).debugreg, [0; 8]);
    }
}
