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

#[test]
fn an_order_to_a_paused_guest_is_done_when_it_goes_on() {
    let setup = Setup::new();
    let mut client = setup.client();
    rewind(&mut client);
    setup.vm.session.freeze().unwrap();
    client.send("vCont;s:p1.2");
    // Somebody else is refused meanwhile, so the server is not waiting.
    let mut second = Client::new(UnixStream::connect(&setup.path).unwrap());
    assert_eq!(second.receive(), None);
    assert_eq!([setup.vm.pc(0), setup.vm.pc(1)], [RAM; 2]);
    setup.vm.session.thaw().unwrap();
    let stop = client.receive().unwrap();
    assert!(stop.starts_with("T05thread:p01.02;"), "{stop}");
    assert_eq!([setup.vm.pc(0), setup.vm.pc(1)], [RAM, RAM + 4]);
}

#[test]
fn an_order_to_a_paused_guest_can_be_taken_back() {
    let setup = Setup::new();
    let mut client = setup.client();
    rewind(&mut client);
    setup.vm.session.freeze().unwrap();
    let refused = client.ask("P1=0000000000000000");
    assert!(refused.starts_with("E.refused."), "{refused}");
    assert_eq!(client.ask(&format!("Z1,{:x},4", RAM + 8)), "OK");
    client.send("vCont;c");
    client.interrupt();
    let stop = client.receive().unwrap();
    assert!(stop.starts_with("T02thread:p01.0"), "{stop}");
    assert_eq!(client.ask("p20"), to_hex(&RAM.to_le_bytes()));
    setup.vm.session.thaw().unwrap();
    assert_eq!(setup.vm.session.vcpu_states(), [VcpuState::Stopped; 2]);
    assert_eq!([setup.vm.pc(0), setup.vm.pc(1)], [RAM; 2]);
    assert!(client.ask("vCont;c").contains("hwbreak:;"));
}

/// Bytecode for `X1 == value`, with gdb's own number of the register.
fn x1_is(value: u8) -> String {
    format!("X7,26000122{value:02x}1327")
}

/// Has both vCPUs begin anew: the guest has counted since it was started.
fn rewind(client: &mut Client) {
    for thread in 1..=2 {
        assert_eq!(client.ask(&format!("Hgp1.{thread}")), "OK");
        assert_eq!(client.ask("P1=0000000000000000"), "OK");
        assert_eq!(client.ask(&format!("P20={}", to_hex(&RAM.to_le_bytes()))), "OK");
    }
}

/// The next stop reply, and what was printed before it.
fn stop_and_texts(client: &mut Client) -> (String, String) {
    let mut text = String::new();
    loop {
        let answer = client.receive().unwrap();
        match answer.strip_prefix('O') {
            Some(hex) => text.push_str(&String::from_utf8(common::unhex(hex)).unwrap()),
            None => return (answer, text),
        }
    }
}

#[test]
fn a_condition_of_a_packet_is_evaluated_beside_the_vcpu() {
    let setup = Setup::new();
    let mut client = setup.client();
    let at = RAM + 8;
    let features = client.ask("qSupported:multiprocess+");
    assert!(features.contains(";ConditionalBreakpoints+;BreakpointCommands+"), "{features}");
    for (kind, value) in [("0", 100), ("1", 150)] {
        rewind(&mut client);
        assert_eq!(client.ask(&format!("Z{kind},{at:x},4;{}", x1_is(value))), "OK");
        let stop = client.ask("vCont;c");
        let reason = if kind == "0" { "swbreak" } else { "hwbreak" };
        assert!(stop.contains(reason), "{stop}");
        assert!(client.ask("p1").starts_with(&format!("{value:02x}00")));
        assert!(client.monitor("hits").contains(&format!("at {at:#x}: reached")));
        assert_eq!(client.ask(&format!("z{kind},{at:x},4")), "OK");
    }
    // A packet without conditions replaces one with some.
    assert_eq!(client.ask(&format!("Z1,{at:x},4;{}", x1_is(0))), "OK");
    assert_eq!(client.ask(&format!("Z1,{at:x},4")), "OK");
    assert!(client.ask("vCont;c").contains("hwbreak"));
    client.ask("D");
}

#[test]
fn bytecode_that_is_not_accepted_inserts_nothing() {
    let setup = Setup::new();
    let mut client = setup.client();
    let at = RAM + 8;
    for (expression, why) in
        [("X2,0c00", "opcode 0x0c"), ("X1,27", "the stack has 0 values"), ("X4,260fff27", "register 4095")]
    {
        let answer = client.ask(&format!("Z1,{at:x},4;{expression}"));
        assert!(answer.starts_with("E.refused.") && answer.contains(why), "{answer}");
    }
    assert!(client.monitor("breakpoints").contains("nothing is inserted"));
    client.ask("D");
}

