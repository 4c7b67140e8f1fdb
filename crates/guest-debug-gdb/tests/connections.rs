//! Clients that come, go, vanish and misbehave; sockets that are in the way.
#![expect(clippy::panic, reason = "helpers of tests")]

mod common;

use common::mock::{MockVm, VIRTUAL};
use common::{Client, Server, TempDir, wait_until};
use guest_debug::{StopEvent, StopReason, VcpuId};
use guest_debug_gdb::{GdbServer, ListenAddress, ServerError, ServerOptions, VanishPolicy, VmEvent};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn attach_and_detach_a_hundred_times() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    for round in 1..=100 {
        let mut client = server.connect().greet();
        assert_eq!(client.ask(&format!("Z1,{VIRTUAL:x},4")), "OK");
        match round % 3 {
            0 => assert_eq!(client.ask("D;1"), "OK"),
            1 => assert_eq!(client.ask("vKill;1"), "OK"),
            _ => client.send("k"),
        }
        assert_eq!(client.receive(), None, "the server closes");
        wait_until("detached", || vm.state().detaches == round);
        let state = vm.state();
        assert!(state.running && state.breakpoints.is_empty());
        assert_eq!(state.attaches, round);
    }
}

#[test]
fn a_client_that_vanishes_has_detached() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let leave: [fn(&mut Client); 4] = [
        |_| {},
        |client| client.raw(b"$m1234,"),
        |client| client.send("vCont;c"),
        |client| {
            // Unread answers make a reset of the close.
            for _ in 0..100 {
                client.send(&format!("m{VIRTUAL:x},100"));
            }
        },
    ];
    for (round, leave) in leave.into_iter().enumerate() {
        let mut client = server.connect().greet();
        assert_eq!(client.ask(&format!("Z0,{VIRTUAL:x},4")), "OK");
        leave(&mut client);
        drop(client);
        wait_until("detached", || vm.state().detaches == round + 1);
        assert!(vm.state().breakpoints.is_empty());
    }
    assert_eq!(server.connect().greet().ask("qC"), "QCp1.1");
}

#[test]
fn a_vanished_client_can_be_made_to_leave_everything_as_it_was() {
    let vm = MockVm::new(2);
    let options = ServerOptions { vanish: VanishPolicy::Keep, ..ServerOptions::default() };
    let server = Server::with_options(vm.clone(), options);
    let mut client = server.connect().greet();
    assert_eq!(client.ask(&format!("Z0,{VIRTUAL:x},4")), "OK");
    vm.state().keep = true;
    drop(client);
    // The next one is told of a stop that happened in between.
    vm.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(1), reason: StopReason::Step }));
    let mut client = wait_for_turn(&server);
    assert_eq!(client.ask("?"), "T05thread:2;");
    assert_eq!(vm.state().breakpoints.len(), 1);
    assert_eq!(vm.state().detaches, 0);
    assert_eq!(client.ask("D"), "OK");
    wait_until("detached", || vm.state().detaches == 1);
}

#[test]
fn a_second_client_is_refused() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut first = server.connect().greet();
    let mut second = server.connect();
    assert_eq!(second.receive(), None);
    assert_eq!(first.ask("qC"), "QCp1.1");
    first.send("vCont;c");
    assert_eq!(server.connect().receive(), None);
    first.interrupt();
    assert!(first.receive().unwrap().starts_with("T02"));
    assert_eq!(vm.state().attaches, 1);
}

#[test]
fn a_silent_connection_keeps_nobody_out() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut silent = server.connect();
    silent.raw(b"+");
    let mut client = server.connect().greet();
    assert_eq!(silent.receive(), None);
    assert_eq!(client.ask("qC"), "QCp1.1");
    assert_eq!(vm.state().attaches, 1);
}

#[test]
fn connecting_alone_does_not_stop_the_guest() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    drop(server.connect());
    let mut client = server.connect();
    client.raw(b"+");
    drop(client);
    // What a web page can make a browser send.
    let mut client = server.connect();
    client.raw(b"POST / HTTP/1.1\r\n\r\n$vCont;c#a8");
    assert_eq!(client.receive(), None);
    assert_eq!(vm.state().attaches, 0);
}

#[test]
fn garbage_and_oversized_packets_do_not_end_the_session() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.raw(b"garbage between packets \xff\x00#42");
    assert_eq!(client.ask("qC"), "QCp1.1");
    for bad in ["m", "m1", "vCont;x", "Z0", "P", "qRcmd,x", "Hg-1", "c1234", "qXfer:features:read:", "X1,5:ab"] {
        assert_eq!(client.ask(bad), "E16", "{bad}");
    }
    let answer = client.ask(&"m".repeat(0x90000));
    assert!(answer.starts_with("E.length"), "{answer}");
    client.raw(b"$qC#00");
    assert!(client.receive().unwrap().starts_with("E.checksum"));
    assert_eq!(client.ask("qC"), "QCp1.1");
    assert_eq!(vm.state().attaches, 1);
}

