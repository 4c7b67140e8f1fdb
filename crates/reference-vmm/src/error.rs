//! Why a VM could not be made, or ended badly.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Everything that can go wrong, with what was wrong and what would have been right.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// A VM can't be run on this machine.
    #[error("that needs an arm64 or x86_64 host with /dev/kvm; this one is {0}")]
    UnsupportedHost(&'static str),
    /// A setting is outside its range.
    #[error("{name} is {value}; it can be {acceptable}")]
    Setting {
        /// The setting, as on the command line.
        name: &'static str,
        /// What was asked for.
        value: String,
        /// What would have been acceptable.
        acceptable: String,
    },
    /// A file can't be opened or read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A field of the kernel file has a value that can't be used.
    #[error("{path}: {field} is {value:#x}; {acceptable}", path = path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The field, named as in its format.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would have been acceptable.
        acceptable: String,
    },
    /// A part of the boot payload does not fit in guest memory.
    #[error("{what} needs {needed:#x} bytes of guest memory, {available:#x} are there; give more with --memory")]
    OutOfMemory {
        /// The part.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are for it.
        available: u64,
    },
    /// Guest memory could not be allocated.
    #[error("cannot allocate {mib} MiB of guest memory: {reason}")]
    Memory {
        /// The size asked for.
        mib: u64,
        /// What the system said.
        reason: String,
    },
    /// Guest memory could not be written.
    #[error("cannot write {what} to guest memory: {reason}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// What vm-memory said.
        reason: String,
    },
    /// The device tree could not be made.
    #[error("device tree: {0}")]
    Fdt(#[from] vm_fdt::Error),
    /// A system call failed.
    #[error("{operation} failed: {source}")]
    Os {
        /// The call, as the kernel names it.
        operation: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The host's KVM lacks something that is needed.
    #[error("KVM on this host has no {0}")]
    MissingCapability(&'static str),
    /// A vCPU can't go on.
    #[error("vCPU {vcpu}: {reason}")]
    Vcpu {
        /// Its index.
        vcpu: u32,
        /// What happened.
        reason: String,
    },
    /// The guest reported that it crashed.
    #[error("the guest reported a crash (KVM_SYSTEM_EVENT_CRASH)")]
    GuestCrash,
    /// A signal ended the VMM.
    #[error("ended by signal {0}")]
    Signal(i32),
    /// A field of a saved or received VM has a value that can't be used.
    #[error("the VM's state: {field} is {value}; it can be {acceptable}")]
    State {
        /// The field, as in the file.
        field: String,
        /// Its value.
        value: String,
        /// What would have been acceptable.
        acceptable: String,
    },
    /// A snapshot can't be written or read.
    #[error("snapshot {path}: {reason}", path = path.display())]
    Snapshot {
        /// Its directory, or the file in it.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The guest reset itself, and the files to boot are not here.
    #[error("the guest wants to boot again, which it can't here: {0}")]
    NoPayload(String),
    /// A migration failed. The guest is where the text says.
    #[error("migration: {0}")]
    Migration(String),
    /// The control socket can't be used, or the VM behind it answers an error.
    #[error("{0}")]
    Control(String),
    /// The VM does something else, or has ended.
    #[error("the VM can't do that now: {0}")]
    Busy(&'static str),
    /// The debug session or its server failed.
    #[error("debugger: {0}")]
    Debug(String),
}

impl From<guest_debug::SessionError> for VmError {
    fn from(error: guest_debug::SessionError) -> Self {
        Self::Debug(error.to_string())
    }
}

impl VmError {
    /// For `map_err` after a call that answers an [`io::Error`].
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { operation, source }
    }
}