#[test]
fn a_command_of_a_packet_prints_and_the_guest_runs_on() {
    let setup = Setup::new();
    let mut client = setup.client();
    let at = RAM + 8;
    // printf "%d\n" of X1, without function and channel.
    let text = to_hex(b"%d\\n\0");
    rewind(&mut client);
    let command = format!("X11,26000122002200340100{:02x}{text}27", text.len() / 2);
    assert_eq!(client.ask(&format!("Z1,{at:x},4;{};cmds:0,{command}", x1_is(3))), "OK");
    client.send("vCont;c");
    let printed = client.receive().unwrap();
    assert_eq!(printed, format!("O{}", to_hex(b"3\n")));
    client.interrupt();
    let (stop, text) = stop_and_texts(&mut client);
    assert!(stop.starts_with("T02"), "{stop}");
    // The other vCPU's, if it has come so far.
    assert!(["", "3\n"].contains(&text.as_str()), "{text}");
    client.ask("D");
}

#[test]
fn conditions_messages_and_ignore_counts_by_hand() {
    let setup = Setup::new();
    let mut client = setup.client();
    let at = RAM + 8;
    assert!(client.monitor(&format!("condition {at:#x} $x1 >= 40")).contains("1 conditions"));
    // As gdb does by habit: out at every stop, in at every resume.
    for expected in [42, 43] {
        if expected == 42 {
            rewind(&mut client);
            assert!(client.monitor(&format!("ignore {at:#x} 2")).contains("the next 2 hits"));
        }
        assert_eq!(client.ask(&format!("Z1,{at:x},4")), "OK");
        // The other vCPU stays where it is.
        assert!(client.ask("vCont;c:2").contains("hwbreak"));
        assert!(client.ask("p1").starts_with(&format!("{expected:02x}00")));
        assert_eq!(client.ask(&format!("z1,{at:x},4")), "OK");
    }
    for (command, answer) in [
        ("condition", "usage"),
        ("condition 0x1000 $x1 =", "usage"),
        ("condition 0x1000 $v0 == 1", "usage"),
        ("condition 0x1000 *0x2000:3 == 1", "usage"),
        ("message 0x1000 \"%d\"", "takes 1 values, 0 are given"),
        ("message 0x1000 text", "usage"),
        ("ignore 0x1000", "usage"),
        ("condition 0x1002 $x1 == 1", "0x1002"),
        ("message 0x1000 \"%s %lx\\n\" *$sp:8, $SP_EL0", "software breakpoint at 0x1000: 0 conditions, 1 messages"),
        ("condition 0x1000 *0x2000:4 s< -1", "hardware breakpoint at 0x1000: 1 conditions, 1 messages"),
        ("condition 0x1000", "hardware breakpoint at 0x1000: 0 conditions, 1 messages"),
    ] {
        let text = client.monitor(command);
        assert!(text.contains(answer), "{command}: {text}");
    }
    client.ask("D");
}

/// What gdb makes of conditions and dprintf by itself.
#[test]
fn the_real_gdb_leaves_conditions_and_messages_to_the_server() {
    if std::process::Command::new("gdb-multiarch").arg("--version").output().is_err() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: gdb-multiarch is not installed\n");
        return;
    }
    let setup = Setup::new();
    let at = RAM + 8;
    let mut gdb = std::process::Command::new("timeout");
    gdb.args(["60", "gdb-multiarch", "-nx", "-batch", "-ex", "set pagination off", "-ex", "set architecture aarch64"]);
    gdb.arg("-ex").arg(format!("target remote {}", setup.path.display()));
    let commands = [
        "set debug remote 1".to_owned(),
        "set dprintf-style agent".to_owned(),
        "set breakpoint condition-evaluation target".to_owned(),
        "thread 2".to_owned(),
        format!("set $pc = {RAM:#x}"),
        "set $x1 = 0".to_owned(),
        "thread 1".to_owned(),
        format!("set $pc = {RAM:#x}"),
        "set $x1 = 0".to_owned(),
        "set scheduler-locking on".to_owned(),
        format!("dprintf *{:#x}, \"round %d of %s\\n\", $x1, {RAM:#x} + 0x3000", RAM + 4),
        format!("break *{at:#x} if $x1 == 5 && *(int *)({RAM:#x} + 4) != 3 || $x1 > 100"),
        format!("set var *(long *)({RAM:#x} + 0x3000) = 0x6f6f66"),
        "continue".to_owned(),
        "printf \"x1 is %d\\n\", $x1".to_owned(),
        "detach".to_owned(),
    ];
    for command in &commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(text.contains("x1 is 5"));
    for round in 0..5 {
        assert!(text.contains(&format!("round {round} of foo")), "round {round}");
    }
    assert!(text.contains(&format!("Z0,{at:x},4;X")), "gdb sends the condition");
    assert_eq!(text.matches("Packet received: T").count(), 1, "one stop, for the hit that counts");
}
