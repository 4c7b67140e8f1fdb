//! gdb server for virtual machine monitors.
//!
//! gdb and lldb attach to a guest as to a program with one thread per vCPU: breakpoints, watchpoints, steps,
//! registers (system registers included) and memory, by virtual or physical address. Whoever has a
//! [`DebugSession`](guest_debug::DebugSession) of the `guest-debug` crate needs two lines beside an address:
//!
//! ```no_run
//! use guest_debug::DebugSession;
//! use guest_debug_gdb::{GdbServer, ListenAddress, SessionVm};
//! use std::sync::Arc;
//! use vmm_sys_util::eventfd::EventFd;
//!
//! fn serve(session: Arc<DebugSession>, shutdown: EventFd) -> Result<(), Box<dyn std::error::Error>> {
//!     let address: ListenAddress = "unix:/run/vm/gdb.sock".parse()?;
//!     let server = GdbServer::bind(&address)?;
//!     std::thread::spawn(move || server.run(SessionVm::new(session), shutdown));
//!     Ok(())
//! }
//! ```
//!
//! Everyone else implements [`DebugVm`]: coarse calls with owned values, made for being sent over a channel to
//! the thread that owns the VM.
//!
//! The protocol is gdbstub's, driven by an event loop: while the guest runs the server sleeps. Nothing that a
//! client sends can make it panic, and nothing that it fails to read can make it wait.

#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as guest_debug_gdb;

mod address;
mod arch;
mod connection;
mod description;
mod error;
mod frame;
mod gate;
mod listener;
mod payload;
mod server;
mod session_vm;
mod stub;
mod target;
mod vm;
mod vm_thread;

pub use address::ListenAddress;
pub use description::GdbArch;
pub use error::{AddressError, ServerError};
pub use listener::{Listener, SocketFile, Stream};
pub use server::{GdbServer, ServerOptions, VanishPolicy};
pub use session_vm::{Monitor, SessionVm};
pub use vm::{DebugVm, InsertedBreakpoint, MemoryAddress, VmError, VmEvent};
