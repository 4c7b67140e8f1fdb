//! A VM that may not be here yet, as its control socket sees it: asked for its status it says what it waits for, and it can
//! be ended.

use crate::error::VmError;
use crate::migration::{Connection, MigrationAddress};
use crate::operations::Operations;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What [`Operations::snapshot`] and [`Operations::migrate`] answer before.
const NOT_HERE: VmError = VmError::Busy("the VM is not here yet");

/// A VM on its way into this process.
pub struct Arrival {
    phase: Mutex<Phase>,
    arrived: Condvar,
    quit: EventFd,
}

enum Phase {
    Coming {
        /// What is being done, in words.
        what: String,
        /// It depends on nobody else, so commands wait for it.
        soon: bool,
        /// Where the VM comes from, once somebody sends one.
        peer: Option<Connection>,
        /// The user does not want it any more.
        ending: bool,
    },
    Here(Arc<dyn Operations>),
}

impl Arrival {
    /// A VM that will be here soon, and what is being done about it. Other commands than that for its status wait for it.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] when there is no descriptor left.
    pub fn new(what: impl Into<String>) -> Result<Self, VmError> {
        let phase = Phase::Coming { what: what.into(), soon: true, peer: None, ending: false };
        let quit = EventFd::new(EFD_NONBLOCK).map_err(VmError::io("eventfd"))?;
        Ok(Self { phase: Mutex::new(phase), arrived: Condvar::new(), quit })
    }

    /// Becomes readable when the user does not want the VM any more.
    pub fn quit_event(&self) -> &EventFd {
        &self.quit
    }

    /// Whether the user does not want the VM any more.
    pub fn is_ending(&self) -> bool {
        matches!(*self.lock(), Phase::Coming { ending: true, .. })
    }

    /// When it comes is up to somebody else, and this is how far it is. Commands are refused, except those for its status
    /// and its end.
    pub fn waits(&self, text: impl Into<String>) {
        if let Phase::Coming { what, soon, .. } = &mut *self.lock() {
            (*what, *soon) = (text.into(), false);
        }
        self.arrived.notify_all();
    }

    /// Somebody sends it over this connection, which is closed when the user does not want the VM any more.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`] when there is no descriptor left.
    pub fn comes_over(&self, connection: &Connection) -> Result<(), VmError> {
        let connection = connection.try_clone()?;
        if let Phase::Coming { peer, ending, .. } = &mut *self.lock() {
            if *ending {
                connection.close();
            }
            *peer = Some(connection);
        }
        Ok(())
    }

    /// It is here. Where the user does not want it any more, it is told so.
    pub fn is_here(&self, vm: Arc<dyn Operations>) {
        let before = std::mem::replace(&mut *self.lock(), Phase::Here(vm.clone()));
        self.arrived.notify_all();
        if matches!(before, Phase::Coming { ending: true, .. }) {
            vm.quit();
        }
    }

    fn vm(&self) -> Result<Arc<dyn Operations>, VmError> {
        let coming_soon = |phase: &mut Phase| matches!(phase, Phase::Coming { soon: true, .. });
        match &*self.arrived.wait_while(self.lock(), coming_soon).unwrap_or_else(PoisonError::into_inner) {
            Phase::Coming { .. } => Err(NOT_HERE),
            Phase::Here(vm) => Ok(vm.clone()),
        }
    }

