//! A client of a VM's debug session, as the gdb server is one.

use super::Guest;
use guest_debug::arm64::Reg;
use guest_debug::{Breakpoint, DebugSession, ResumeAction, StopEvent, StopReason, VcpuId};
use reference_vmm::config::DebugMode;
use reference_vmm::control::Request;
use std::sync::Arc;
use std::thread;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// vCPU 0.
pub const BOOT: VcpuId = VcpuId(0);

/// A client of the session.
pub struct Client(pub Arc<DebugSession>);

impl Client {
    pub fn attach(guest: &Guest) -> Self {
        let session = guest.vm.session().unwrap().clone();
        session.attach().unwrap();
        Self(session)
    }

    /// Waits for the next stop, as the server does.
    pub fn stop(&self) -> StopEvent {
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, fd(&self.0), EpollEvent::new(EventSet::IN, 0)).unwrap();
        loop {
            if let Some(event) = self.0.take_stop().unwrap() {
                return event;
            }
            let ready = epoll.wait(20_000, &mut [EpollEvent::default()]).unwrap();
            assert_eq!(ready, 1, "no stop within 20 s");
        }
    }

    pub fn resume(&self) -> StopEvent {
        self.0.resume(&[]).unwrap();
        self.stop()
    }

    pub fn step(&self, vcpu: VcpuId) -> StopEvent {
        self.0.resume(&[(vcpu, ResumeAction::Step)]).unwrap();
        self.stop()
    }

    pub fn get(&self, vcpu: VcpuId, reg: Reg) -> u64 {
        let bytes = self.0.read_register(vcpu, reg).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    pub fn insert(&self, breakpoint: Breakpoint) {
        self.0.insert(BOOT, breakpoint).unwrap();
    }
}

fn fd(session: &DebugSession) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(session.stop_fd())
}

/// Runs the guest on a thread of its own while `client` debugs it, and expects its power-off.
pub fn debug(guest: &Guest, client: impl FnOnce(&Guest)) {
    thread::scope(|scope| {
        let running = scope.spawn(|| guest.vm.run());
        let _end = EndOnPanic(guest);
        client(guest);
        running.join().unwrap().unwrap();
    });
}

/// Debugs `code` in a VM of `cpus` vCPUs that has executed nothing yet; afterwards the guest has to power itself off.
/// `None` where there is no KVM.
pub fn debug_held(code: &[u8], cpus: u32, client: impl FnOnce(&Guest, &Client)) -> Option<Guest> {
    let guest = Guest::new(code, |config| {
        config.cpus = cpus;
        config.debug = DebugMode::Hold;
    })?;
    debug(&guest, |guest| client(guest, &Client::attach(guest)));
    Some(guest)
}

/// A test that fails must not wait for its guest.
struct EndOnPanic<'a>(&'a Guest);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.vm.control().request(Request::Quit);
        }
    }
}

pub fn event(vcpu: u32, reason: StopReason) -> StopEvent {
    StopEvent { vcpu: VcpuId(vcpu), reason }
}
