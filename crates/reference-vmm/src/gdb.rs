//! The gdb server's thread.

use crate::error::VmError;
use guest_debug::DebugSession;
use guest_debug_gdb::{GdbArch, GdbServer, ListenAddress, SessionVm};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long a client of a VM that has moved may look around before its connection is closed.
const FAREWELL: Duration = Duration::from_secs(30);

/// A gdb server on its own thread.
#[derive(Debug)]
pub struct Server<A: GdbArch> {
    vm: SessionVm<A>,
    session: Arc<DebugSession<A>>,
    shutdown: EventFd,
    thread: JoinHandle<()>,
}

/// Opens the address; clients that connect from now on are served once the server is started.
///
/// # Errors
///
/// [`VmError::Debug`] when the address can't be had.
pub fn bind(address: &ListenAddress) -> Result<GdbServer, VmError> {
    let server = GdbServer::bind(address).map_err(|error| VmError::Debug(error.to_string()))?;
    log::info!("gdb server on {}", server.local_address());
    Ok(server)
}

impl<A: GdbArch> Server<A> {
    /// Serves clients from now on.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] for lack of a thread or a descriptor.
    pub fn start(server: GdbServer, session: Arc<DebugSession<A>>, vm: SessionVm<A>) -> Result<Self, VmError> {
        let shutdown = EventFd::new(EFD_NONBLOCK).map_err(VmError::io("eventfd"))?;
        let (served, end) = (vm.clone(), shutdown.try_clone().map_err(VmError::io("dup"))?);
        let body = move || {
            if let Err(error) = server.run(served, end) {
                log::error!("the gdb server ended: {error}");
            }
        };
        let thread = thread::Builder::new().name("gdb".to_owned()).spawn(body).map_err(VmError::io("clone"))?;
        Ok(Self { vm, session, shutdown, thread })
    }

    /// Tells the client that the guest has ended, with a code, or that it has moved; and ends the server.
    pub fn finish(self, code: Option<u8>) {
        match code {
            Some(code) => self.vm.report_end(code),
            None => {
                self.vm.report_moved();
                // A client that is not waiting for a stop looks around first; gdb 13 does not survive an end in the middle.
                self.session.wait_detached(FAREWELL);
            }
        }
        if let Err(error) = self.shutdown.write(1) {
            return log::error!("the gdb server can't be told to end: {error}");
        }
        if self.thread.join().is_err() {
            log::error!("the gdb server panicked");
        }
    }
}
