//! The debug session: everything that a debugger has set up in a VM.
//!
//! The session belongs to the VM and is shared by three parties. A client's thread inserts breakpoints, resumes
//! and asks for stops. Each vCPU's thread runs a [`VcpuDebugger`], which arms KVM before it enters the guest and
//! looks at what comes out. The VMM kicks vCPUs out of guest code when the session asks for it.
//!
//! ```text
//!   client thread            DebugSession                     vCPU threads
//!   insert, remove  ----->   tables, software breakpoints
//!   resume          ----->   plan, one order per vCPU  ----->  wait -> before_run -> KVM_RUN -> on_debug_exit
//!   take_stop       <-----   queue of stop events     <-----  stop: all others are kicked and park
//! ```

mod ahead;
mod alone;
mod arm64;
mod client;
mod control;
mod debugged;
mod error;
mod few;
mod head_start;
mod judge;
mod memory;
mod messages;
mod queue;
mod restore;
mod rules;
mod runner;
mod save;
mod software;
mod step;
mod table;
mod x86_64;

pub use debugged::Debugged;
pub(crate) use debugged::Slots;
pub use error::SessionError;
pub use messages::Messages;
pub use restore::Restore;
pub use rules::{HitCounts, HitRule, RuleInfo};
pub use runner::{Entry, VcpuDebugger, Wait};
pub use save::SavedState;
pub use software::Removed;

use crate::arch::{Arch, Arm64};
use crate::{Breakpoint, DebugCaps, DebugVcpu, GuestRam, StopEvent, VcpuId, VcpuState};
use control::{Order, Over, VcpuSlot};
use queue::StopQueue;
use software::SoftwareBreakpoints;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use table::Tables;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long a kicked vCPU may take to leave guest code. A thread that takes longer is blocked in the VMM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the one instruction below a breakpoint may take. One that takes longer waits inside the hypervisor.
const QUIET_TIMEOUT: Duration = Duration::from_millis(100);

/// What the VMM does for the session.
pub trait VmHost<A: Arch = Arm64>: Send + Sync {
    /// Access to a vCPU's registers. The session calls it for stopped vCPUs only, so it may take the lock that
    /// the vCPU's thread holds while the guest runs.
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<A>>>;

    /// Makes a vCPU leave guest code soon, and its thread call [`VcpuDebugger::wait`]. A kick must not be lost
    /// when it arrives just before the thread enters the guest.
    fn kick(&self, id: VcpuId);

    /// A stop may be waiting in [`DebugSession::take_stop`], which [`DebugSession::stop_fd`] tells as well. For VMMs whose
    /// gdb server lives longer than a session. Called on vCPU threads, with nothing locked that the VMM could want.
    fn stopped(&self) {}
}

/// A breakpoint in the session's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakpointInfo {
    /// What was inserted.
    pub breakpoint: Breakpoint,
    /// Where a software breakpoint was planted.
    pub physical: Option<GuestAddress>,
    /// Whether it can hit: false for a software breakpoint whose place holds other code since a reboot.
    pub armed: bool,
    /// Watchpoint or breakpoint slots that it takes.
    pub slots: usize,
    /// A watch of reads that writes stop as well: x86_64 has no slot for reads alone.
    pub widened: bool,
}

/// A VM's debug session, of a guest with the architecture `A`. See the module documentation in the source for who does what.
pub struct DebugSession<A: Arch = Arm64> {
    caps: DebugCaps,
    ram: Arc<dyn GuestRam>,
    host: OnceLock<Box<dyn VmHost<A>>>,
    vcpus: Vec<VcpuSlot<A>>,
    tables: Mutex<Tables>,
    /// Written only while every vCPU is stopped, so that no vCPU's thread ever waits for a read.
    software: RwLock<SoftwareBreakpoints<A>>,
    stops: Mutex<StopQueue>,
    doorbell: EventFd,
    messages: Mutex<messages::Waiting>,
    /// A vCPU executes an instruction while all others wait; see `alone.rs`.
    alone: AtomicBool,
    /// Every vCPU is stopped and guest memory is the guest's own. Written under the lock of `tables`; apart from them, as a
    /// vCPU's thread that resets the VM may not wait for a client.
    frozen: AtomicBool,
    /// Signalled with the lock of `tables` when `frozen`, `closed` or `attached` changes.
    changed: Condvar,
    closed: AtomicBool,
}

impl<A: Arch> std::fmt::Debug for DebugSession<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebugSession").field("caps", &self.caps).field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

impl<A: Arch> DebugSession<A> {
    /// A session for a VM with `vcpus` vCPUs, nothing armed. With `hold`, no vCPU executes an instruction until
    /// a client resumes it.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoVcpus`], [`SessionError::NoGuestDebug`], [`SessionError::Event`].
    pub fn new(vcpus: u32, caps: DebugCaps, ram: Arc<dyn GuestRam>, hold: bool) -> Result<Arc<Self>, SessionError> {
        if !caps.guest_debug {
            return Err(SessionError::NoGuestDebug);
        }
        Self::with_tables(vcpus, caps, ram, hold, Tables { held: hold, ..Tables::default() })
    }

