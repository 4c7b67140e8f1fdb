//! [`DebugVm`] on top of a [`DebugSession`]: all that a VMM needs whose gdb thread can reach the session.

use crate::vm::{DebugVm, InsertedBreakpoint, MemoryAddress, VmError, VmEvent};
use guest_debug::arm64::Reg;
use guest_debug::{
    Breakpoint, DebugCaps, DebugSession, Gva, Removed, ResumeAction, SessionError, StopEvent, VcpuError, VcpuId,
    VcpuState,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// Physical memory is read in pieces that don't cross such a boundary: RAM begins and ends on one.
const PAGE: u64 = 4096;

/// A VM whose debug session is in this process.
///
/// Cheap to clone; all clones are the same VM. Keep one to tell the client when the guest has ended.
#[derive(Debug, Clone)]
pub struct SessionVm {
    session: Arc<DebugSession>,
    /// Stop that a client left behind without having been told of it.
    left_behind: Arc<Mutex<Option<StopEvent>>>,
    /// Exit code plus one; 0 while the guest lives.
    ended: Arc<AtomicU32>,
}

impl SessionVm {
    /// The VM of this session.
    pub fn new(session: Arc<DebugSession>) -> Self {
        Self { session, left_behind: Arc::default(), ended: Arc::default() }
    }

    /// Tells the client that the guest has ended, with the code that gdb shows. Call it before the server is
    /// shut down.
    pub fn report_end(&self, code: u8) {
        self.ended.store(u32::from(code) + 1, Ordering::Release);
        // The counter of a non-blocking eventfd can only be full while it is readable, which is all it is for.
        let _ = self.session.stop_fd().write(1);
    }

    fn left_behind(&self) -> std::sync::MutexGuard<'_, Option<StopEvent>> {
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DebugVm for SessionVm {
    fn vcpu_states(&self) -> Result<Vec<VcpuState>, VmError> {
        Ok(self.session.vcpu_states())
    }

    fn capabilities(&self) -> Result<DebugCaps, VmError> {
        Ok(*self.session.caps())
    }

    fn attach(&self) -> Result<(), VmError> {
        match self.session.attach() {
            // The last client vanished, and the server was told to leave everything as it was.
            Err(SessionError::AlreadyAttached) => {
                self.session.interrupt();
                let stop = self.session.take_stop().map_err(translate_error)?;
                *self.left_behind() = stop;
                Ok(())
            }
            result => result.map_err(translate_error),
        }
    }

    fn detach(&self) -> Result<(), VmError> {
        *self.left_behind() = None;
        self.session.detach().map_err(translate_error)
    }

    fn event(&self) -> &EventFd {
        self.session.stop_fd()
    }

    fn take_event(&self) -> Result<Option<VmEvent>, VmError> {
        if let Some(code) = self.ended.load(Ordering::Acquire).checked_sub(1) {
            return Ok(Some(VmEvent::Ended(u8::try_from(code).unwrap_or(u8::MAX))));
        }
        if let Some(event) = self.left_behind().take() {
            return Ok(Some(VmEvent::Stopped(event)));
        }
        Ok(self.session.take_stop().map_err(translate_error)?.map(VmEvent::Stopped))
    }

    fn interrupt(&self) -> Result<(), VmError> {
        self.session.interrupt();
        Ok(())
    }

    fn resume(&self, actions: Vec<(VcpuId, ResumeAction)>) -> Result<(), VmError> {
        self.session.resume(&actions).map_err(translate_error)
    }

    fn insert(&self, vcpu: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        self.session.insert(vcpu, breakpoint).map_err(translate_error)
    }

    fn remove(&self, _: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        if self.session.remove(breakpoint).map_err(translate_error)? == Removed::Overwritten {
            log::info!("the guest has written over {breakpoint:x?}; what it wrote was left alone");
        }
        Ok(())
    }

    fn breakpoints(&self) -> Result<Vec<InsertedBreakpoint>, VmError> {
        let list = self.session.breakpoints().into_iter().map(|info| {
            let place = info.physical.map(|at| format!("physical {:#x}", at.0));
            let idle = (!info.armed).then(|| "waits for its code after a reboot".to_owned());
            InsertedBreakpoint {
                breakpoint: info.breakpoint,
                slots: info.slots,
                note: place.into_iter().chain(idle).collect::<Vec<_>>().join(", "),
            }
        });
        Ok(list.collect())
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Vec<Reg>, VmError> {
        self.session.register_list(vcpu).map_err(translate_error)
    }

    fn read_registers(&self, vcpu: VcpuId, regs: Vec<Reg>) -> Result<Vec<Option<Vec<u8>>>, VmError> {
        let read = |reg| match self.session.read_register(vcpu, reg) {
            Ok(value) => Ok(Some(value)),
            // This register only; the others may be fine.
            Err(SessionError::Vcpu { .. }) => Ok(None),
            Err(error) => Err(translate_error(error)),
        };
        regs.into_iter().map(read).collect()
    }

    fn write_registers(&self, vcpu: VcpuId, values: Vec<(Reg, Vec<u8>)>) -> Result<(), VmError> {
        for (reg, value) in values {
            self.session.write_register(vcpu, reg, &value).map_err(|error| match error {
                SessionError::Vcpu { source, .. } => VmError::Register { reg, message: source.to_string() },
                error => translate_error(error),
            })?;
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
        let result = match address {
            MemoryAddress::Virtual(vcpu, at) => self.session.write_memory(vcpu, at, &data),
            MemoryAddress::Physical(at) => self.session.write_physical(at, &data),
        };
        result.map_err(translate_error)
    }

    fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, VmError> {
        self.session.translate(vcpu, address).map_err(translate_error)
    }
}

/// Reads page by page, up to the first that is not RAM.
fn read_physical(session: &DebugSession, address: GuestAddress, length: usize) -> Result<Vec<u8>, VmError> {
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
        SessionError::NoBreakpointSlot { .. } | SessionError::NoWatchpointSlot { .. } => VmError::NoSlot(text),
        SessionError::Address(_) | SessionError::Watch(_) => VmError::BadBreakpoint(text),
        SessionError::NoSuchBreakpoint(address) => VmError::NoSuchBreakpoint(address),
        SessionError::Translate(_) => VmError::Unmapped(text),
        SessionError::Ram(error) => VmError::NotRam(GuestAddress(error.address)),
        SessionError::Unsupported(_) | SessionError::NoGuestDebug => VmError::Unsupported(text),
        SessionError::Vcpu { source: VcpuError::Unsupported(_), .. } => VmError::Unsupported(text),
        _ => VmError::Other(text),
    }
}
