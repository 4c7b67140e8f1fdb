//! Saving and moving a VM on KVM.

use super::debug;
use super::machine::Machine;
use super::vm::{Afterwards, Breakpoints, Vm};
use crate::config::{DebugLimits, DebugMode};
use crate::control::Request;
use crate::error::VmError;
use crate::memory::{self, Ram};
use crate::migration::{self, Connection, Destination, MigrationAddress, Offer, Source, Switch};
use crate::operations::Operations;
use crate::serial::Output;
use crate::snapshot;
use crate::state::VmState;
use guest_debug::kvm::HostArch;
use guest_debug::state::StateUpdate;
use guest_debug::{DebugSession, SavedState};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vm_memory::{Bytes as _, GuestAddress};

impl Operations for Vm {
    fn snapshot(&self, directory: &Path, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
        progress("stopping the guest".to_owned());
        let writer = snapshot::Writer::create(directory)?;
        let started = Instant::now();
        self.while_stopped(Breakpoints::Lifted, &mut |vm, _| {
            progress("writing".to_owned());
            // The state first, it fails sooner.
            writer.write_state(&vm.state(vm.session_state()?)?)?;
            writer.write_memory(vm.ram())?;
            Ok(((), Afterwards::GoOn))
        })?;
        writer.commit()?;
        Ok(format!(
            "saved in {}; the guest stood still for {:.3} s",
            directory.display(),
            started.elapsed().as_secs_f64()
        ))
    }

    fn migrate(&self, to: &MigrationAddress, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
        let report = migration::migrate(self, &Connection::open(to)?, progress)?;
        Ok(format!("the VM is at {to} now: {report}"))
    }

    fn status(&self) -> Result<String, VmError> {
        let debug = match self.session() {
            None => "no debugger".to_owned(),
            Some(session) if session.is_dormant() => "a debug session that is dormant".to_owned(),
            Some(session) => {
                let client = if session.attached() { "a client attached" } else { "no client" };
                format!("{client}, {} breakpoints and watchpoints", session.breakpoints().len())
            }
        };
        let states = self.session().map(|session| session.vcpu_states()).unwrap_or_default();
        let vcpus: Vec<_> = states.iter().map(|state| format!("{state:?}").to_lowercase()).collect();
        let vcpus = if vcpus.is_empty() { String::new() } else { format!(" ({})", vcpus.join(", ")) };
        Ok(format!("{} vCPUs{vcpus}, {debug}", self.vcpus().len()))
    }

    fn quit(&self) {
        self.control().request(Request::Quit);
    }
}

impl Source for Vm {
    type Guest = HostArch;

    fn offer(&self) -> Result<(Offer<HostArch>, Option<SavedState>), VmError> {
        let saved = self.while_stopped(Breakpoints::Planted, &mut |vm, _| {
            Ok((vm.session().map(|session| session.save()).transpose()?, Afterwards::GoOn))
        })?;
        let session = saved.as_ref().map(|saved| saved.state().clone());
        Ok((Offer::new(self.machine_state().clone(), session), saved))
    }

    fn memory_size(&self) -> u64 {
        memory::size(self.ram())
    }

    fn read_memory(&self, offset: u64, bytes: &mut [u8]) -> Result<(), VmError> {
        for (at, range) in memory::pieces(self.ram(), offset, bytes.len() as u64) {
            let piece = bytes.get_mut(range).unwrap_or_default();
            match self.session() {
                Some(session) => session.read_guest(at, piece)?,
                None => self
                    .ram()
                    .read_slice(piece, at)
                    .map_err(|error| VmError::Migration(format!("guest memory at {:#x}: {error}", at.0)))?,
            }
        }
        Ok(())
    }

    fn log_dirty_pages(&self, on: bool) -> Result<(), VmError> {
        self.log_dirty_pages(on)
    }

    fn take_dirty_pages(&self) -> Result<Vec<u64>, VmError> {
        self.take_dirty_pages()
    }

    fn session_update(&self, before: &SavedState) -> Result<Option<StateUpdate>, VmError> {
        self.session().map_or(Ok(None), |session| Ok(session.update_since(before)?))
    }

    fn state(&self) -> Result<VmState<HostArch>, VmError> {
        self.state(None)
    }

    fn switch(&self, body: &mut Switch<'_>) -> Result<(), VmError> {
        self.while_stopped(Breakpoints::Planted, &mut |_, halt| body(halt).map(|()| ((), Afterwards::Gone)))
    }
}

/// Makes VMs on this host from what other processes send.
pub struct Receiver {
    /// Taken by the first machine that is made; a process receives one VM.
    pub output: Mutex<Option<Output>>,
    /// What becomes of the debug session.
    pub debug: DebugMode,
    /// What the host is said to have.
    pub limits: DebugLimits,
}

/// A machine that waits for a VM, and the debug session that comes with it.
pub struct Prepared {
    machine: Machine,
    session: Option<Arc<DebugSession<HostArch>>>,
}

impl Destination for Receiver {
    type Guest = HostArch;
    type Machine = Prepared;
    type Vm = Vm;

    fn prepare(&self, offer: Offer<HostArch>) -> Result<Prepared, VmError> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        let output = output.ok_or(VmError::Busy("a VM was received already"))?;
        let machine = Machine::like(&offer.machine, output)?;
        // Here, while the guest still runs at the source, and as a rule it does not change until it stops.
        let session = debug::restored_session(&machine, offer.guest_debug, self.debug, &self.limits)?;
        Ok(Prepared { machine, session })
    }

    fn ram(prepared: &Prepared) -> &Arc<Ram> {
        prepared.machine.ram()
    }

    fn written(&self, prepared: &Prepared, address: GuestAddress, length: u64) -> Result<(), VmError> {
        match &prepared.session {
            Some(session) if self.debug == DebugMode::Run => Ok(session.plant_ahead(address, length)?),
            _ => Ok(()),
        }
    }

    fn arm_ahead(&self, prepared: &Prepared) -> Result<(), VmError> {
        if let Some(session) = prepared.session.as_ref().filter(|_| self.debug == DebugMode::Run) {
            session.arm_ahead()?;
        }
        Ok(())
    }

    fn restore(&self, Prepared { machine, session }: Prepared, state: &VmState<HostArch>) -> Result<Vm, VmError> {
        Vm::restored_with(machine, session, state, self.debug)
    }

    fn arm(&self, vm: &Vm, update: Option<StateUpdate>) -> Result<(), VmError> {
        if let Some(update) = update {
            let offered = VmError::Migration("the peer sent a Session and has offered none".to_owned());
            vm.session().ok_or(offered)?.update(update)?;
        }
        vm.arm(self.debug)
    }
}
