//! The VM: a machine, what it boots, its debug session; and who may run it.

use super::debug::{self, Debugger};
use super::dirty;
use super::machine::Machine;
use super::platform::{self, Payload};
use super::vcpu::Vcpu;
use crate::config::{DebugLimits, DebugMode, VmConfig};
use crate::control::{Control, Request};
use crate::error::VmError;
use crate::kick;
use crate::memory::Ram;
use crate::serial::{Output, SerialConsole};
use crate::state::{BootState, MachineState, VM_STATE_VERSION, VmState};
use guest_debug::kvm::HostArch;
use guest_debug::state::GuestDebugState;
use guest_debug::{Arch as _, DebugSession};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often something that the guest's own resets keep interrupting is tried.
const ATTEMPTS: usize = 5;
/// How long a reset, or another operation, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something to do with a VM that stands still, and how long it took to bring it to a halt.
pub type Operation<'a, T> = dyn FnMut(&Vm, Duration) -> Result<(T, Afterwards), VmError> + 'a;

/// A VM, ready to run.
#[derive(Debug)]
pub struct Vm {
    control: Arc<Control>,
    payload: Result<Payload, VmError>,
    boot: BootState,
    /// Of the VM, and not of a client's connection; none where the VM was made without a debugger.
    session: Option<Arc<DebugSession<HostArch>>>,
    /// Another process has it.
    moved: AtomicBool,
    machine: Machine,
}

impl Vm {
    /// Makes a VM with its payload loaded; the guest's console writes to `output`.
    ///
    /// # Errors
    ///
    /// A setting outside its range, a file that can't be used, or something that KVM on this host can't do.
    pub fn new(config: &VmConfig, output: Output) -> Result<Self, VmError> {
        config.check::<HostArch>()?;
        let payload = Payload::open(config)?;
        let machine = Machine::new(config.cpus, config.memory_mib, None, output)?;
        let session = match config.debug {
            DebugMode::Off => None,
            mode => Some(debug::session(&machine, mode == DebugMode::Hold, &config.limits)?),
        };
        let vm = Self::with(machine, config, Ok(payload), session);
        vm.load()?;
        Ok(vm)
    }

    /// Makes a VM from a machine with its memory restored, and the state of everything else. Its debug session is armed
    /// before anything runs; with [`DebugMode::Off`] it stays dormant, and with [`DebugMode::Hold`] nothing runs before a
    /// client resumes it.
    ///
    /// # Errors
    ///
    /// What the state or this host has wrong.
    pub fn restored(
        machine: Machine,
        state: &VmState<HostArch>,
        debug: DebugMode,
        limits: &DebugLimits,
    ) -> Result<Self, VmError> {
        let session = debug::restored_session(&machine, state.guest_debug.clone(), debug, limits)?;
        let vm = Self::restored_with(machine, session, state, debug)?;
        vm.arm(debug)?;
        Ok(vm)
    }

    /// The same with a debug session that was restored already, whatever the state has; it is still to be armed.
    ///
    /// # Errors
    ///
    /// What the state or this host has wrong.
    pub fn restored_with(
        machine: Machine,
        session: Option<Arc<DebugSession<HostArch>>>,
        state: &VmState<HostArch>,
        debug: DebugMode,
    ) -> Result<Self, VmError> {
        state.check()?;
        machine.check(&state.machine)?;
        let config = VmConfig { debug, ..state.config() };
        let payload = Payload::open(&config);
        if let Err(error) = &payload {
            log::warn!("the guest can't be booted again: {error}");
        }
        let vm = Self::with(machine, &config, payload, session);
        vm.machine.set_state(state)?;
        Ok(vm)
    }

