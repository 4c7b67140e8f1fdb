//! Who may run guest code: the pause of the VM, and what its vCPUs ask of it.
//!
//! Each vCPU thread is either outside the guest, where its state can be read and written by others, or inside. It
//! goes inside through [`Control::enter_guest`], which blocks while the VM is paused. This is the VMM's own pause,
//! for resets and for the end; a debugger's stop has its own flag and does not touch this one.

use crate::error::VmError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What ends the current run of the guest.
#[derive(Debug)]
pub enum Request {
    /// The guest powered itself off.
    PowerOff,
    /// The guest wants a reset.
    Reset,
    /// The user wants the VM to end.
    Quit,
    /// The VM goes on in another process.
    Migrated,
    /// Something failed.
    Fail(VmError),
}

/// Shared by the VM's own thread and all vCPU threads.
#[derive(Debug)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Set while a vCPU must come out of the guest: paused or ended. Read without the lock.
    attention: AtomicBool,
}

#[derive(Debug)]
struct State {
    inside: Vec<bool>,
    paused: bool,
    ended: bool,
    /// Requests wait: somebody stops the VM for an operation of the VMM's own.
    deferred: bool,
    request: Option<Request>,
}

impl Control {
    /// For `vcpus` vCPUs, all of them outside the guest and the VM paused.
    pub fn new(vcpus: u32) -> Self {
        let inside = vec![false; vcpus as usize];
        let state = State { inside, paused: true, ended: false, deferred: false, request: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), attention: AtomicBool::new(true) }
    }

    /// Whether vCPUs must come out of the guest.
    pub fn needs_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// A vCPU thread is about to run guest code: blocks while the VM is paused, and answers false at its end.
    pub fn enter_guest(&self, vcpu: u32) -> bool {
        let mut state = self.lock();
        while state.paused && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(inside) = state.inside.get_mut(vcpu as usize) {
            *inside = true;
        }
        !state.ended
    }

    /// A vCPU thread runs no guest code any more, and has let go of its vCPU.
    pub fn leave_guest(&self, vcpu: u32) {
        let mut state = self.lock();
        if let Some(inside) = state.inside.get_mut(vcpu as usize) {
            *inside = false;
        }
        // Nobody waits for it otherwise, and each step of a debugger's passes here.
        if state.paused {
            self.changed.notify_all();
        }
    }

    /// Asks the VM's own thread for something, and pauses the VM. Anything wins over a reset, and otherwise the
    /// first request wins.
    pub fn request(&self, request: Request) {
        let mut state = self.lock();
        if matches!(state.request, None | Some(Request::Reset)) {
            state.request = Some(request);
        }
        if !state.deferred {
            self.pause_for_request(&mut state);
        }
    }

    fn pause_for_request(&self, state: &mut State) {
        state.paused = true;
        self.attention.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until the VM runs, then keeps requests waiting until [`Control::end_operation`], so that a debugger can bring
    /// the vCPUs to a halt: it can't while they wait for the end of the VMM's pause. One operation at a time. Answers false
    /// where the VM has ended, or does not run before the time is over.
    pub fn begin_operation(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while state.deferred || state.paused || state.request.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.deferred = !state.ended;
        state.deferred
    }

    /// Whether a request came up since [`Control::begin_operation`].
    pub fn has_request(&self) -> bool {
        self.lock().request.is_some()
    }

    /// Ends what [`Control::begin_operation`] began, and the pause too unless a request waits.
    pub fn end_operation(&self) {
        let mut state = self.lock();
        state.deferred = false;
        // With the lock held throughout: the VM's own thread may take the request as soon as it can, and then the pause is
        // its own.
        if state.request.is_some() {
            self.pause_for_request(&mut state);
        } else {
            self.unpause(&mut state);
        }
        self.changed.notify_all();
    }

    /// Blocks until there is a request.
    pub fn wait_request(&self) -> Request {
        let mut state = self.lock();
        loop {
            if !state.deferred
                && let Some(request) = state.request.take()
            {
                return request;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Pauses the VM: returns when every vCPU is outside the guest. `kick` makes them leave KVM_RUN.
    pub fn pause(&self, kick: impl FnOnce()) {
        self.lock().paused = true;
        self.attention.store(true, Ordering::SeqCst);
        kick();
        let mut state = self.lock();
        while state.inside.contains(&true) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets vCPUs into the guest, unless another request came up meanwhile.
    pub fn resume(&self) {
        self.unpause(&mut self.lock());
    }

    fn unpause(&self, state: &mut State) {
        if state.request.is_none() && !state.ended {
            state.paused = false;
            self.attention.store(false, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// From now on [`Control::enter_guest`] answers false.
    pub fn end(&self) {
        self.lock().ended = true;
        self.attention.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    // A thread that panicked with the lock held leaves flags that are each valid on their own.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    /// A vCPU thread whose guest code is a counter.
    fn run(control: &Control, vcpu: u32, count: &AtomicU64) {
        while control.enter_guest(vcpu) {
            while !control.needs_attention() {
                count.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
            }
            control.leave_guest(vcpu);
        }
        control.leave_guest(vcpu);
    }

    #[test]
    fn nobody_is_inside_while_paused() {
        let (control, count) = (Control::new(3), AtomicU64::new(0));
        thread::scope(|scope| {
            for vcpu in 0..3 {
                let (control, count) = (&control, &count);
                scope.spawn(move || run(control, vcpu, count));
            }
            thread::yield_now();
            assert_eq!(count.load(Ordering::SeqCst), 0, "a VM starts paused");
            for _ in 0..100 {
                let before = count.load(Ordering::SeqCst);
                control.resume();
                while count.load(Ordering::SeqCst) == before {
                    thread::yield_now();
                }
                control.pause(|| {});
                let stopped = count.load(Ordering::SeqCst);
                thread::yield_now();
                assert_eq!(count.load(Ordering::SeqCst), stopped);
            }
            control.end();
        });
    }

    #[test]
    fn a_failure_wins_over_a_reset() {
        let control = Control::new(1);
        control.request(Request::Reset);
        control.request(Request::Fail(VmError::GuestCrash));
        control.request(Request::Reset);
        control.request(Request::PowerOff);
        assert!(matches!(control.wait_request(), Request::Fail(VmError::GuestCrash)));
    }

    #[test]
    fn a_request_waits_for_the_end_of_an_operation() {
        let control = Control::new(1);
        control.resume();
        assert!(control.begin_operation(Duration::ZERO));
        assert!(!control.begin_operation(Duration::ZERO), "one at a time");
        control.request(Request::Reset);
        assert!(!control.needs_attention(), "the vCPUs can still be stopped by the debugger");
        assert!(control.has_request());
        control.pause(|| {});
        thread::scope(|scope| {
            let waiting = scope.spawn(|| control.wait_request());
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            control.end_operation();
            assert!(matches!(waiting.join().unwrap(), Request::Reset));
        });
        assert!(control.needs_attention(), "the VM stays paused for the request");
        assert!(!control.begin_operation(Duration::ZERO), "the reset comes first");
        control.resume();
        assert!(control.begin_operation(Duration::ZERO));
        control.end_operation();
        control.end();
        assert!(!control.begin_operation(Duration::from_secs(60)));
    }

    #[test]
    fn a_request_during_a_reset_keeps_the_vm_paused() {
        let control = Control::new(1);
        control.request(Request::PowerOff);
        control.resume();
        assert!(control.needs_attention());
        assert!(matches!(control.wait_request(), Request::PowerOff));
        control.resume();
        assert!(!control.needs_attention());
    }
}