    fn with_tables(
        vcpus: u32,
        caps: DebugCaps,
        ram: Arc<dyn GuestRam>,
        stay: bool,
        tables: Tables,
    ) -> Result<Arc<Self>, SessionError> {
        if vcpus == 0 {
            return Err(SessionError::NoVcpus);
        }
        let order = if stay { Order::Stay } else { free() };
        Ok(Arc::new(Self {
            caps,
            ram,
            host: OnceLock::new(),
            vcpus: (0..vcpus).map(|_| VcpuSlot::new(order.clone())).collect(),
            tables: Mutex::new(tables),
            software: RwLock::default(),
            stops: Mutex::default(),
            doorbell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SessionError::Event)?,
            messages: Mutex::default(),
            alone: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
        }))
    }

    /// Tells the session how to reach the vCPUs. Once, before a client attaches.
    ///
    /// # Errors
    ///
    /// [`SessionError::Host`] the second time.
    pub fn set_host(&self, host: Box<dyn VmHost<A>>) -> Result<(), SessionError> {
        self.host.set(host).map_err(|_| SessionError::Host)
    }

    /// What the host can do.
    pub fn caps(&self) -> &DebugCaps {
        &self.caps
    }

    /// The debugger's part of a vCPU's thread.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoSuchVcpu`].
    pub fn vcpu_thread(self: &Arc<Self>, id: VcpuId) -> Result<VcpuDebugger<A>, SessionError> {
        self.slot(id)?;
        Ok(VcpuDebugger::new(self.clone(), id))
    }

    /// What every vCPU is doing, in the order of their numbers.
    pub fn vcpu_states(&self) -> Vec<VcpuState> {
        self.vcpus.iter().map(VcpuSlot::state).collect()
    }

    /// Ends the session with its VM: every vCPU's thread gets [`Wait::Closed`].
    pub fn close(&self) {
        for (id, slot) in self.slots() {
            slot.close();
            if let Some(host) = self.host.get() {
                host.kick(id);
            }
        }
        let _tables = self.tables();
        self.closed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Call with all vCPUs out of guest code, before the VMM reloads memory for a reboot: original instructions
    /// are put back.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when a place is no longer RAM; all others were put back. [`SessionError::Frozen`].
    pub fn before_reset(&self) -> Result<(), SessionError> {
        self.unless_frozen()?;
        Ok(self.software_mut().lift_all(&*self.ram)?)
    }

    /// Call after memory was reloaded and the vCPUs were reset, before they run: everything is armed again.
    /// A software breakpoint is planted again where the same instruction stands; elsewhere it waits, since the
    /// place belongs to another program now.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when memory can't be written. [`SessionError::Frozen`].
    pub fn after_reset(&self) -> Result<(), SessionError> {
        self.unless_frozen()?;
        for slot in &self.vcpus {
            slot.reset();
        }
        self.queue().reset();
        Ok(self.software_mut().plant_all(&*self.ram)?)
    }

    /// Queues a stop and brings every other vCPU to a halt. Called by the vCPU's own thread.
    fn report(&self, event: StopEvent) {
        self.queue().push(event);
        self.stop_all(Some(event.vcpu));
        self.ring();
    }

    /// Has the thread of a stopped vCPU ask again whether the VMM wants it; see [`VcpuDebugger::wait_unless`].
    ///
    /// # Errors
    ///
    /// [`SessionError::NoSuchVcpu`].
    pub fn wake(&self, vcpu: VcpuId) -> Result<(), SessionError> {
        self.slot(vcpu)?.wake();
        Ok(())
    }

    fn ring(&self) {
        // The counter of a non-blocking eventfd is full only while the client has 2^64 - 2 rings to fetch.
        let _ = self.doorbell.write(1);
        if let Some(host) = self.host.get() {
            host.stopped();
        }
    }

    /// Asks every vCPU to stop, and kicks those that run, but for `caller`, which is on its way. Does not wait.
    fn stop_all(&self, caller: Option<VcpuId>) {
        for (id, slot) in self.slots() {
            if slot.request_stop()
                && caller != Some(id)
                && let Some(host) = self.host.get()
            {
                host.kick(id);
            }
        }
    }

    /// Stops every vCPU and waits until all are out of guest code.
    fn halt(&self) -> Result<(), SessionError> {
        self.stop_all(None);
        for (id, slot) in self.slots() {
            if !slot.wait_parked(STOP_TIMEOUT) {
                return Err(SessionError::Stuck(id));
            }
        }
        Ok(())
    }

    fn slots(&self) -> impl Iterator<Item = (VcpuId, &VcpuSlot<A>)> {
        (0..).map(VcpuId).zip(&self.vcpus)
    }

    fn slot(&self, vcpu: VcpuId) -> Result<&VcpuSlot<A>, SessionError> {
        let missing = SessionError::NoSuchVcpu { vcpu, count: self.vcpus.len() };
        self.vcpus.get(vcpu.0 as usize).ok_or(missing)
    }

    /// A vCPU that is not in guest code, for register access.
    fn stopped(&self, id: VcpuId) -> Result<Arc<dyn DebugVcpu<A>>, SessionError> {
        if self.slot(id)?.state() == VcpuState::Running {
            return Err(SessionError::NotStopped(id));
        }
        let missing = SessionError::NoSuchVcpu { vcpu: id, count: self.vcpus.len() };
        self.host.get().ok_or(SessionError::Host)?.vcpu(id).ok_or(missing)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables, unless the session is frozen.
    fn thawed(&self) -> Result<MutexGuard<'_, Tables>, SessionError> {
        let tables = self.tables();
        self.unless_frozen()?;
        Ok(tables)
    }

    fn unless_frozen(&self) -> Result<(), SessionError> {
        if self.is_frozen() { Err(SessionError::Frozen) } else { Ok(()) }
    }

    fn software(&self) -> RwLockReadGuard<'_, SoftwareBreakpoints<A>> {
        self.software.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn software_mut(&self) -> RwLockWriteGuard<'_, SoftwareBreakpoints<A>> {
        self.software.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, StopQueue> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The order of a vCPU that nobody debugs.
fn free() -> Order {
    Order::Go { action: crate::ResumeAction::Continue, over: Over::Nothing }
}
