//! The parts of a host that need no arm64: this machine, through its own agent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use kvm_agent::Signal;

use super::*;

#[test]
fn a_process_is_watched_signalled_and_ended() {
    let host = KvmHost::start_native(Arch::Arm64).unwrap();
    let script = "trap 'echo bye; exit 5' TERM; echo one; echo two; while :; do sleep 0.05; done";
    let process = host.spawn(&command(["sh", "-c", script])).unwrap();
    let after = process.wait_for("one", 0, Duration::from_secs(10)).unwrap();
    process.wait_for("two", after, Duration::from_secs(10)).unwrap();
    assert!(process.wait_for("one", after, Duration::from_millis(50)).is_err(), "only the output behind the first");
    assert_eq!(process.wait(Duration::from_millis(10)).unwrap(), None);
    process.signal(Signal::Term).unwrap();
    assert_eq!(process.wait(Duration::from_secs(10)).unwrap(), Some(Exit::Code(5)));
    assert!(process.output_text().contains("bye"));
    let error = process.wait_for("never", 0, Duration::from_secs(10)).unwrap_err().to_string();
    assert!(error.contains("exit code 5") && error.contains("bye"), "{error}");
}

#[test]
fn a_forward_carries_several_connections_one_after_the_other() {
    let host = KvmHost::start_native(Arch::Arm64).unwrap();
    let path = host.path("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            let mut text = String::new();
            peer.read_to_string(&mut text).unwrap();
            peer.write_all(text.to_uppercase().as_bytes()).unwrap();
        }
    });
    let forward = host.forward(Endpoint::Unix(path)).unwrap();
    for text in ["first", "second"] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forward.port())).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, text.to_uppercase());
    }
}

#[test]
fn a_host_can_be_lent_to_another_process() {
    let host = KvmHost::start_native(Arch::Arm64).unwrap();
    let borrowed = KvmHost::borrow(Arch::Arm64, &host.lend()).unwrap();
    assert!(!borrowed.is_emulated());
    let output = borrowed.output(&command(["echo", "hello"])).unwrap();
    assert_eq!((output.stdout_text().as_str(), output.exit), ("hello\n", Exit::Code(0)));
    assert!(KvmHost::borrow(Arch::Arm64, "127.0.0.1:1,wrong,/tmp,").is_err());
    assert!(KvmHost::borrow(Arch::Arm64, "nonsense").is_err());
}

#[test]
fn files_that_have_no_size_are_read_to_their_end() {
    let host = KvmHost::start_native(Arch::Arm64).unwrap();
    assert!(host.download("/proc/self/status").unwrap().starts_with(b"Name:"));
    assert!(host.download("/no/such/file").is_err());
}

#[test]
fn a_command_that_hangs_is_given_up() {
    let mut host = KvmHost::start_native(Arch::Arm64).unwrap();
    host.client.silence = Duration::from_secs(1);
    let hangs = command(["sh", "-c", "echo $$; sleep 1000"]);
    for error in [host.output(&hangs).unwrap_err(), host.run(&hangs).unwrap_err()] {
        assert!(error.to_string().contains("nothing has come"), "{error:#}");
    }
    // One that takes longer, and prints now and then, is waited for.
    let slow = command(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 0.1; done"]);
    assert_eq!(host.output(&slow).unwrap().stdout_text().lines().count(), 12);
}
