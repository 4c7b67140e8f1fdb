//! Guest debugger backend for KVM-based VMMs, arm64 first.
//!
//! A VMM that runs its guest with KVM can stop it, step it and watch its memory from outside. This crate turns
//! the kernel's small interface for that (`KVM_SET_GUEST_DEBUG`, `KVM_EXIT_DEBUG`) into a debug session:
//! hardware and software breakpoints on every vCPU, watchpoints of any length, steps that execute exactly the
//! guest's own instruction, decoded stop reasons, address translation. Exceptions that belong to the guest go
//! back to it as the architecture would have delivered them.
//!
//! * [`DebugVcpu`] is the hypervisor boundary. `kvm` implements it for KVM's `VcpuFd`.
//! * [`DebugSession`] belongs to the VM. It holds all logical state and is driven by a client, such as the gdb
//!   server of the `guest-debug-gdb` crate.
//! * [`VcpuDebugger`] belongs to a vCPU's thread, and decides there whatever does not stop the VM.
//! * [`arm64`] holds the pure parts: register codecs, syndromes, instruction decoding, translation tables.

pub mod arm64;
#[cfg(all(feature = "kvm", target_os = "linux"))]
pub mod kvm;
mod ram;
mod session;
mod stop;
pub mod uapi;
mod vcpu;

pub use ram::{GuestRam, RamError};
pub use session::{BreakpointInfo, DebugSession, Entry, Removed, SessionError, VcpuDebugger, VmHost, Wait};
pub use stop::{Breakpoint, Gva, ResumeAction, StopEvent, StopReason, Unsupported, VcpuId, VcpuState, WatchKind};
pub use vcpu::{DebugCaps, DebugConfig, DebugExit, DebugVcpu, VcpuError};
