//! What a VM of each architecture is made of, as far as it can be said without KVM.

use crate::error::VmError;
use crate::state::{arm64, x86_64};
use crate::{layout, pc};
use guest_debug::{Arm64, X86_64};
use guest_debug_gdb::GdbArch;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use vm_memory::GuestAddress;

/// The architecture of a guest, and what is saved of a machine that runs it.
pub trait Guest: GdbArch {
    /// What every vCPU is given when it is made.
    type Features: Part;
    /// The state of a vCPU.
    type Vcpu: Part;
    /// The state of interrupt controllers and timers.
    type Devices: Part;

    /// The most vCPUs that a machine can have.
    const MAX_CPUS: u32;

    /// Regions of RAM, address and length in bytes, of a machine with so much memory.
    fn ram(memory_mib: u64) -> Vec<(GuestAddress, u64)>;
}

/// A part of a saved VM.
pub trait Part: Clone + Debug + PartialEq + Eq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Checks what can be checked without a VM; `path` is that of the part.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    fn check(&self, path: &str) -> Result<(), VmError>;
}

impl Guest for Arm64 {
    type Features = arm64::Features;
    type Vcpu = arm64::VcpuState;
    type Devices = arm64::Devices;

    const MAX_CPUS: u32 = layout::MAX_CPUS;

    fn ram(memory_mib: u64) -> Vec<(GuestAddress, u64)> {
        vec![(GuestAddress(layout::RAM_BASE), memory_mib << 20)]
    }
}

impl Guest for X86_64 {
    type Features = x86_64::Features;
    type Vcpu = x86_64::VcpuState;
    type Devices = x86_64::Devices;

    const MAX_CPUS: u32 = pc::layout::MAX_CPUS;

    fn ram(memory_mib: u64) -> Vec<(GuestAddress, u64)> {
        pc::layout::ram(memory_mib << 20)
    }
}
