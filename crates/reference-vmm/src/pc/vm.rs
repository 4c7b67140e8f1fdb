//! The VM: a machine, what it boots, its debug session; and who may run it.

use super::boot::Payload;
use super::debug::{self, Debugger};
use super::machine::Machine;
use super::vcpu::Vcpu;
use crate::config::{DebugMode, VmConfig};
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick;
use crate::memory::Ram;
use crate::migration::MigrationAddress;
use crate::operations::Operations;
use crate::serial::{Output, SerialConsole};
use guest_debug::{DebugSession, X86_64};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Why a PC is neither saved nor moved.
const NOT_YET: VmError = VmError::Busy("x86_64 guests are not saved and not moved yet");

/// A VM, ready to run.
#[derive(Debug)]
pub struct Vm {
    control: Arc<Control>,
    payload: Payload,
    /// Of the VM, and not of a client's connection; none where the VM was made without a debugger.
    session: Option<Arc<DebugSession<X86_64>>>,
    machine: Machine,
}

impl Vm {
    /// Makes a VM with its payload loaded; the guest's console writes to `output`.
    ///
    /// # Errors
    ///
    /// A setting outside its range, a file that can't be used, or something that KVM on this host can't do.
    pub fn new(config: &VmConfig, output: Output) -> Result<Self, VmError> {
        config.check()?;
        let payload = Payload::open(config)?;
        let machine = Machine::new(config.cpus, config.memory_mib, output)?;
        let session = match config.debug {
            DebugMode::Off => None,
            mode => Some(debug::session(&machine, mode == DebugMode::Hold, &config.limits)?),
        };
        let vm = Self { control: Arc::new(Control::new(config.cpus)), payload, session, machine };
        vm.load()?;
        Ok(vm)
    }

    /// The serial port, for input.
    pub fn serial(&self) -> &Arc<SerialConsole> {
        self.machine.serial()
    }

    /// For ending the VM from another thread.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The vCPUs, in the order of their indices.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        self.machine.vcpus()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<Ram> {
        self.machine.ram()
    }

    /// The debug session, if the VM was made with one.
    pub fn session(&self) -> Option<&Arc<DebugSession<X86_64>>> {
        self.session.as_ref()
    }

    /// Whether another process has the VM now.
    pub fn has_moved(&self) -> bool {
        false
    }

    /// Runs the guest until it powers itself off, or [`Request::Quit`].
    ///
    /// # Errors
    ///
    /// What ended the VM otherwise.
    pub fn run(&self) -> Result<(), VmError> {
        kick::install_handler()?;
        thread::scope(|scope| {
            let started = self.vcpus().iter().try_for_each(|vcpu| {
                let thread = thread::Builder::new().name(format!("vcpu{}", vcpu.index()));
                let debugger = Debugger::new(self.session.as_ref(), vcpu.index())?;
                let body = || vcpu.run(&self.control, self.machine.ports(), debugger);
                thread.spawn_scoped(scope, body).map(drop).map_err(VmError::io("clone"))
            });
            let result = started.and_then(|()| self.supervise());
            self.control.end();
            if let Some(session) = &self.session {
                session.close();
            }
            self.kick_all();
            result
        })
    }

    fn supervise(&self) -> Result<(), VmError> {
        self.control.resume();
        loop {
            match self.control.wait_request() {
                Request::PowerOff | Request::Quit | Request::Migrated => return Ok(()),
                Request::Fail(error) => return Err(error),
                Request::Reset => {
                    self.control.pause(|| self.kick_all());
                    self.reset()?;
                    self.control.resume();
                }
            }
        }
    }

    /// Every vCPU is outside the guest. Memory keeps its contents, as on a machine, but for what is loaded.
    fn reset(&self) -> Result<(), VmError> {
        if let Some(session) = &self.session {
            session.before_reset()?;
        }
        self.machine.reset()?;
        self.load()?;
        self.session.as_ref().map_or(Ok(()), |session| Ok(session.after_reset()?))
    }

    fn load(&self) -> Result<(), VmError> {
        let entry = self.payload.load(self.ram(), u32::try_from(self.vcpus().len()).unwrap_or(u32::MAX))?;
        self.vcpus().first().map_or(Ok(()), |boot| boot.set_entry(entry))
    }

    fn kick_all(&self) {
        self.vcpus().iter().for_each(|vcpu| vcpu.kick());
    }
}

impl Operations for Vm {
    fn snapshot(&self, _: &Path, _: &mut dyn FnMut(String)) -> Result<String, VmError> {
        Err(NOT_YET)
    }

    fn migrate(&self, _: &MigrationAddress, _: &mut dyn FnMut(String)) -> Result<String, VmError> {
        Err(NOT_YET)
    }

    fn status(&self) -> Result<String, VmError> {
        let debug = self.session.as_ref().map_or("no debugger".to_owned(), |session| {
            let client = if session.attached() { "a client attached" } else { "no client" };
            format!("{client}, {} breakpoints and watchpoints", session.breakpoints().len())
        });
        Ok(format!("{} vCPUs, {debug}", self.vcpus().len()))
    }

    fn quit(&self) {
        self.control.request(Request::Quit);
    }
}