#[test]
fn packets_while_the_guest_runs_wait_and_too_many_end_the_session() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.send("vCont;c");
    client.send("qC");
    vm.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(0), reason: StopReason::Step }));
    assert!(client.receive().unwrap().starts_with("T05"));
    assert_eq!(client.receive().as_deref(), Some("QCp1.1"));
    client.send("vCont;c");
    for _ in 0..100 {
        let _ = client.stream.write_all(b"$qC#b4");
    }
    assert_eq!(client.receive(), None);
    wait_until("detached", || vm.state().detaches == 1);
    // Detaching does not wait.
    let mut client = wait_for_turn(&server).greet();
    client.send("vCont;c");
    assert_eq!(client.ask("D"), "OK");
}

#[test]
fn packets_whose_answers_are_not_taken_wait() {
    const PACKETS: usize = 10_000;
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let length = client.ask("g").len();
    vm.state().reads.clear();
    // All of them come at once.
    client.stream.write_all(&b"$g#67".repeat(PACKETS)).unwrap();
    let served = || vm.state().reads.len();
    let mut before = usize::MAX;
    wait_until("quiet", || {
        std::thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut before, served()) == served()
    });
    // What the server keeps, what is on its way in the socket, and something for run lengths.
    assert!(served() > 0 && served() * length < 8 << 20, "{} answers of {length} bytes and more", served());
    assert!(served() < PACKETS);
    for _ in 0..PACKETS {
        assert_eq!(client.receive().unwrap().len(), length);
    }
    assert_eq!(served(), PACKETS);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let vm = MockVm::new(1);
    let options = ServerOptions { write_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = Server::with_options(vm.clone(), options);
    let mut client = server.connect().greet();
    client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let packet = format!("m{VIRTUAL:x},10000");
    let sum = packet.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
    let packet = format!("${packet}#{sum:02x}");
    for _ in 0..1000 {
        if client.stream.write_all(packet.as_bytes()).is_err() {
            break;
        }
    }
    wait_until("detached", || vm.state().detaches == 1);
    drop(client);
    assert_eq!(wait_for_turn(&server).greet().ask("qC"), "QCp1.1");
}

#[test]
fn the_server_sleeps_while_the_guest_runs() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.send("vCont;c");
    // An event that leads to nothing, and whose fd stays readable: no reason to look again and again.
    vm.stop_without_event();
    std::thread::sleep(Duration::from_millis(50));
    let looked = vm.state().looks;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(vm.state().looks, looked, "the server polls");
    client.interrupt();
    assert!(client.receive().unwrap().starts_with("T02"));
}

#[test]
fn shutdown_detaches_and_tells_why_if_it_can() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.send("vCont;c");
    wait_until("resumed", || vm.state().running);
    vm.state().events.push_back(VmEvent::Ended(0));
    drop(server);
    assert_eq!(client.receive().as_deref(), Some("W00"));
    assert_eq!(vm.state().detaches, 1);
}

#[test]
fn socket_is_for_its_owner_only() {
    let directory = TempDir::new();
    let path = directory.0.join("gdb");
    let server = GdbServer::bind(&ListenAddress::Unix(path.clone())).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    drop(server);
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_never() {
    let directory = TempDir::new();
    let path = directory.0.join("gdb");
    let address = ListenAddress::Unix(path.clone());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the file of a dead server");
    let first = GdbServer::bind(&address).unwrap();
    let second = GdbServer::bind(&address);
    assert!(matches!(&second, Err(ServerError::SocketInUse(at)) if *at == path), "{second:?}");
    UnixStream::connect(&path).expect("the live socket is still there");
    drop(first);
    assert!(!path.exists());
    // Somebody else's file at that place is not removed.
    let first = GdbServer::bind(&address).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(other);
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let directory = TempDir::new();
    let path = directory.0.join("gdb");
    std::fs::write(&path, "precious").unwrap();
    let address = ListenAddress::Unix(path.clone());
    assert!(matches!(GdbServer::bind(&address), Err(ServerError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    // A link to a socket is not one either.
    let (target, link) = (directory.0.join("target"), directory.0.join("link"));
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(GdbServer::bind(&ListenAddress::Unix(link)), Err(ServerError::NotASocket(_))));
    let nowhere = ListenAddress::Unix(directory.0.join("no/such/directory"));
    assert!(matches!(GdbServer::bind(&nowhere), Err(ServerError::Socket { .. })));
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 3);
}

#[test]
fn tcp_is_on_loopback_only() {
    let server = GdbServer::bind(&ListenAddress::Tcp(0)).unwrap();
    let ListenAddress::Tcp(port) = server.local_address() else { panic!("not TCP") };
    assert_ne!(port, 0);
    assert!(matches!(GdbServer::bind(&ListenAddress::Tcp(port)), Err(ServerError::Tcp { .. })));
    let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
    let theirs = shutdown.try_clone().unwrap();
    let thread = std::thread::spawn(move || server.run(MockVm::new(1), theirs));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"$qC#b4").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+$QC1#c5");
    stream.shutdown(Shutdown::Both).unwrap();
    assert!(TcpStream::connect_timeout(&([127, 0, 0, 2], port).into(), Duration::from_secs(1)).is_err());
    shutdown.write(1).unwrap();
    thread.join().unwrap().unwrap();
}

/// A client that is served, after the server has seen the last one go. Until then it refuses.
fn wait_for_turn(server: &Server) -> Client {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let mut client = server.connect();
        if client.stream.write_all(b"$qC#b4").is_ok() && client.receive().is_some() {
            return client;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never served");
}
