//! Looking at a VM that was saved, on any host: as a table, as JSON, or with gdb.
//!
//! [`Frozen`] is the saved VM, whichever VMM's format it comes from; [`open`] reads this VMM's and cloud-hypervisor's.
//! Everything else works on a [`Frozen`] alone.

mod arm64;
pub mod cloud_hypervisor;
mod frozen;
mod inspected;
mod report;
mod serve;
mod table;
mod x86_64;

pub use frozen::{Frozen, FrozenError, FrozenMemory, FrozenRegion, FrozenVcpu};
pub use inspected::Inspected;
pub use report::{REPORT_FORMAT, Report};
pub use serve::{FrozenVm, serve};

use crate::error::VmError;
use crate::snapshot::{self, STATE_FILE, Snapshot};
use crate::state::VmState;
use guest_debug::state::Architecture;
use guest_debug::{Arm64, X86_64};
use guest_debug_gdb::{GdbServer, ListenAddress};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

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
    let text = match output {
        Output::Table => frozen.report().to_string(),
        Output::Json => frozen.report().to_json()?,
        Output::Gdb(address) => {
            let server = crate::gdb::bind(address)?;
            let shutdown = crate::signals::as_event()?;
            log::info!("{} is served until Ctrl-C", directory.display());
            return frozen.serve(server, shutdown);
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(VmError::io("write"))
}

/// A saved VM of either architecture.
#[derive(Debug)]
pub enum Opened {
    /// Of an arm64 guest.
    Arm64(Frozen<Arm64>),
    /// Of an x86_64 guest.
    X86_64(Frozen<X86_64>),
}

impl Opened {
    /// What there is to say about it.
    pub fn report(&self) -> Report {
        match self {
            Self::Arm64(frozen) => Report::of(frozen),
            Self::X86_64(frozen) => Report::of(frozen),
        }
    }

    /// See [`serve`].
    ///
    /// # Errors
    ///
    /// As [`serve`].
    pub fn serve(&self, server: GdbServer, shutdown: EventFd) -> Result<(), VmError> {
        match self {
            Self::Arm64(frozen) => serve(server, frozen, shutdown),
            Self::X86_64(frozen) => serve(server, frozen, shutdown),
        }
    }
}

/// Opens a snapshot of this VMM, or of cloud-hypervisor.
///
/// # Errors
///
/// [`VmError::Snapshot`] and [`VmError::State`] with the file and what is wrong in it.
pub fn open(directory: &Path) -> Result<Opened, VmError> {
    if cloud_hypervisor::is_one(directory) {
        return cloud_hypervisor::open(directory).map(Opened::Arm64);
    }
    match snapshot::header(directory)?.architecture {
        Architecture::Aarch64 => own(directory).map(Opened::Arm64),
        Architecture::X86_64 => own(directory).map(Opened::X86_64),
    }
}

fn own<A: Inspected>(directory: &Path) -> Result<Frozen<A>, VmError> {
    let snapshot = Snapshot::<A>::open(directory)?;
    let file = Arc::new(snapshot.memory().try_clone().map_err(VmError::io("dup"))?);
    let VmState { machine, vcpus, guest_debug, .. } = snapshot.state;
    let vcpus = vcpus.into_iter().map(|vcpu| {
        let powered_on = A::is_powered_on(&vcpu);
        FrozenVcpu::new(powered_on, A::registers(vcpu, &machine.features))
    });
    let mut offset = 0;
    let memory = A::ram(machine.memory_mib).into_iter().map(|(address, length)| {
        let region = FrozenRegion { address, length, file: file.clone(), offset };
        offset += length;
        region
    });
    Frozen::new(vcpus.collect(), memory.collect(), guest_debug.map(Arc::unwrap_or_clone)).map_err(|error| {
        let path = directory.join(STATE_FILE);
        VmError::Snapshot { path, reason: error.to_string() }
    })
}