    /// Puts a restored debug session in force, if it is to be before a client attaches.
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`] with what this host lacks.
    pub fn arm(&self, debug: DebugMode) -> Result<(), VmError> {
        if let Some(session) = self.session.as_ref().filter(|_| debug == DebugMode::Run) {
            for address in session.arm()? {
                log::info!("a software breakpoint stands in for the hardware breakpoint at {:#x}", address.0);
            }
        }
        Ok(())
    }

    fn with(
        machine: Machine,
        config: &VmConfig,
        payload: Result<Payload, VmError>,
        session: Option<Arc<DebugSession<HostArch>>>,
    ) -> Self {
        Self {
            control: Arc::new(Control::new(machine.cpus())),
            payload,
            boot: BootState {
                kernel: config.kernel.clone(),
                initrd: config.initrd.clone(),
                cmdline: config.cmdline.clone(),
            },
            session,
            moved: AtomicBool::new(false),
            machine,
        }
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
    pub fn session(&self) -> Option<&Arc<DebugSession<HostArch>>> {
        self.session.as_ref()
    }

    /// Whether another process has the VM now.
    pub fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Acquire)
    }

    /// What the machine is made of.
    pub fn machine_state(&self) -> &MachineState<HostArch> {
        self.machine.description()
    }

    /// Begins or ends the log of pages that change.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn log_dirty_pages(&self, on: bool) -> Result<(), VmError> {
        dirty::set_logging(self.machine.fd(), self.ram(), on)
    }

    /// The pages that have changed since the last call; see [`crate::memory::take_dirty`].
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn take_dirty_pages(&self) -> Result<Vec<u64>, VmError> {
        dirty::take(self.machine.fd(), self.ram())
    }

    /// The debug session's state, if there is one. Only while the VM is stopped, see [`Vm::while_stopped`].
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`].
    pub fn session_state(&self) -> Result<Option<Arc<GuestDebugState>>, VmError> {
        let state = self.session.as_ref().map(|session| session.state()).transpose()?;
        Ok(state.map(Arc::new))
    }

    /// The VM without its memory, and with this debug session. Only while it is stopped, see [`Vm::while_stopped`].
    ///
    /// # Errors
    ///
    /// [`VmError::Os`], [`VmError::Vcpu`].
    pub fn state(&self, guest_debug: Option<Arc<GuestDebugState>>) -> Result<VmState<HostArch>, VmError> {
        Ok(VmState {
            version: VM_STATE_VERSION,
            architecture: HostArch::ARCHITECTURE,
            machine: self.machine.description().clone(),
            boot: self.boot.clone(),
            vcpus: self.vcpus().iter().map(|vcpu| vcpu.state()).collect::<Result<_, _>>()?,
            devices: self.machine.device_state()?,
            serial: self.serial().state(),
            guest_debug,
        })
    }

    /// Stops every vCPU, gives `body` a VM whose registers are the guest's own, its memory too if breakpoints are to be
    /// lifted, and lets it go on, with its debug session as it was. Where `body` answers [`Afterwards::Gone`] it goes on nowhere: [`Vm::run`] returns.
    ///
    /// # Errors
    ///
    /// [`VmError::Busy`] when the guest has ended; whatever `body` answers.
    pub fn while_stopped<T>(&self, breakpoints: Breakpoints, body: &mut Operation<'_, T>) -> Result<T, VmError> {
        for _ in 0..ATTEMPTS {
            if !self.control.begin_operation(PATIENCE) {
                break;
            }
            let result = self.stopped(breakpoints, body);
            self.control.end_operation();
            if let Some(result) = result {
                return result;
            }
        }
        Err(VmError::Busy("the guest resets itself, or has ended"))
    }

    /// `None` when the guest asked for a reset before it stood still: that comes first, a saved VM would not know of it.
    fn stopped<T>(&self, breakpoints: Breakpoints, body: &mut Operation<'_, T>) -> Option<Result<T, VmError>> {
        let started = Instant::now();
        // Before the VMM's own pause: the vCPUs' threads have to come to the session for it.
        let frozen = self.session.as_ref().map(|session| match breakpoints {
            Breakpoints::Lifted => session.freeze(),
            Breakpoints::Planted => session.freeze_planted(),
        });
        if let Some(Err(error)) = frozen {
            return Some(Err(error.into()));
        }
        self.control.pause(|| self.kick_all());
        let result = if self.control.has_request() { None } else { Some(body(self, started.elapsed())) };
        if let Some(Ok((value, Afterwards::Gone))) = result {
            self.moved.store(true, Ordering::Release);
            self.control.request(Request::Migrated);
            return Some(Ok(value));
        }
        // The vCPUs stay paused until the operation ends.
        let thawed = self.session.as_ref().map_or(Ok(()), |session| session.thaw());
        if let Err(error) = thawed {
            log::error!("breakpoints are missing from guest memory: {error}");
        }
        result.map(|result| result.map(|(value, _)| value))
    }

    /// Runs the guest until it powers itself off, or [`Request::Quit`], or [`Request::Migrated`].
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
                let body = || vcpu.run(&self.control, self.machine.bus(), debugger);
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
        // The machine first: on arm64 it makes KVM forget what caches hold of the memory that is written next.
        self.machine.reset()?;
        self.load()?;
        self.session.as_ref().map_or(Ok(()), |session| Ok(session.after_reset()?))
    }

    fn load(&self) -> Result<(), VmError> {
        let payload = self.payload.as_ref().map_err(|error| VmError::NoPayload(error.to_string()))?;
        platform::load(payload, &self.machine)
    }

    fn kick_all(&self) {
        self.vcpus().iter().for_each(|vcpu| vcpu.kick());
    }
}

/// What is in guest memory where a software breakpoint is, while the VM is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakpoints {
    /// The guest's own instruction.
    Lifted,
    /// The breakpoint: memory is not looked at, or through the session.
    Planted,
}

/// What becomes of a VM that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It goes on.
    GoOn,
    /// Another process has it.
    Gone,
}
