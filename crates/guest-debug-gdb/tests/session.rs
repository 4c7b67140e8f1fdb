//! The server on a real session, its vCPUs interpreted: gdb's packets to breakpoints, steps and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
#[path = "../../guest-debug/tests/fake/mod.rs"]
#[allow(dead_code, reason = "shared with the backend's tests")]
mod fake;

use common::{Client, TempDir, to_hex, wait_until};
use fake::{COUNT, NOP, RAM, Vm, branch};
use guest_debug::VcpuState;
use guest_debug_gdb::{GdbServer, ListenAddress, SessionVm};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Setup {
    vm: Vm,
    handle: SessionVm,
    path: PathBuf,
    shutdown: EventFd,
    server: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Setup {
    /// Two vCPUs that count in X1, and a server that no client has come to.
    fn new() -> Self {
        let vm = Vm::new(2, &[NOP, COUNT, NOP, branch(-8)]).start();
        vm.session.detach().unwrap();
        let directory = TempDir::new();
        let path = directory.0.join("gdb");
        let server = GdbServer::bind(&ListenAddress::Unix(path.clone())).unwrap();
        let handle = SessionVm::new(vm.session.clone());
        let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
        let (theirs, theirs_too) = (handle.clone(), shutdown.try_clone().unwrap());
        let server = std::thread::spawn(move || server.run(theirs, theirs_too).unwrap());
        Self { vm, handle, path, shutdown, server: Some(server), _directory: directory }
    }

    fn client(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).unwrap()).greet()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.shutdown.write(1).unwrap();
        let _ = self.server.take().unwrap().join();
    }
}

#[test]
fn breakpoints_steps_and_interrupts_of_a_session() {
    let setup = Setup::new();
    let mut client = setup.client();
    let at = RAM + 8;
    for kind in ["0", "1"] {
        assert_eq!(client.ask(&format!("Z{kind},{at:x},4")), "OK");
        // Wherever the vCPUs were stopped, both come by.
        let mut threads = BTreeSet::new();
        for _ in 0..10_000 {
            let stop = client.ask("vCont;c");
            assert!(stop.contains("break:;"), "{stop}");
            assert!(stop.contains(&format!("20:{};", to_hex(&at.to_le_bytes()))), "{stop}");
            threads.extend(stop.split(';').next().map(str::to_owned));
            if threads.len() == 2 {
                break;
            }
        }
        assert!(threads.iter().eq(["T05thread:p01.01", "T05thread:p01.02"]), "{threads:?}");
        assert_eq!(client.ask(&format!("m{at:x},4")), to_hex(&NOP.to_le_bytes()));
        assert_eq!(client.ask(&format!("z{kind},{at:x},4")), "OK");
    }
    let stop = client.ask("vCont;s:p1.1;c");
    assert!(stop.starts_with("T05thread:p01.01;"), "{stop}");
    client.send("vCont;c");
    client.interrupt();
    assert!(client.receive().unwrap().starts_with("T02thread:p01.0"));
    assert_eq!(client.ask("D"), "OK");
    wait_until("running", || setup.vm.session.vcpu_states() == [VcpuState::Running; 2]);
    let before = setup.vm.get(0, guest_debug::arm64::Reg::X(1));
    wait_until("counting", || setup.vm.get(0, guest_debug::arm64::Reg::X(1)) > before + 10);
}

#[test]
fn errors_of_a_session_reach_the_client() {
    let setup = Setup::new();
    let mut client = setup.client();
    for n in 0..6 {
        assert_eq!(client.ask(&format!("Z1,{:x},4", RAM + 0x100 + 4 * n)), "OK");
    }
    let refused = client.ask(&format!("Z1,{:x},4", RAM + 0x200));
    assert!(refused.contains("all 6 are in use"), "{refused}");
    let refused = client.ask(&format!("Z1,{:x},4", RAM + 0x202));
    assert!(refused.starts_with("E.refused."), "{refused}");
    let refused = client.ask("Z0,1000,4");
    assert!(refused.contains("is not RAM"), "{refused}");
    assert_eq!(client.ask("m1000,4"), "E0e");
    assert_eq!(client.ask(&format!("m{:x},100", RAM + (1 << 20) - 8)).len(), 16);
    assert!(client.monitor("breakpoints").contains("hardware breakpoint slots: 6 of 6 in use"));
    assert_eq!(client.monitor("phys on"), "memory accesses are guest-physical\n");
    assert_eq!(client.ask(&format!("m{:x},100", RAM + (1 << 20) - 8)).len(), 16);
    assert_eq!(client.ask(&format!("M{RAM:x},4:1f2003d5")), "OK");
}

#[test]
fn the_end_of_the_guest_is_told_and_so_is_a_stop_left_behind() {
    let setup = Setup::new();
    // A client that is gone, with everything kept as it was.
    setup.vm.session.attach().unwrap();
    let mut client = setup.client();
    assert_eq!(client.ask("?"), "T05thread:p1.1;");
    client.send("vCont;c");
    wait_until("running", || setup.vm.session.vcpu_states() == [VcpuState::Running; 2]);
    setup.handle.report_end(7);
    assert_eq!(client.receive().as_deref(), Some("W07"));
    assert_eq!(client.receive(), None);
}
