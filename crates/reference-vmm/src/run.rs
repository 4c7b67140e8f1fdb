//! A VM in this process, with what is around it: console, gdb server, control socket.

use crate::config::{DebugLimits, DebugMode, VmConfig};
use crate::error::VmError;
use crate::migration::MigrationAddress;
use guest_debug_gdb::ListenAddress;
use std::fmt;
use std::path::PathBuf;

/// Where a VM comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is booted.
    Boot(VmConfig),
    /// It was saved in this directory.
    Snapshot(PathBuf),
    /// Another process sends it to this address.
    Migration(MigrationAddress),
}

impl fmt::Display for Origin {
    /// What is done until it is here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(config) => write!(f, "loading {}", config.kernel.display()),
            Self::Snapshot(directory) => write!(f, "restoring what was saved in {}", directory.display()),
            Self::Migration(address) => write!(f, "waiting for a VM at {address}"),
        }
    }
}

/// What is around a VM.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Where gdb connects.
    pub gdb: Option<ListenAddress>,
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Whether a debugger can get at it.
    pub debug: DebugMode,
    /// How much of the host's debug hardware it uses.
    pub limits: DebugLimits,
    /// Leave the session in a snapshot unread.
    pub without_session: bool,
}

/// Runs a guest with stdin and stdout as its console, until it powers itself off or has moved elsewhere.
///
/// # Errors
///
/// Whatever keeps the VM from starting, or ends it otherwise.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub fn run(origin: &Origin, surroundings: &Surroundings) -> Result<(), VmError> {
    use crate::arrival::Arrival;
    use crate::console::{self, RawMode};
    use crate::control_socket::ControlSocket;
    use crate::operations::MonitorCommands;
    use guest_debug_gdb::SessionVm;
    use std::sync::Arc;
    // First, so that an address that can't be had ends it before anything has happened to a guest.
    let server = surroundings.gdb.as_ref().map(crate::gdb::bind).transpose()?;
    let control = surroundings.control.as_deref().map(ControlSocket::bind).transpose()?;
    let arrival = Arc::new(Arrival::new(origin.to_string())?);
    let control = control.map(|control| control.serve(arrival.clone())).transpose()?;
    let Some(vm) = make(origin, surroundings, &arrival)?.map(Arc::new) else { return finish(control, Ok(())) };
    // Before any other thread is started that has to inherit the signal mask.
    crate::signals::watch(vm.control().clone())?;
    arrival.is_here(vm.clone());
    let server = match (server, vm.session()) {
        (Some(server), Some(session)) => {
            let served = SessionVm::new(session.clone()).with_monitor(Arc::new(MonitorCommands(vm.clone())));
            Some(crate::gdb::Server::start(server, session.clone(), served)?)
        }
        _ => None,
    };
    let raw_mode = RawMode::enter();
    if raw_mode.is_some() {
        log::info!("Ctrl-A x ends the VM");
    }
    let input = console::stdin().map_err(VmError::io("dup"))?;
    console::forward(input, vm.serial().clone(), vm.control().clone(), raw_mode.is_some());
    let result = vm.run();
    if let Some(server) = server {
        // A client of a VM that has moved must not believe that the guest ended.
        server.finish(if vm.has_moved() { None } else { Some(u8::from(result.is_err())) });
    }
    finish(control, result)
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
fn finish(control: Option<crate::control_socket::ControlServer>, result: Result<(), VmError>) -> Result<(), VmError> {
    if let Some(control) = control {
        control.finish();
    }
    result
}

/// `None` when the user did not want to wait for it any longer.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
fn make(
    origin: &Origin,
    surroundings: &Surroundings,
    arrival: &crate::arrival::Arrival,
) -> Result<Option<crate::kvm::Vm>, VmError> {
    use crate::kvm::{Machine, Receiver, Vm};
    use crate::migration::{self, MigrationListener};
    use crate::snapshot::Snapshot;
    use std::sync::Mutex;
    let output = Box::new(std::io::stdout());
    let Surroundings { debug, limits, .. } = surroundings;
    match origin {
        Origin::Boot(config) => Vm::new(config, output).map(Some),
        Origin::Snapshot(directory) => {
            let mut snapshot = Snapshot::open(directory)?;
            if surroundings.without_session {
                snapshot.state.guest_debug = None;
            }
            let machine = Machine::like(&snapshot.state.machine, output)?;
            snapshot.load_memory(machine.ram())?;
            Vm::restored(machine, &snapshot.state, *debug, limits).map(Some)
        }
        Origin::Migration(address) => {
            let listener = MigrationListener::bind(address)?;
            let waiting = Origin::Migration(listener.address()).to_string();
            log::info!("{waiting}");
            arrival.waits(waiting);
            let Some(connection) = listener.accept(arrival.quit_event())? else { return Ok(None) };
            arrival.comes_over(&connection)?;
            let receiver = Receiver { output: Mutex::new(Some(output)), debug: *debug, limits: *limits };
            let received = migration::receive(&receiver, &connection, &mut |line| {
                log::info!("{line}");
                arrival.waits(line);
            });
            match received {
                Err(error) if arrival.is_ending() => {
                    log::info!("{error}");
                    Ok(None)
                }
                received => received.map(Some),
            }
        }
    }
}

/// Checks the settings and the files, and says that guests need another host.
///
/// # Errors
///
/// Always: what is wrong with them, or else [`VmError::UnsupportedHost`].
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
pub fn run(origin: &Origin, _: &Surroundings) -> Result<(), VmError> {
    match origin {
        Origin::Boot(config) => {
            config.check::<guest_debug::Arm64>()?;
            crate::boot::Payload::open(config)?;
        }
        Origin::Snapshot(directory) => drop(crate::snapshot::Snapshot::open(directory)?),
        Origin::Migration(_) => {}
    }
    Err(VmError::UnsupportedHost(std::env::consts::ARCH))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_run_is_refused_by_name() {
        let run = |origin| run(&origin, &Surroundings::default()).unwrap_err();
        let config = VmConfig::new("/nonexistent");
        let error = run(Origin::Boot(VmConfig { cpus: 255, ..config.clone() }));
        assert_eq!(error.to_string(), "--cpus is 255; it can be 1 to 254");
        let error = run(Origin::Boot(config));
        assert!(matches!(error, VmError::File { .. }), "{error}");
        let error = run(Origin::Snapshot("/nonexistent".into())).to_string();
        assert!(error.contains("/nonexistent/state.json"), "{error}");
    }
}
