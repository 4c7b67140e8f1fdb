//! The real gdb, a relay, and a server with the mock.
#![expect(clippy::unwrap_used, reason = "test support")]

mod common;

use common::mock::{MockVm, VIRTUAL};
use common::{Server, TempDir, gdb_at};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What goes to a server.
struct Recorder(UnixStream, Arc<Mutex<Vec<u8>>>);

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.0.write(bytes)?;
        self.1.lock().unwrap().extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What gdb prints that comes through a relay, and what the server gets of it. `None` if gdb is not installed.
fn gdb(server: &Server, commands: &[String]) -> Option<(String, String)> {
    let directory = TempDir::new();
    let path = directory.0.join("relay");
    let listener = UnixListener::bind(&path).unwrap();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (record, server) = (Arc::clone(&sent), server.path.clone());
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = UnixStream::connect(server).unwrap();
        let ends = [client.try_clone().unwrap(), server.try_clone().unwrap()];
        let client_side = (client.try_clone().unwrap(), client);
        guest_debug_relay::run(client_side, (server.try_clone().unwrap(), Recorder(server, record))).unwrap();
        ends.iter().for_each(|end| drop(end.shutdown(std::net::Shutdown::Both)));
    });
    let text = gdb_at(&path, commands)?;
    let sent = String::from_utf8_lossy(&sent.lock().unwrap()).into_owned();
    Some((text, sent))
}

#[test]
fn a_step_is_one_round_trip() {
    const STEPS: usize = 10;
    let server = Server::start(MockVm::new(2));
    let steps = |count| std::iter::repeat_n("stepi".to_owned(), count);
    let mark = || std::iter::once("monitor echo mark".to_owned());
    let commands: Vec<_> =
        steps(3).chain(mark()).chain(steps(STEPS)).chain(mark()).chain(["detach".to_owned()]).collect();
    let Some((text, sent)) = gdb(&server, &commands) else { return };
    assert!(!text.contains("warning: unrecognized"), "gdb heard of the relay's feature");
    // Between the two marks: gdb asks what it asks without a relay, and the server hears of the steps.
    let between = sent.split("qRcmd").nth(1).unwrap();
    let packets: Vec<_> = between.split('$').skip(1).collect();
    let resumes = packets.iter().filter(|packet| packet.starts_with("vCont;s:p1.1;c")).count();
    assert_eq!(resumes, STEPS, "{packets:?}");
    // The first step follows a monitor command, which ends what was answered ahead.
    assert!(packets.len() <= STEPS + 3, "{packets:?}");
}

#[test]
fn a_session_looks_as_it_does_without_a_relay() {
    let (here, there) = (VIRTUAL + 0x40, VIRTUAL + 0x80);
    let commands = [
        format!("hbreak *{here:#x}"),
        "continue".to_owned(),
        "stepi".to_owned(),
        "info registers".to_owned(),
        format!("break *{there:#x}"),
        "continue".to_owned(),
        "stepi".to_owned(),
        "x/4xw $pc".to_owned(),
        "set $x7 = 0x1122".to_owned(),
        "p $x7".to_owned(),
        format!("set *(unsigned long*){:#x} = 0x1122", VIRTUAL + 0x200),
        format!("x/2xw {:#x}", VIRTUAL + 0x200),
        "thread 2".to_owned(),
        "p $pc".to_owned(),
        "info threads".to_owned(),
        "stepi".to_owned(),
        "monitor phys on".to_owned(),
        "x/xw 0x40000040".to_owned(),
        "monitor help".to_owned(),
        "detach".to_owned(),
    ];
    let server = Server::start(MockVm::new(2));
    let Some((relayed, _)) = gdb(&server, &commands) else { return };
    let server = Server::start(MockVm::new(2));
    assert_eq!(Some(relayed), gdb_at(&server.path, &commands));
}