    // Every change of the phase is a single assignment.
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operations for Arrival {
    fn snapshot(&self, directory: &Path, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
        self.vm()?.snapshot(directory, progress)
    }

    fn migrate(&self, to: &MigrationAddress, progress: &mut dyn FnMut(String)) -> Result<String, VmError> {
        self.vm()?.migrate(to, progress)
    }

    fn status(&self) -> Result<String, VmError> {
        let vm = match &*self.lock() {
            Phase::Coming { what, .. } => return Ok(what.clone()),
            Phase::Here(vm) => vm.clone(),
        };
        vm.status()
    }

    fn quit(&self) {
        let vm = match &mut *self.lock() {
            Phase::Coming { peer, ending, .. } => {
                *ending = true;
                if let Err(error) = self.quit.write(1) {
                    log::error!("eventfd: {error}");
                }
                if let Some(peer) = peer {
                    peer.close();
                }
                return;
            }
            Phase::Here(vm) => vm.clone(),
        };
        vm.quit();
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.lock() {
            Phase::Coming { what, .. } => write!(f, "Arrival({what})"),
            Phase::Here(_) => f.write_str("Arrival(here)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::MigrationListener;
    use std::io::Read as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;
    use vmm_sys_util::tempdir::TempDir;

    #[derive(Default)]
    struct Vm(AtomicBool);

    impl Operations for Vm {
        fn snapshot(&self, directory: &Path, _: &mut dyn FnMut(String)) -> Result<String, VmError> {
            Ok(format!("in {}", directory.display()))
        }

        fn migrate(&self, to: &MigrationAddress, _: &mut dyn FnMut(String)) -> Result<String, VmError> {
            Ok(format!("at {to}"))
        }

        fn status(&self) -> Result<String, VmError> {
            Ok("well".to_owned())
        }

        fn quit(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn listen(directory: &TempDir) -> (MigrationListener, MigrationAddress) {
        let address = MigrationAddress::Unix(directory.as_path().join("move"));
        (MigrationListener::bind(&address).unwrap(), address)
    }

    #[test]
    fn it_says_what_it_waits_for_until_the_vm_is_here() {
        let arrival = Arrival::new("loading").unwrap();
        assert_eq!(arrival.status().unwrap(), "loading");
        arrival.waits("memory is coming");
        assert_eq!(arrival.status().unwrap(), "memory is coming");
        let address = "unix:/x".parse().unwrap();
        assert!(matches!(arrival.snapshot(Path::new("/x"), &mut drop), Err(VmError::Busy(_))));
        assert!(matches!(arrival.migrate(&address, &mut drop), Err(VmError::Busy(_))));
        let vm = Arc::new(Vm::default());
        arrival.is_here(vm.clone());
        assert_eq!(arrival.status().unwrap(), "well");
        assert_eq!(arrival.snapshot(Path::new("/x"), &mut drop).unwrap(), "in /x");
        assert_eq!(arrival.migrate(&address, &mut drop).unwrap(), "at unix:/x");
        assert!(!vm.0.load(Ordering::SeqCst));
        arrival.quit();
        assert!(vm.0.load(Ordering::SeqCst));
    }

    #[test]
    fn commands_wait_for_a_vm_that_will_be_here_soon() {
        let arrival = Arrival::new("loading").unwrap();
        thread::scope(|scope| {
            let saving = scope.spawn(|| arrival.snapshot(Path::new("/x"), &mut drop));
            thread::sleep(Duration::from_millis(20));
            assert!(!saving.is_finished());
            arrival.is_here(Arc::new(Vm::default()));
            assert_eq!(saving.join().unwrap().unwrap(), "in /x");
        });
    }

    #[test]
    fn a_wait_for_a_source_can_be_ended() {
        let directory = TempDir::new().unwrap();
        let (listener, _) = listen(&directory);
        let arrival = Arrival::new("waiting").unwrap();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| listener.accept(arrival.quit_event()));
            arrival.quit();
            assert!(accepted.join().unwrap().unwrap().is_none());
        });
        assert!(arrival.is_ending());
    }

    #[test]
    fn a_vm_that_comes_over_a_connection_can_be_refused() {
        let directory = TempDir::new().unwrap();
        let (listener, address) = listen(&directory);
        let source = Connection::open(&address).unwrap();
        let arrival = Arrival::new("waiting").unwrap();
        let connection = listener.accept(arrival.quit_event()).unwrap().unwrap();
        arrival.comes_over(&connection).unwrap();
        arrival.quit();
        for end in [&source, &connection] {
            assert_eq!((&mut &*end).read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[test]
    fn a_vm_that_is_not_wanted_any_more_is_told_so_when_it_is_here() {
        let arrival = Arrival::new("waiting").unwrap();
        arrival.quit();
        let vm = Arc::new(Vm::default());
        arrival.is_here(vm.clone());
        assert!(vm.0.load(Ordering::SeqCst));
    }
}
