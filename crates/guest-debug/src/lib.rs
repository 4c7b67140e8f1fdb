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
//! * [`agent`] evaluates conditions and messages of breakpoints: gdb's agent expressions.
//! * [`arm64`] holds the pure parts: register codecs, syndromes, instruction decoding, translation tables.
//! * [`x86_64`] is the same for x86_64 guests, whose sessions are `DebugSession<X86_64>`.
//!
//! # Example
//!
//! A VMM's part in it: the way to its vCPUs ([`VmHost`]), and a few calls in the loop of each vCPU's thread.
//!
//! ```no_run
//! use guest_debug::arm64::Reg;
//! use guest_debug::{
//!     Breakpoint, DebugCaps, DebugConfig, DebugExit, DebugSession, DebugVcpu, Entry, Gva, SessionError, VcpuDebugger,
//!     VcpuError, VcpuId, VmHost, Wait,
//! };
//! use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
//! use std::thread;
//! use vm_memory::GuestMemoryMmap;
//!
//! /// Stands for KVM's `VcpuFd`, which implements `DebugVcpu` on arm64 hosts.
//! struct Fd;
//! # impl DebugVcpu for Fd {}
//! # impl Fd {
//! #     fn set_immediate_exit(&mut self, _: bool) {}
//! #     fn run(&mut self) -> Exit { Exit::Interrupted }
//! # }
//!
//! /// What KVM_RUN answers. `DebugExit::from_kvm` makes a `DebugExit` of KVM's own structure.
//! enum Exit {
//!     Debug(DebugExit),
//!     Mmio,
//!     Interrupted,
//! }
//!
//! /// The lock is held while the guest runs, and never while the thread waits.
//! struct Vcpu(Mutex<Fd>);
//!
//! impl Vcpu {
//!     fn lock(&self) -> MutexGuard<'_, Fd> {
//!         self.0.lock().unwrap_or_else(PoisonError::into_inner)
//!     }
//! }
//!
//! /// For other threads: the session asks for stopped vCPUs only, so the lock is free.
//! impl DebugVcpu for Vcpu {
//!     fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
//!         self.lock().set_guest_debug(config)
//!     }
//!     fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
//!         self.lock().get_reg(reg, value)
//!     }
//!     fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
//!         self.lock().set_reg(reg, value)
//!     }
//!     fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
//!         self.lock().reg_list()
//!     }
//! }
//!
//! struct Host(Vec<Arc<Vcpu>>);
//!
//! impl VmHost for Host {
//!     fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
//!         self.0.get(id.0 as usize).map(|vcpu| vcpu.clone() as _)
//!     }
//!     fn kick(&self, _id: VcpuId) {
//!         // A signal to the vCPU's thread, whose handler sets kvm_run.immediate_exit.
//!     }
//! }
//!
//! fn run_vcpu(vcpu: &Vcpu, mut debugger: VcpuDebugger) -> Result<(), SessionError> {
//!     while debugger.wait() == Wait::Run {
//!         let mut fd = vcpu.lock();
//!         // Cleared first, flags looked at second (in before_run), guest entered last: no kick is lost.
//!         fd.set_immediate_exit(false);
//!         if debugger.before_run(&*fd)? == Entry::Again {
//!             continue;
//!         }
//!         match fd.run() {
//!             Exit::Debug(exit) => debugger.on_debug_exit(&*fd, exit)?,
//!             Exit::Mmio => {
//!                 // ... the device answers, and then:
//!                 if debugger.needs_io_completion() {
//!                     fd.set_immediate_exit(true);
//!                     match fd.run() {
//!                         Exit::Debug(exit) => debugger.on_debug_exit(&*fd, exit)?,
//!                         _ => debugger.after_io(&*fd)?,
//!                     }
//!                 }
//!             }
//!             Exit::Interrupted => {}
//!         }
//!     }
//!     Ok(())
//! }
//!
//! fn debug(vcpus: Vec<Arc<Vcpu>>, caps: DebugCaps, ram: Arc<GuestMemoryMmap>) -> Result<(), SessionError> {
//!     // With `true` in place of `false` no vCPU would execute anything before a client resumes it.
//!     let session = DebugSession::new(vcpus.len() as u32, caps, Arc::new(ram), false)?;
//!     session.set_host(Box::new(Host(vcpus.clone())))?;
//!     for (id, vcpu) in (0..).map(VcpuId).zip(vcpus) {
//!         let debugger = session.vcpu_thread(id)?;
//!         thread::spawn(move || run_vcpu(&vcpu, debugger));
//!     }
//!
//!     // A client's part; the gdb server of guest-debug-gdb does the same.
//!     session.attach()?;
//!     session.insert(VcpuId(0), Breakpoint::Hardware(Gva(0xffff_8000_0801_0000)))?;
//!     session.resume(&[])?;
//!     // ... once session.stop_fd() is readable:
//!     while let Some(stop) = session.take_stop()? {
//!         println!("{}: {:?}", stop.vcpu, stop.reason);
//!         session.resume(&[])?;
//!     }
//!     session.detach()
//! }
//! ```
//!
//! # vm-memory
//!
//! The crate's memory is vm-memory's, re-exported as [`vm_memory`]. A VMM that is on version 0.17 turns the default feature
//! `address-space` off, and implements [`GuestRam`] for a type of its own.

pub mod agent;
mod arch;
pub mod arm64;
#[cfg(all(feature = "kvm", target_os = "linux"))]
pub mod kvm;
mod ram;
mod session;
pub mod state;
mod stop;
pub mod uapi;
mod vcpu;
pub mod x86_64;

pub use arch::{AnyReg, Arch, Arm64, PlaceError, Register, X86_64};
pub use ram::{GuestRam, RamError};
pub use session::{
    BreakpointInfo, DebugSession, Entry, HitCounts, HitRule, Messages, Removed, Restore, RuleInfo, SavedState,
    SessionError, VcpuDebugger, VmHost, Wait,
};
pub use stop::{Breakpoint, Gva, ResumeAction, StopEvent, StopReason, Unsupported, VcpuId, VcpuState, WatchKind};
pub use vcpu::{DebugCaps, DebugConfig, DebugExit, DebugVcpu, VcpuError};
pub use vm_memory;
