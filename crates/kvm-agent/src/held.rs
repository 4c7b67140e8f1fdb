//! A VM for nothing but to be there.

use kvm_ioctls::{Error, Kvm, VmFd};

/// A VM without memory and vCPUs, until it is dropped.
///
/// While a kernel has any VM, a static key is on (`preempt_notifier_key` in `kernel/sched/core.c`), by which KVM hears that another
/// thread gets a vCPU's CPU. It is turned on with the first VM and off with the last one, by writing to instructions of the
/// scheduler. QEMU before 8.1 may miss such a write while its other thread translates the same page (its commit deba78709ae8, "Always lock
/// pages before translation"): the scheduler of the emulated machine goes on as if the key were off, and a VMM's thread gets its
/// guest's TPIDR_EL0 for its own where KVM runs in VHE. Where VMs come and go for tests, that is one in about a thousand. With a VM that is
/// there from the beginning, the key is turned once, when nothing else is going on.
#[derive(Debug)]
pub struct HeldVm {
    _vm: VmFd,
}

impl HeldVm {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// If `/dev/kvm` can't be opened, or makes no VM.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { _vm: Kvm::new()?.create_vm()? })
    }
}
