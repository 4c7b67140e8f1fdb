//! Making a vCPU thread leave KVM_RUN, without losing a kick.
//!
//! A kick is a flag that tells why (the caller's), then a signal. The signal ends a KVM_RUN that is under way, and its
//! handler sets `kvm_run.immediate_exit` for one that has not begun. The vCPU thread clears `immediate_exit` first,
//! looks at the flags then, and enters KVM_RUN last: a signal before the look is seen in the flags, one after it ends
//! KVM_RUN with EINTR.

use crate::error::VmError;
use libc::{c_int, c_void, pthread_t, siginfo_t};
use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    // Const and without a destructor: reading it in a signal handler allocates nothing.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

#[expect(unsafe_code, reason = "the signal handler writes to the mapped kvm_run")]
extern "C" fn handle_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is valid from Thread::bind to the end of Binding, both on this thread.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the signal handler, once for the process.
///
/// # Errors
///
/// [`VmError::Os`] when the signal can't be had.
pub fn install_handler() -> Result<(), VmError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| register_signal_handler(SIGRTMIN(), handle_kick).map_err(|e| e.errno()));
    result.map_err(|errno| VmError::Os { operation: "sigaction", source: std::io::Error::from_raw_os_error(errno) })
}

/// The thread of one vCPU, as others kick it.
#[derive(Debug, Default)]
pub struct Thread(Mutex<Option<pthread_t>>);

impl Thread {
    /// Makes the thread leave KVM_RUN soon; nothing happens while no thread is bound.
    #[expect(unsafe_code, reason = "pthread_kill")]
    pub fn kick(&self) {
        // The lock keeps the thread from ending, it unbinds first.
        if let Some(thread) = *self.lock() {
            // SAFETY: the thread is bound, so it exists, and the signal has a handler.
            unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
        }
    }

    /// Binds the calling thread.
    ///
    /// # Safety
    ///
    /// `immediate_exit` must stay valid until the answer is dropped.
    #[expect(unsafe_code, reason = "keeps a pointer for the signal handler")]
    pub unsafe fn bind(&self, immediate_exit: NonNull<u8>) -> Binding<'_> {
        IMMEDIATE_EXIT.set(immediate_exit.as_ptr());
        // SAFETY: has no precondition.
        *self.lock() = Some(unsafe { libc::pthread_self() });
        Binding { thread: self, not_send: std::marker::PhantomData }
    }

    fn lock(&self) -> MutexGuard<'_, Option<pthread_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the thread that made it can be kicked.
#[derive(Debug)]
pub struct Binding<'a> {
    thread: &'a Thread,
    not_send: std::marker::PhantomData<*mut u8>,
}

impl Drop for Binding<'_> {
    fn drop(&mut self) {
        *self.thread.lock() = None;
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::thread;

    #[test]
    #[expect(unsafe_code, reason = "binds a flag of its own")]
    fn a_kick_sets_the_flag_of_its_thread_alone() {
        install_handler().unwrap();
        install_handler().unwrap();
        let threads = [Thread::default(), Thread::default()];
        let flags = [AtomicU8::new(0), AtomicU8::new(0)];
        threads[0].kick();
        thread::scope(|scope| {
            let (ready, bound) = std::sync::mpsc::channel();
            let mut ends = Vec::new();
            for index in 0..2 {
                let (end, ended) = std::sync::mpsc::channel::<()>();
                ends.push(end);
                let (thread, flag, ready) = (&threads[index], &flags[index], ready.clone());
                scope.spawn(move || {
                    // SAFETY: the flag outlives the scope.
                    let binding = unsafe { thread.bind(NonNull::new(flag.as_ptr()).unwrap()) };
                    ready.send(()).unwrap();
                    let _ = ended.recv();
                    drop(binding);
                });
            }
            bound.iter().take(2).for_each(drop);
            threads[1].kick();
            while flags[1].load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            assert_eq!(flags[0].load(Ordering::SeqCst), 0);
        });
        threads.iter().for_each(Thread::kick);
    }
}
