//! The VM on KVM/arm64.

mod debug;
mod gic;
mod vcpu;
mod vm;

pub use gic::{Gic, GicState};
pub use vcpu::Vcpu;
pub use vm::Vm;

use crate::error::VmError;
use vmm_sys_util::errno;

/// For `map_err` after a KVM call.
fn kvm_error(operation: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Os { operation, source: error.into() }
}
