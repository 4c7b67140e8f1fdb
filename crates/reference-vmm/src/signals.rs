//! SIGTERM, SIGINT and SIGHUP end the VM as an error does, so that the terminal and the sockets are tidied up. They end whoever
//! serves a saved VM as well, which is no error there.

use crate::control::{Control, Request};
use crate::error::VmError;
use libc::c_int;
use std::sync::Arc;
use std::{io, thread};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{block_signal, create_sigset};

const SIGNALS: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Takes these signals over, for this thread and those that it starts afterwards.
///
/// # Errors
///
/// [`VmError::Os`] when there is no thread left.
pub fn watch(control: Arc<Control>) -> Result<(), VmError> {
    spawn(move |signal| control.request(Request::Fail(VmError::Signal(signal))))
}

/// The same; the answer becomes readable with the first of them.
///
/// # Errors
///
/// [`VmError::Os`] when there is no thread or no descriptor left.
pub fn as_event() -> Result<EventFd, VmError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(VmError::io("eventfd"))?;
    let theirs = event.try_clone().map_err(VmError::io("dup"))?;
    spawn(move |signal| {
        log::info!("ended by signal {signal}");
        if let Err(error) = theirs.write(1) {
            log::error!("eventfd: {error}");
        }
    })?;
    Ok(event)
}

/// Leaves these signals to other threads.
pub fn block() {
    for signal in SIGNALS {
        // The only failure that is left is that it is blocked already, which is what is wanted.
        let _ = block_signal(signal);
    }
}

fn spawn(then: impl FnOnce(c_int) + Send + 'static) -> Result<(), VmError> {
    block();
    let set = create_sigset(&SIGNALS).map_err(|error| VmError::Os { operation: "sigaddset", source: error.into() })?;
    let body = move || then(wait(&set));
    thread::Builder::new().name("signals".to_owned()).spawn(body).map(drop).map_err(VmError::io("clone"))
}

#[expect(unsafe_code, reason = "sigwait")]
fn wait(set: &libc::sigset_t) -> c_int {
    let mut signal = 0;
    // SAFETY: both pointers are valid for the call.
    while unsafe { libc::sigwait(set, &mut signal) } != 0 {
        log::debug!("sigwait: {}", io::Error::last_os_error());
    }
    signal
}
