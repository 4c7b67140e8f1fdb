//! The meeting point of a vCPU's thread and everybody who wants it to stop or go on.

use super::table::Plan;
use crate::arch::Arch;
use crate::{Gva, ResumeAction, VcpuState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a vCPU is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Stay stopped.
    Stay,
    /// Go on as the client said. With `over`, the first instruction is not to hit what was reported already.
    Go { action: ResumeAction, over: Over },
    /// Execute one instruction for the session itself; nobody is told.
    StepQuietly(Over),
}

/// What the instruction that is executed first is not to hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Over {
    /// Everything counts.
    Nothing,
    /// The client was told of the breakpoint there.
    Breakpoint,
    /// The client was told of the watches at these addresses; all others count.
    Watches(Vec<Gva>),
    /// It triggered a watchpoint slot beside the bytes that were asked for.
    AllWatches,
}

/// A stop that the client was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) pc: u64,
    /// The watches that the instruction there has hit so far.
    pub(super) watches: Vec<Gva>,
}

/// How the last order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing was executed for it, or it was cut short.
    Unfinished,
    /// The one instruction of [`Order::StepQuietly`] has executed.
    Stepped,
}

#[derive(Debug)]
struct Shared<A: Arch> {
    online: bool,
    parked: bool,
    closed: bool,
    order: Order,
    /// What the vCPU was doing when the session was frozen; it goes on with that.
    frozen: Option<Order>,
    ended: Ended,
    /// Another vCPU executes an instruction that no other may pass meanwhile.
    paused: bool,
    plan: Arc<Plan<A>>,
    /// The stop that the client was told of, until the vCPU executes something.
    told: Option<Told>,
}

impl<A: Arch> Shared<A> {
    /// Its thread may be in guest code.
    fn is_inside(&self) -> bool {
        self.online && !self.parked
    }
}

/// Shared state of one vCPU. Its mutex is this vCPU's own: no other vCPU's thread waits for it while it runs.
#[derive(Debug)]
pub(super) struct VcpuSlot<A: Arch> {
    shared: Mutex<Shared<A>>,
    changed: Condvar,
    stop: AtomicBool,
    reset: AtomicBool,
}

/// How a vCPU's thread got out of [`VcpuSlot::park`].
pub(super) enum Parked<A: Arch> {
    /// It may go on.
    Released(Release<A>),
    /// The VMM wants the thread for something else; it is still stopped.
    Attention,
    /// The session is closed.
    Closed,
}

/// A vCPU's thread was released.
pub(super) struct Release<A: Arch> {
    pub(super) order: Order,
    pub(super) plan: Arc<Plan<A>>,
    /// The client was told that the vCPU is where it is.
    pub(super) told: bool,
}

