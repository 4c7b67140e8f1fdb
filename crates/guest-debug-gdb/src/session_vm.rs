//! [`DebugVm`] on top of a [`DebugSession`]: all that a VMM needs whose gdb thread can reach the session.

use crate::vm::{DebugVm, InsertedBreakpoint, MemoryAddress, VmError, VmEvent};
use guest_debug::{
    Arch, Arm64, Breakpoint, DebugCaps, DebugSession, Gva, HitRule, Messages, Removed, ResumeAction, RuleInfo,
    SessionError, StopEvent, VcpuError, VcpuId, VcpuState,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// Physical memory is read in pieces that don't cross such a boundary: RAM begins and ends on one.
const PAGE: u64 = 4096;

const MOVED: u32 = u32::MAX;
/// How long a client's call waits for a VM that is being saved. gdb gives an answer two seconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// `monitor` commands of a VMM, such as saving the VM.
pub trait Monitor: Send + Sync {
    /// Runs a command line. `Ok(None)` if it does not know the command. The answer is shown as it is.
    ///
    /// # Errors
    ///
    /// What to tell the client instead.
    fn run(&self, vcpu: VcpuId, command: &str) -> Result<Option<String>, VmError>;

    /// Name with arguments, and one line of help, of each command.
    fn help(&self) -> Vec<(String, String)>;
}

/// A VM whose debug session is in this process.
///
/// While the session is frozen, because the VM is paused or being saved, the client can look at everything. Its breakpoints
/// come into force with the thaw. It may order to continue or to step, which is done then, or not at all if it interrupts
/// the guest before. Who attaches or changes registers or memory waits for a moment, and is refused.
///
/// Cheap to clone; all clones are the same VM. Keep one to tell the client when the guest has ended.
pub struct SessionVm<A: Arch = Arm64> {
    session: Arc<DebugSession<A>>,
    client: Arc<Mutex<ClientState>>,
    /// Exit code plus one; 0 while the guest lives, [`MOVED`] when it lives elsewhere.
    ended: Arc<AtomicU32>,
    monitor: Option<Arc<dyn Monitor>>,
}

/// What the session does not know of its client.
#[derive(Debug, Default)]
struct ClientState {
    /// Stop that a client left behind without having been told of it.
    left_behind: Option<StopEvent>,
    /// What the vCPUs are to do when the session is thawed. The client takes them for running.
    order: Option<Vec<(VcpuId, ResumeAction)>>,
}

impl<A: Arch> Clone for SessionVm<A> {
    fn clone(&self) -> Self {
        let (session, client) = (self.session.clone(), self.client.clone());
        Self { session, client, ended: self.ended.clone(), monitor: self.monitor.clone() }
    }
}

impl<A: Arch> std::fmt::Debug for SessionVm<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionVm").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<A: Arch> SessionVm<A> {
    /// The VM of this session.
    pub fn new(session: Arc<DebugSession<A>>) -> Self {
        Self { session, client: Arc::default(), ended: Arc::default(), monitor: None }
    }

    /// The same, with the VMM's own `monitor` commands.
    #[must_use]
    pub fn with_monitor(self, monitor: Arc<dyn Monitor>) -> Self {
        Self { monitor: Some(monitor), ..self }
    }

    /// Makes a call, again when the session is not frozen any more.
    fn waiting<T>(&self, call: impl Fn() -> Result<T, SessionError>) -> Result<T, VmError> {
        loop {
            match call() {
                Err(SessionError::Frozen) if self.session.wait_thawed(PATIENCE) => {}
                Err(error) => return Err(translate_error(error)),
                Ok(value) => return Ok(value),
            }
        }
    }

    /// Tells the client that the guest has ended, with the code that gdb shows. Call it before the server is
    /// shut down.
    pub fn report_end(&self, code: u8) {
        self.ended.store(u32::from(code) + 1, Ordering::Release);
        // The counter of a non-blocking eventfd can only be full while it is readable, which is all it is for.
        let _ = self.session.stop_fd().write(1);
    }

    /// Tells the client that the VM goes on in another process, as soon as it waits for something of this one. Call it
    /// before the server is shut down.
    pub fn report_moved(&self) {
        self.ended.store(MOVED, Ordering::Release);
        let _ = self.session.stop_fd().write(1);
    }

    /// What the client sets up from here on is for nothing: the next stop that it hears of is that the VM has moved.
    fn has_moved(&self) -> bool {
        self.ended.load(Ordering::Acquire) == MOVED
    }

    fn client(&self) -> MutexGuard<'_, ClientState> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what was ordered while the session was frozen, if it is not any more.
    fn carry_out_order(&self) -> Result<(), VmError> {
        let order = self.client().order.take();
        order.map_or(Ok(()), |actions| self.resume_or_keep(actions))
    }

    /// Resumes the VM, or keeps the order for when it can be.
    fn resume_or_keep(&self, actions: Vec<(VcpuId, ResumeAction)>) -> Result<(), VmError> {
        match self.session.resume(&actions) {
            // The session rings when it is thawed.
            Err(SessionError::Frozen) => self.client().order = Some(actions),
            result => result.map_err(translate_error)?,
        }
        Ok(())
    }
}

