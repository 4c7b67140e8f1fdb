//! KVM behind the hypervisor trait.
//!
//! All that depends on the host's architecture is in this module: the trait's implementation for
//! [`kvm_ioctls::VcpuFd`] is that of the host's architecture, the rest compiles everywhere.

#[cfg(target_arch = "aarch64")]
mod arm64;
pub mod regid;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::DebugCaps;
use kvm_ioctls::{Cap, VmFd};

/// What this host's KVM can do for a debugger, by `KVM_CHECK_EXTENSION` on the VM
/// (kernel: `kvm_vm_ioctl_check_extension` of the architecture).
pub fn probe(vm: &VmFd) -> DebugCaps {
    // KVM answers 0 for what it does not know, and a negative number never for these.
    let count = |cap: u32| vm.check_extension_raw(cap.into()).max(0);
    let guest_debug = vm.check_extension(Cap::SetGuestDebug);
    DebugCaps {
        guest_debug,
        hw_bps: slots(guest_debug, count(kvm_bindings::KVM_CAP_GUEST_DEBUG_HW_BPS) as usize),
        hw_wps: slots(guest_debug, count(kvm_bindings::KVM_CAP_GUEST_DEBUG_HW_WPS) as usize),
        control_flags: count(kvm_bindings::KVM_CAP_SET_GUEST_DEBUG2) as u32,
    }
}

/// The architecture of this host's guests.
#[cfg(target_arch = "aarch64")]
pub type HostArch = crate::Arm64;
/// The architecture of this host's guests.
#[cfg(target_arch = "x86_64")]
pub type HostArch = crate::X86_64;

/// Slots of a vCPU. KVM does not count them on x86_64, where every CPU has four for both.
fn slots(guest_debug: bool, counted: usize) -> usize {
    match (cfg!(target_arch = "x86_64"), guest_debug) {
        (true, true) => crate::x86_64::dbgreg::SLOTS,
        _ => counted,
    }
}

/// Makes `length` bytes of code that were just written at `start` visible to instruction fetches through any other
/// mapping of them. For VMMs that implement [`crate::GuestRam::sync_code`] themselves.
///
/// # Safety
///
/// The bytes must be mapped in this process.
#[expect(unsafe_code, reason = "the caller answers for the mapping")]
pub unsafe fn sync_code(start: *const u8, length: usize) {
    sync_icache(start, length);
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm64::sync_icache;

/// Instruction caches of other architectures are coherent with stores.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn sync_icache(_start: *const u8, _length: usize) {}
