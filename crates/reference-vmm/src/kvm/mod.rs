//! The VM on KVM/arm64.

mod debug;
mod dirty;
mod gic;
mod machine;
mod operations;
mod save;
mod vcpu;
mod vm;
mod vm_fd;

pub use gic::Gic;
pub use machine::Machine;
pub use operations::Receiver;
pub use vcpu::{Vcpu, VcpuFeatures};
pub use vm::{Afterwards, Operation, Vm};

use crate::error::VmError;
use vmm_sys_util::errno;

/// For `map_err` after a KVM call.
fn kvm_error(operation: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Os { operation, source: error.into() }
}