impl<A: Arch> DebugVm<A> for SessionVm<A> {
    fn vcpu_states(&self) -> Result<Vec<VcpuState>, VmError> {
        Ok(self.session.vcpu_states())
    }

    fn capabilities(&self) -> Result<DebugCaps, VmError> {
        Ok(*self.session.caps())
    }

    fn attach(&self) -> Result<(), VmError> {
        let attached = self.waiting(|| match self.session.attach() {
            // The last client vanished, and the server was told to leave everything as it was.
            Err(SessionError::AlreadyAttached) => Ok(false),
            result => result.map(|()| true),
        })?;
        if !attached {
            self.session.interrupt();
            let stop = self.session.take_stop().map_err(translate_error)?;
            *self.client() = ClientState { left_behind: stop, order: None };
        }
        Ok(())
    }

    fn detach(&self) -> Result<(), VmError> {
        *self.client() = ClientState::default();
        self.session.detach().map_err(translate_error)
    }

    fn event(&self) -> &EventFd {
        self.session.stop_fd()
    }

    fn take_event(&self) -> Result<Option<VmEvent>, VmError> {
        match self.ended.load(Ordering::Acquire) {
            0 => {}
            MOVED => return Ok(Some(VmEvent::Moved)),
            ended => return Ok(Some(VmEvent::Ended(u8::try_from(ended - 1).unwrap_or(u8::MAX)))),
        }
        if let Some(event) = self.client().left_behind.take() {
            return Ok(Some(VmEvent::Stopped(event)));
        }
        loop {
            self.carry_out_order()?;
            let stop = self.session.take_stop().map_err(translate_error)?;
            // Thawed since the order was kept: `take_stop` has heard it ring, and nothing rings again.
            let late = self.client().order.is_some() && !self.session.is_frozen();
            if stop.is_some() || !late {
                return Ok(stop.map(VmEvent::Stopped));
            }
        }
    }

    fn interrupt(&self) -> Result<(), VmError> {
        self.client().order = None;
        self.session.interrupt();
        Ok(())
    }

    fn resume(&self, actions: Vec<(VcpuId, ResumeAction)>) -> Result<(), VmError> {
        if self.has_moved() {
            let _ = self.session.stop_fd().write(1);
            return Ok(());
        }
        self.resume_or_keep(actions)
    }

    fn select(&self, vcpu: VcpuId) -> Result<(), VmError> {
        self.session.select_vcpu(Some(vcpu)).map_err(translate_error)
    }

    fn insert(&self, vcpu: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        if self.has_moved() {
            return Ok(());
        }
        self.session.insert(vcpu, breakpoint).map_err(translate_error)
    }

    fn remove(&self, _: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        if self.has_moved() {
            return Ok(());
        }
        if self.session.remove(breakpoint).map_err(translate_error)? == Removed::Overwritten {
            log::info!("the guest has written over {breakpoint:x?}; what it wrote was left alone");
        }
        Ok(())
    }

    fn breakpoints(&self) -> Result<Vec<InsertedBreakpoint>, VmError> {
        let list = self.session.breakpoints().into_iter().map(|info| {
            let place = info.physical.map(|at| format!("physical {:#x}", at.0));
            let idle = (!info.armed).then(|| "waits for its code after a reboot".to_owned());
            let widened = info.widened.then(|| "stops at writes too: this CPU can't watch reads alone".to_owned());
            InsertedBreakpoint {
                breakpoint: info.breakpoint,
                slots: info.slots,
                note: place.into_iter().chain(idle).chain(widened).collect::<Vec<_>>().join(", "),
            }
        });
        Ok(list.collect())
    }

    fn has_rules(&self) -> bool {
        true
    }

    fn set_rule(&self, breakpoint: Breakpoint, rule: HitRule) -> Result<(), VmError> {
        if self.has_moved() {
            return Ok(());
        }
        self.session.set_rule(breakpoint, rule).map_err(translate_error)
    }