impl<A: Arch> VcpuSlot<A> {
    pub(super) fn new(order: Order) -> Self {
        let stop = AtomicBool::new(order == Order::Stay);
        let shared = Shared {
            online: false,
            parked: false,
            closed: false,
            order,
            frozen: None,
            ended: Ended::Unfinished,
            paused: false,
            plan: Arc::default(),
            told: None,
        };
        Self { shared: Mutex::new(shared), changed: Condvar::new(), stop, reset: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<A>> {
        // Every update of `Shared` is a plain assignment, so it is whole even after a panic elsewhere.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // -- the vCPU's thread

    /// Blocks until the vCPU may go on, its session is closed, or `attention` says so. It is asked with the lock held.
    pub(super) fn park(&self, attention: &dyn Fn() -> bool) -> Parked<A> {
        let mut shared = self.lock();
        shared.online = true;
        while (shared.order == Order::Stay || shared.paused) && !shared.closed {
            if !shared.parked {
                shared.parked = true;
                self.changed.notify_all();
            }
            if attention() {
                return Parked::Attention;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        if shared.closed {
            shared.parked = true;
            self.changed.notify_all();
            return Parked::Closed;
        }
        shared.parked = false;
        let (order, plan) = (shared.order.clone(), shared.plan.clone());
        Parked::Released(Release { order, plan, told: shared.told.is_some() })
    }

    /// Whether the thread must come back to [`Self::park`]. Takes no lock.
    pub(super) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The vCPU was reset: what its thread believes about its registers is void.
    pub(super) fn take_reset(&self) -> bool {
        // The swap alone would write a shared line at every entry.
        self.reset.load(Ordering::Acquire) && self.reset.swap(false, Ordering::AcqRel)
    }

    pub(super) fn finish(&self, ended: Ended) {
        let mut shared = self.lock();
        shared.ended = ended;
        shared.order = Order::Stay;
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn go_offline(&self) {
        let mut shared = self.lock();
        shared.online = false;
        shared.parked = false;
        self.changed.notify_all();
    }

    // -- everybody else

    /// Has a parked thread ask again whether it is wanted.
    pub(super) fn wake(&self) {
        // With the lock: a thread that has asked already is waiting by now.
        let _shared = self.lock();
        self.changed.notify_all();
    }

    /// Asks for a stop. Answers whether the vCPU must be kicked for it: one that was asked before was kicked then, or is
    /// out of the guest by itself.
    pub(super) fn request_stop(&self) -> bool {
        let mut shared = self.lock();
        shared.order = Order::Stay;
        if shared.frozen.is_some() {
            shared.frozen = Some(Order::Stay);
        }
        let asked = self.stop.swap(true, Ordering::AcqRel);
        shared.online && !shared.parked && !asked
    }

    /// Asks for a stop after which the vCPU goes on with what it was doing. Answers whether it must be kicked for it.
    pub(super) fn request_freeze(&self) -> bool {
        let mut shared = self.lock();
        let order = std::mem::replace(&mut shared.order, Order::Stay);
        shared.frozen.get_or_insert(order);
        self.stop.store(true, Ordering::Release);
        shared.online && !shared.parked
    }

    /// Has the vCPU wait for another one's instruction, whatever its order is. Answers whether it must be kicked for it.
    pub(super) fn pause(&self) -> bool {
        let mut shared = self.lock();
        shared.paused = true;
        self.stop.store(true, Ordering::Release);
        shared.is_inside()
    }

    /// Ends what [`Self::pause`] began.
    pub(super) fn unpause(&self) {
        let mut shared = self.lock();
        shared.paused = false;
        let stays = shared.order == Order::Stay;
        self.stop.store(stays || shared.closed, Ordering::Release);
        shared.parked &= stays;
        self.changed.notify_all();
    }

    /// What the vCPU goes on with. A stop that was asked for or that happened since has made it [`Order::Stay`].
    pub(super) fn take_frozen(&self) -> Option<Order> {
        self.lock().frozen.take()
    }

    /// Gives a frozen vCPU another order to go on with.
    pub(super) fn set_frozen(&self, order: Order) {
        self.lock().frozen = Some(order);
    }

    /// What the vCPU does, or goes on with once it is not frozen any more.
    pub(super) fn order(&self) -> Order {
        let shared = self.lock();
        shared.frozen.clone().unwrap_or_else(|| shared.order.clone())
    }

    /// Waits until the thread is parked. Answers false when it is not, after `timeout`.
    pub(super) fn wait_parked(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, Shared::<A>::is_inside)
    }

    /// The same, for a thread that has a quiet step to make, and may not have come to [`Self::park`] for the first time yet.
    pub(super) fn wait_quiet(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, |shared| shared.is_inside() || matches!(shared.order, Order::StepQuietly(_)))
    }

    fn wait_while(&self, timeout: Duration, condition: impl Fn(&Shared<A>) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut shared = self.lock();
        while condition(&shared) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            shared = self.changed.wait_timeout(shared, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Gives a stopped vCPU its order.
    pub(super) fn release(&self, order: Order, plan: Arc<Plan<A>>) {
        let mut shared = self.lock();
        self.stop.store(order == Order::Stay || shared.paused, Ordering::Release);
        if order != Order::Stay {
            shared.ended = Ended::Unfinished;
            // From here on it counts as running, even before its thread wakes. One that stays needs no waking, and with
            // hundreds of them that is most of what it costs to restore a session.
            shared.parked &= shared.paused;
        }
        // A thread that has not come yet does not wait either.
        let waits = shared.online && order != Order::Stay;
        shared.order = order;
        shared.plan = plan;
        // It would only wait for the lock otherwise.
        drop(shared);
        if waits {
            self.changed.notify_all();
        }
    }

    pub(super) fn ended(&self) -> Ended {
        self.lock().ended
    }

    pub(super) fn state(&self) -> VcpuState {
        let shared = self.lock();
        match (shared.online, shared.parked) {
            (false, _) => VcpuState::Offline,
            (true, true) => VcpuState::Stopped,
            (true, false) => VcpuState::Running,
        }
    }

    pub(super) fn set_told(&self, told: Option<Told>) {
        self.lock().told = told;
    }

    pub(super) fn told(&self) -> Option<Told> {
        self.lock().told.clone()
    }

    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        self.lock().told = None;
    }

    pub(super) fn close(&self) {
        let mut shared = self.lock();
        shared.closed = true;
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
    }
}
