//! Looking at a VM that was saved, on any host: as a table, as JSON, or with gdb.
//!
//! [`Frozen`] is the saved VM, whichever VMM's format it comes from; [`open`] reads this VMM's and cloud-hypervisor's.
//! Everything else works on a [`Frozen`] alone.

pub mod cloud_hypervisor;
mod frozen;
mod report;
mod serve;
mod table;

pub use frozen::{Frozen, FrozenError, FrozenMemory, FrozenRegion, FrozenVcpu};
pub use report::{REPORT_FORMAT, Report};
pub use serve::{FrozenVm, serve};

use crate::error::VmError;
use crate::layout::RAM_BASE;
use crate::snapshot::{STATE_FILE, Snapshot};
use crate::state::VmState;
use guest_debug_gdb::ListenAddress;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What becomes of a snapshot that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A table on stdout.
    Table,
    /// JSON on stdout.
    Json,
    /// A gdb server at this address, until SIGINT, SIGTERM or SIGHUP.
    Gdb(ListenAddress),
}

/// Looks at a snapshot.
///
/// # Errors
///
/// As [`open`]; [`VmError::Debug`] when gdb can't be served, [`VmError::Os`] when stdout can't be written.
pub fn inspect(directory: &Path, output: &Output) -> Result<(), VmError> {
    let frozen = open(directory)?;
    let report = Report::of(&frozen);
    let text = match output {
        Output::Table => report.to_string(),
        Output::Json => report.to_json()?,
        Output::Gdb(address) => {
            let server = crate::gdb::bind(address)?;
            let shutdown = crate::signals::as_event()?;
            log::info!("{} is served until Ctrl-C", directory.display());
            return serve(server, &frozen, shutdown);
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(VmError::io("write"))
}

/// Opens a snapshot of this VMM, or of cloud-hypervisor.
///
/// # Errors
///
/// [`VmError::Snapshot`] and [`VmError::State`] with the file and what is wrong in it.
pub fn open(directory: &Path) -> Result<Frozen, VmError> {
    if cloud_hypervisor::is_one(directory) {
        return cloud_hypervisor::open(directory);
    }
    let snapshot = Snapshot::open(directory)?;
    let file = snapshot.memory().try_clone().map_err(VmError::io("dup"))?;
    let VmState { architecture, machine, vcpus, guest_debug, .. } = snapshot.state;
    let vcpus = vcpus.into_iter().map(|vcpu| {
        let registers = vcpu.registers.into_iter().map(|register| (register.id, register.value));
        FrozenVcpu::from_kvm(vcpu.mp_state != MP_STATE_STOPPED, registers)
    });
    let (address, length) = (GuestAddress(RAM_BASE), machine.memory_mib << 20);
    let memory = vec![FrozenRegion { address, length, file: Arc::new(file), offset: 0 }];
    Frozen::new(architecture, vcpus.collect(), memory, guest_debug.map(Arc::unwrap_or_clone)).map_err(|error| {
        let path = directory.join(STATE_FILE);
        VmError::Snapshot { path, reason: error.to_string() }
    })
}

/// `KVM_MP_STATE_STOPPED`: powered off by PSCI. Here by its number, because the kernel's bindings are a dependency on
/// arm64 hosts alone.
const MP_STATE_STOPPED: u32 = 5;