    fn set_ignore_count(&self, breakpoint: Breakpoint, count: u64) -> Result<(), VmError> {
        if self.has_moved() {
            return Ok(());
        }
        self.session.set_ignore_count(breakpoint, count).map_err(translate_error)
    }

    fn rules(&self) -> Result<Vec<RuleInfo>, VmError> {
        Ok(self.session.rules())
    }

    fn take_messages(&self) -> Result<Messages, VmError> {
        Ok(self.session.take_messages())
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Vec<A::Reg>, VmError> {
        self.session.register_list(vcpu).map_err(translate_error)
    }

    fn read_registers(&self, vcpu: VcpuId, regs: Vec<A::Reg>) -> Result<Vec<Option<Vec<u8>>>, VmError> {
        let read = |reg| match self.session.read_register(vcpu, reg) {
            Ok(value) => Ok(Some(value)),
            // This register only; the others may be fine.
            Err(SessionError::Vcpu { .. }) => Ok(None),
            Err(error) => Err(translate_error(error)),
        };
        regs.into_iter().map(read).collect()
    }

    fn write_registers(&self, vcpu: VcpuId, values: Vec<(A::Reg, Vec<u8>)>) -> Result<(), VmError> {
        for (reg, value) in values {
            let written = self.waiting(|| match self.session.write_register(vcpu, reg, &value) {
                Err(SessionError::Vcpu { source, .. }) => Ok(Err(source)),
                result => result.map(Ok),
            })?;
            written.map_err(|source| VmError::Register { reg: reg.into(), message: source.to_string() })?;
        }
        Ok(())
    }

    fn read_memory(&self, address: MemoryAddress, length: usize) -> Result<Vec<u8>, VmError> {
        match address {
            MemoryAddress::Virtual(vcpu, at) => self.session.read_memory(vcpu, at, length).map_err(translate_error),
            MemoryAddress::Physical(at) => read_physical(&self.session, at, length),
        }
    }

    fn write_memory(&self, address: MemoryAddress, data: Vec<u8>) -> Result<(), VmError> {
        self.waiting(|| match address {
            MemoryAddress::Virtual(vcpu, at) => self.session.write_memory(vcpu, at, &data),
            MemoryAddress::Physical(at) => self.session.write_physical(at, &data),
        })
    }

    fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, VmError> {
        self.session.translate(vcpu, address).map_err(translate_error)
    }

    fn monitor(&self, vcpu: VcpuId, command: String) -> Result<Option<String>, VmError> {
        self.monitor.as_ref().map_or(Ok(None), |monitor| monitor.run(vcpu, &command))
    }

    fn monitor_help(&self) -> Vec<(String, String)> {
        self.monitor.as_ref().map_or_else(Vec::new, |monitor| monitor.help())
    }
}

/// Reads page by page, up to the first that is not RAM.
fn read_physical<A: Arch>(session: &DebugSession<A>, address: GuestAddress, length: usize) -> Result<Vec<u8>, VmError> {
    let mut data = Vec::new();
    while data.len() < length {
        let Some(at) = address.0.checked_add(data.len() as u64) else { break };
        let page = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
        match session.read_physical(GuestAddress(at), page.min(length - data.len())) {
            Ok(piece) => data.extend(piece),
            Err(error) if data.is_empty() => return Err(translate_error(error)),
            Err(_) => break,
        }
    }
    Ok(data)
}

fn translate_error(error: SessionError) -> VmError {
    let text = error.to_string();
    match error {
        SessionError::NoSuchVcpu { vcpu, .. } => VmError::NoSuchVcpu(vcpu),
        SessionError::NotStopped(vcpu) => VmError::NotStopped(vcpu),
        SessionError::NoBreakpointSlot { .. } | SessionError::NoWatchpointSlot { .. } | SessionError::TooManyRules => {
            VmError::NoSlot(text)
        }
        SessionError::Address(_) | SessionError::Watch(_) | SessionError::X86Address(_) | SessionError::X86Watch(_) => {
            VmError::BadBreakpoint(text)
        }
        SessionError::NoSuchBreakpoint(address) => VmError::NoSuchBreakpoint(address),
        SessionError::Translate(_) | SessionError::X86Translate(_) => VmError::Unmapped(text),
        SessionError::Ram(error) => VmError::NotRam(GuestAddress(error.address)),
        SessionError::Unsupported(_) | SessionError::NoGuestDebug => VmError::Unsupported(text),
        SessionError::Vcpu { source: VcpuError::Unsupported(_), .. } => VmError::Unsupported(text),
        _ => VmError::Other(text),
    }
}
