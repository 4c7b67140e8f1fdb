//! A saved VM behind a gdb server: read-only, and without a hypervisor.
//!
//! A `DebugSession` that no client is ever attached to does the reading: it needs a way to the vCPUs' registers and
//! to memory, and no vCPU's thread. What was inserted and which stop is told comes from the saved session instead.
//! Restoring that session would plant breakpoints into memory, and the first client that detaches would take them, and the
//! stop, with it.

use super::frozen::{Frozen, FrozenVcpu};
use super::inspected::Inspected;
use super::report::Report;
use crate::error::VmError;
use guest_debug::state::{GuestDebugState, StopReasonState, StopState};
use guest_debug::{
    Breakpoint, DebugCaps, DebugSession, DebugVcpu, Gva, ResumeAction, SessionError, StopEvent, VcpuId, VcpuState,
    VmHost,
};
use guest_debug_gdb::{DebugVm, GdbServer, InsertedBreakpoint, MemoryAddress, SessionVm, VmError as GdbError, VmEvent};
use std::cell::Cell;
use std::sync::Arc;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Serves a saved VM to clients, one after the other, until `shutdown` becomes readable.
///
/// # Errors
///
/// [`VmError::Debug`] when that is not possible.
pub fn serve<A: Inspected>(server: GdbServer, frozen: &Frozen<A>, shutdown: EventFd) -> Result<(), VmError> {
    server.run(FrozenVm::new(frozen)?, shutdown).map_err(|error| VmError::Debug(error.to_string()))
}

/// A saved VM, as the gdb server sees it. All its vCPUs are stopped, for good.
#[derive(Debug)]
pub struct FrozenVm<A: Inspected> {
    reader: SessionVm<A>,
    caps: DebugCaps,
    vcpus: usize,
    inserted: Vec<InsertedBreakpoint>,
    /// The stop that it was saved at. Each client is told of it.
    stop: Option<StopEvent>,
    untold: Cell<Option<StopEvent>>,
    /// Never rings: nothing happens here.
    event: EventFd,
    text: String,
}

