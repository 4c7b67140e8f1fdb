//! The VM on KVM, for guests of the host's architecture.
//!
//! What it asks of the architecture is in `platform`, which is `arm64` or `x86_64`:
//!
//! * `create_vm`: KVM's VM, with what has to be there before its vCPUs.
//! * `Features`: what every vCPU is given; of this host, or those of a saved VM.
//! * `Parts` and an `impl Vcpu`: a vCPU's making, its reset, its state.
//! * `Chips`: interrupt controllers and timers, and their state.
//! * `Bus`: what the guest's accesses to devices come to.
//! * `Payload` and `load`: what is in guest memory when the first vCPU starts.
//! * `debug_exit`: what KVM says about a debug exit.

#[cfg(target_arch = "aarch64")]
mod arm64;
mod debug;
mod dirty;
mod machine;
mod operations;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use arm64 as platform;
pub use machine::Machine;
pub use operations::Receiver;
pub use vcpu::Vcpu;
pub use vm::{Afterwards, Operation, Vm};
#[cfg(target_arch = "x86_64")]
use x86_64 as platform;

use crate::error::VmError;
use vmm_sys_util::errno;

/// For `map_err` after a KVM call.
fn kvm_error(operation: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Os { operation, source: error.into() }
}