impl<A: Inspected> FrozenVm<A> {
    /// Makes it ready for clients.
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`], [`VmError::Os`] for lack of a descriptor.
    pub fn new(frozen: &Frozen<A>) -> Result<Self, VmError> {
        let debug = |error: SessionError| VmError::Debug(error.to_string());
        let caps = frozen.vcpus().first().map_or_else(DebugCaps::default, |vcpu| A::caps(vcpu));
        let count = u32::try_from(frozen.vcpus().len()).unwrap_or(u32::MAX);
        let session = DebugSession::new(count, caps, frozen.memory().clone(), true).map_err(debug)?;
        session.set_host(Box::new(Host(frozen.vcpus().to_vec()))).map_err(debug)?;
        Ok(Self {
            reader: SessionVm::new(session),
            caps,
            vcpus: frozen.vcpus().len(),
            inserted: frozen.session().map_or_else(Vec::new, inserted::<A>),
            stop: stop(frozen),
            untold: Cell::new(None),
            event: EventFd::new(EFD_NONBLOCK).map_err(VmError::io("eventfd"))?,
            text: Report::of(frozen).to_string(),
        })
    }
}

impl<A: Inspected> DebugVm<A> for FrozenVm<A> {
    fn vcpu_states(&self) -> Result<Vec<VcpuState>, GdbError> {
        Ok(vec![VcpuState::Stopped; self.vcpus])
    }

    fn capabilities(&self) -> Result<DebugCaps, GdbError> {
        Ok(self.caps)
    }

    fn attach(&self) -> Result<(), GdbError> {
        self.untold.set(self.stop);
        Ok(())
    }

    fn detach(&self) -> Result<(), GdbError> {
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }

    fn take_event(&self) -> Result<Option<VmEvent>, GdbError> {
        Ok(self.untold.take().map(VmEvent::Stopped))
    }

    fn interrupt(&self) -> Result<(), GdbError> {
        Ok(())
    }

    fn resume(&self, _: Vec<(VcpuId, ResumeAction)>) -> Result<(), GdbError> {
        Err(GdbError::ReadOnly("it does not run"))
    }

    fn insert(&self, _: VcpuId, _: Breakpoint) -> Result<(), GdbError> {
        Err(GdbError::ReadOnly("it does not run, and takes no breakpoints"))
    }

    fn remove(&self, _: VcpuId, _: Breakpoint) -> Result<(), GdbError> {
        Err(GdbError::ReadOnly("its breakpoints stay"))
    }

    fn breakpoints(&self) -> Result<Vec<InsertedBreakpoint>, GdbError> {
        Ok(self.inserted.clone())
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Vec<A::Reg>, GdbError> {
        self.reader.registers(vcpu)
    }

    fn read_registers(&self, vcpu: VcpuId, regs: Vec<A::Reg>) -> Result<Vec<Option<Vec<u8>>>, GdbError> {
        self.reader.read_registers(vcpu, regs)
    }

    fn write_registers(&self, _: VcpuId, _: Vec<(A::Reg, Vec<u8>)>) -> Result<(), GdbError> {
        Err(GdbError::ReadOnly("its registers can't be written"))
    }

    fn read_memory(&self, address: MemoryAddress, length: usize) -> Result<Vec<u8>, GdbError> {
        self.reader.read_memory(address, length)
    }

    fn write_memory(&self, _: MemoryAddress, _: Vec<u8>) -> Result<(), GdbError> {
        Err(GdbError::ReadOnly("its memory can't be written"))
    }

    fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, GdbError> {
        self.reader.translate(vcpu, address)
    }

    fn monitor(&self, _: VcpuId, command: String) -> Result<Option<String>, GdbError> {
        Ok((command.trim() == "inspect").then(|| self.text.clone()))
    }

    fn monitor_help(&self) -> Vec<(String, String)> {
        vec![("inspect".to_owned(), "the VM and its debug session, as they were saved".to_owned())]
    }
}

/// The way to saved vCPUs. There is nothing to kick.
struct Host<A: Inspected>(Vec<Arc<FrozenVcpu<A>>>);

impl<A: Inspected> VmHost<A> for Host<A> {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<A>>> {
        self.0.get(id.0 as usize).map(|vcpu| vcpu.clone() as _)
    }

    fn kick(&self, _: VcpuId) {}
}

/// The stop that a client of the restored session would be told first: the one that was told last, or else the oldest that
/// nobody fetched, if the vCPU is still there. An interrupt gives way to any other, as it says less.
fn stop<A: Inspected>(frozen: &Frozen<A>) -> Option<StopEvent> {
    let session = frozen.session()?;
    let real = |stop: &&StopState| stop.reason != StopReasonState::Interrupt;
    let all = || session.reported.iter().chain(&session.pending).filter(|stop| frozen.holds(stop));
    let stop = all().find(real).or_else(|| all().next())?;
    Some(StopEvent { vcpu: VcpuId(stop.vcpu), reason: stop.reason.into() })
}

fn inserted<A: Inspected>(session: &GuestDebugState) -> Vec<InsertedBreakpoint> {
    let entry = |breakpoint, slots, note| InsertedBreakpoint { breakpoint, slots, note };
    let hardware = session.hardware.iter().map(|at| entry(Breakpoint::Hardware(Gva(*at)), 1, String::new()));
    let watches = session.watches.iter().map(|watch| {
        let (kind, address, length) = (watch.kind, Gva(watch.address), watch.length);
        entry(Breakpoint::Watch { kind, address, length }, A::slots(watch), String::new())
    });
    let software = session.software.iter().flat_map(|one| {
        let note = format!("physical {:#x}", one.physical);
        one.names.iter().map(move |name| entry(Breakpoint::Software(Gva(*name)), 0, note.clone()))
    });
    hardware.chain(watches).chain(software).collect()
}
