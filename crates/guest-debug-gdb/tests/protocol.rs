//! Packets and answers, against the mock.

mod common;

use common::mock::{LENGTH, MockVm, PHYSICAL, VIRTUAL, number, watch};
use common::{Client, Server, to_hex, unhex};
use guest_debug::arm64::{Reg, SysReg};
use guest_debug::{Breakpoint, Gva, ResumeAction, StopEvent, StopReason, Unsupported, VcpuId, WatchKind};
use guest_debug_gdb::VmEvent;

const SP: &str = "1f";
const PC: &str = "20";
const CPSR: &str = "21";

#[test]
fn handshake_announces_what_there_is() {
    let server = Server::start(MockVm::new(2));
    let mut client = server.connect();
    let features = client.ask("qSupported:multiprocess+");
    for feature in [
        "PacketSize=080100",
        "vContSupported+",
        "swbreak+",
        "hwbreak+",
        "qXfer:features:read+",
        "qXfer:threads:read+",
        "binary-upload+",
    ] {
        assert!(features.contains(feature), "{features}");
    }
    for feature in ["fork-events+", "vfork-events+", "ReverseStep+"] {
        assert!(!features.contains(feature), "{features}");
    }
    assert_eq!(client.ask("vCont?"), "vCont;c;C;s;S;r");
    assert_eq!(client.ask("qC"), "QCp1.1");
    assert_eq!(client.ask("?"), "T05thread:p1.1;");
    assert_eq!(client.ask("qfThreadInfo"), "mp01.01,p01.02");
    assert_eq!(client.ask("qsThreadInfo"), "l");
    let list = client.ask("qXfer:threads:read::0,1000");
    let expected = |n, id| format!("<thread id=\"p1.{id}\">vCPU {n}: stopped, EL1h DAIF (0x3c5)</thread>");
    assert_eq!(list, format!("l<threads>{}{}</threads>", expected(0, 1), expected(1, 2)));
    let pieces = ["qXfer:threads:read::0,9", "qXfer:threads:read::9,fff"].map(|packet| client.ask(packet));
    assert_eq!(pieces, [format!("m{}", &list[1..10]), format!("l{}", &list[10..])]);
    assert_eq!(client.ask("qXfer:threads:read::fffff,10"), "l");
    assert_eq!(client.ask("Tp1.2"), "OK");
    assert_eq!(client.ask("Tp1.3"), "E01");
    let extra = unhex(&client.ask("qThreadExtraInfo,p1.2"));
    assert_eq!(String::from_utf8(extra).unwrap(), "vCPU 1: stopped, EL1h DAIF (0x3c5)");
}

#[test]
fn all_registers_take_one_call_and_a_single_one_reads_itself() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.ask("Hgp1.2");
    vm.state().reads.clear();
    let all = unhex(&client.ask("g"));
    assert_eq!(vm.state().reads.len(), 1);
    // Core: 33 of eight bytes and cpsr; then 32 vectors, FPSR before FPCR.
    assert_eq!(all.len(), 33 * 8 + 4 + 32 * 16 + 8);
    assert_eq!(all[8 * 30..8 * 31], number(0x11e));
    assert_eq!(all[8 * 31..8 * 32], number(VIRTUAL + 0x8000));
    assert_eq!(all[8 * 32..8 * 33], number(VIRTUAL + 0x1000));
    assert_eq!(all[264..268], 0x3c5u32.to_le_bytes());
    assert_eq!(all[268 + 16 * 31..][..16], [31; 16]);
    assert_eq!(all[780..784], 0x0800_0000u32.to_le_bytes());
    assert_eq!(all[784..788], 0x0100_0000u32.to_le_bytes());

    vm.state().reads.clear();
    assert_eq!(client.ask("p7"), to_hex(&number(0x107)));
    assert_eq!(vm.state().reads, [vec![Reg::X(7)]]);

    let mut changed = all.clone();
    changed[8 * 5] = 0xee;
    assert_eq!(client.ask(&format!("G{}", to_hex(&changed))), "OK");
    assert_eq!(vm.register(1, Reg::X(5)), 0x1ee);
    assert_eq!(client.ask("g"), to_hex(&changed));
    assert_eq!(client.ask("G00"), "E.refused.a G packet has 788 bytes, the client sent 1");
}

#[test]
fn sp_is_the_one_of_the_current_exception_level() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    // EL1h, EL1t, EL0t.
    for (mode, value) in [(0x3c5u32, VIRTUAL + 0x8000), (0x3c4, 0x1111), (0x3c0, 0x1111)] {
        assert_eq!(client.ask(&format!("P{CPSR}={}", to_hex(&mode.to_le_bytes()))), "OK");
        assert_eq!(client.ask(&format!("p{SP}")), to_hex(&number(value)), "{mode:#x}");
    }
    assert_eq!(client.ask(&format!("P{SP}={}", to_hex(&number(0x5555)))), "OK");
    assert_eq!((vm.register(0, Reg::SpEl0), vm.register(0, Reg::SpEl1)), (0x5555, VIRTUAL + 0x8000));
}

#[test]
fn writing_cpsr_keeps_the_upper_half_of_pstate() {
    let vm = MockVm::with_registers(1, &[(Reg::Pstate, number(0x1_0000_03c5))]);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    assert_eq!(client.ask(&format!("P{CPSR}={}", to_hex(&0x3c4u32.to_le_bytes()))), "OK");
    assert_eq!(vm.register(0, Reg::Pstate), 0x1_0000_03c4);
}

#[test]
fn wrong_registers_are_refused() {
    let server = Server::start(MockVm::new(1));
    let mut client = server.connect().greet();
    assert_eq!(client.ask("pffff"), "E05");
    assert_eq!(client.ask("Pffff=00"), "E.refused.there is no register number 65535");
    assert_eq!(client.ask("P0=00"), "E.refused.x0 has 8 bytes, the client sent 1");
    // A thread that does not exist.
    client.ask("Hg9");
    assert_eq!(client.ask("p0"), "E03");
    assert_eq!(client.ask("g"), "E03");
    assert_eq!(client.ask(&format!("m{VIRTUAL:x},4")).len(), 8);
}

#[test]
fn memory_is_read_as_far_as_it_goes() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let end = VIRTUAL + LENGTH;
    assert_eq!(client.ask(&format!("m{:x},8", VIRTUAL + 2)), "0000010101010202");
    assert_eq!(unhex(&client.ask(&format!("m{:x},10", end - 4))), vm.state().memory[LENGTH as usize - 4..]);
    assert_eq!(client.ask(&format!("m{end:x},1")), "E0e");
    assert_eq!(client.ask("m0,10"), "E0e");
    assert_eq!(client.ask("mffffffffffffffff,ffffffffffffffff"), "E0e");
    // A length beyond what fits into a packet is answered with less.
    assert_eq!(unhex(&client.ask(&format!("m{VIRTUAL:x},ffffffff"))), vm.state().memory[..0x40000]);
}

#[test]
fn memory_is_read_as_bytes() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    // Every byte there is, those that mean something in a packet among them, and runs.
    for (at, byte) in (0..=255).chain([0; 300]).chain([b'#'; 5]).chain([b'}', b'*', b'$', 0x03]).enumerate() {
        vm.state().memory[at] = byte;
    }
    let memory = vm.state().memory.clone();
    let bytes = |from: usize, to: usize| [b"b", &memory[from..to]].concat();
    assert_eq!(client.ask_bytes(&format!("x{VIRTUAL:x},400")), bytes(0, 0x400));
    let end = LENGTH as usize;
    assert_eq!(client.ask_bytes(&format!("x{:x},10", VIRTUAL + LENGTH - 4)), bytes(end - 4, end));
    assert_eq!(client.ask("x0,10"), "E0e");
    // A length beyond what fits into a packet is answered with less.
    assert_eq!(client.ask_bytes(&format!("x{VIRTUAL:x},ffffffff")), bytes(0, 0x40000));
    // lldb asks so whether there is a packet of this name with another answer.
    assert_eq!(client.ask("x0,0"), "E16");
}

#[test]
fn memory_is_searched() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let at = LENGTH as usize - 0x100;
    vm.state().memory[at..at + 4].copy_from_slice(b"ab#c");
    let found = format!("1,{:x}", VIRTUAL + at as u64);
    let mut search = |address: u64, length: u64, pattern: &str| {
        client.ask(&format!("qSearch:memory:{address:x};{length:x};{pattern}"))
    };
    // A pattern is binary, and what would end the packet is escaped.
    assert_eq!(search(VIRTUAL, LENGTH, "ab}\x03c"), found);
    assert_eq!(search(VIRTUAL + at as u64, 4, "ab}\x03c"), found);
    assert_eq!(search(VIRTUAL + at as u64 + 1, 0x80, "ab}\x03c"), "0");
    // It is there, and not whole in these bytes.
    assert_eq!(search(VIRTUAL, at as u64 + 3, "ab}\x03c"), "0");
    assert_eq!(search(VIRTUAL, 3, "ab}\x03c"), "0");
    // What is in front of an unmapped page is found, and no pattern is missing from memory that can't be read.
    assert_eq!(search(VIRTUAL, LENGTH + 1, "ab}\x03c"), found);
    assert_eq!(search(VIRTUAL, LENGTH + 1, "absent"), "the search failed: nothing is readable at 0xffff800008080000");
    assert_eq!(search(0, 0x1000, "absent"), "the search failed: 0x0 is not mapped");
    assert_eq!(search(u64::MAX, 0x1000, "ab"), "the search failed: 0xffffffffffffffff is not mapped");
    assert!(search(VIRTUAL, u64::MAX, "absent").starts_with("the search failed: not supported: a search goes through"));
    assert_eq!(search(VIRTUAL, 8, ""), "E16");
}

#[test]
fn memory_is_written_whole_or_not_at_all() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    assert_eq!(client.ask(&format!("M{VIRTUAL:x},3:abcdef")), "OK");
    assert_eq!(client.ask(&format!("X{VIRTUAL:x},0:")), "OK");
    let mut binary = format!("X{:x},4:", VIRTUAL + 3).into_bytes();
    // '#', '}' and '$' are escaped, anything else is itself.
    binary.extend_from_slice(&[b'}', 0x03, b'}', b'}' ^ 0x20, b'}', b'$' ^ 0x20, 0xff]);
    client.send_bytes(&binary);
    assert_eq!(client.receive().as_deref(), Some("OK"));
    assert_eq!(vm.state().memory[..7], [0xab, 0xcd, 0xef, b'#', b'}', b'$', 0xff]);
    assert_eq!(client.ask(&format!("M{:x},8:{}", VIRTUAL + LENGTH - 4, "00".repeat(8))), "E0e");
    assert_eq!(client.ask("Mffffffffffffffff,2:0000"), "E0e");
    assert_ne!(vm.state().memory[LENGTH as usize - 4..], [0; 4]);
    // As long as a packet may be.
    let data = "5a".repeat(0x40000);
    assert_eq!(client.ask(&format!("M{VIRTUAL:x},40000:{data}")), "OK");
    assert_eq!(vm.state().memory[..0x40000], [0x5a; 0x40000]);
}

#[test]
fn physical_memory_on_demand_and_not_for_the_next_client() {
    let server = Server::start(MockVm::new(1));
    let mut client = server.connect().greet();
    assert_eq!(client.monitor("phys on"), "memory accesses are guest-physical\n");
    assert_eq!(client.ask(&format!("m{:x},4", PHYSICAL + 4)), "01010101");
    assert_eq!(client.ask(&format!("m{VIRTUAL:x},4")), "E0e");
    assert_eq!(client.ask("D"), "OK");
    let mut client = server.connect().greet();
    assert_eq!(client.ask(&format!("m{:x},4", PHYSICAL + 4)), "E0e");
}

#[test]
fn breakpoints_of_every_kind() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let at = VIRTUAL + 0x100;
    let cases = [
        ("0", "4", Breakpoint::Software(Gva(at))),
        ("1", "4", Breakpoint::Hardware(Gva(at))),
        ("2", "3", watch(WatchKind::Write, at, 3)),
        ("3", "40", watch(WatchKind::Read, at, 64)),
        ("4", "1000", watch(WatchKind::Access, at, 4096)),
    ];
    for (kind, length, expected) in cases {
        assert_eq!(client.ask(&format!("Z{kind},{at:x},{length}")), "OK");
        assert_eq!(client.ask(&format!("Z{kind},{at:x},{length}")), "OK", "inserting twice");
        assert_eq!(vm.state().breakpoints, [expected]);
        assert_eq!(client.ask(&format!("z{kind},{at:x},{length}")), "OK");
        assert_eq!(client.ask(&format!("z{kind},{at:x},{length}")), "OK", "removing twice");
        assert_eq!(vm.state().breakpoints, []);
    }
    assert_eq!(client.ask("Z5,1000,4"), "");
}

#[test]
fn refused_breakpoints_say_why() {
    let server = Server::start(MockVm::new(1));
    let mut client = server.connect().greet();
    for at in [0x1000, 0x2000] {
        assert_eq!(client.ask(&format!("Z1,{at:x},4")), "OK");
    }
    assert_eq!(client.ask("Z1,3000,4"), "E.refused.no slot left: all 2 are in use");
    assert_eq!(client.ask("Z0,10,4"), "E.refused.0x10 is not mapped");
    let list = client.monitor("breakpoints");
    assert!(list.contains("hardware breakpoint at 0x1000\n"), "{list}");
    assert!(list.contains("hardware breakpoint slots: 2 of 2 in use"), "{list}");
    assert!(list.contains("last refused: Software(Gva(0x10)): 0x10 is not mapped"), "{list}");
}

#[test]
fn resume_actions_reach_the_vm() {
    use ResumeAction::{Continue, Stay, Step, StepRange};
    let vm = MockVm::new(3);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let v = VcpuId;
    let cases = [
        ("vCont;s:p1.2;c:p1.-1", vec![(v(1), Step)]),
        ("vCont;s:p1.2;c", vec![(v(1), Step)]),
        ("vCont;s:p1.2", vec![(v(1), Step), (v(0), Stay), (v(2), Stay)]),
        ("vCont;r1000,1010:p1.1;c:p1.3", vec![(v(0), StepRange(0x1000..0x1010)), (v(2), Continue), (v(1), Stay)]),
        ("vCont;r1000,1000:p1.1;c", vec![(v(0), Step)]),
        ("vCont;s:p1.1;s:p1.2;c:p1.1", vec![(v(0), Step), (v(1), Step), (v(2), Stay)]),
        ("s", vec![(v(0), Step)]),
    ];
    for (packet, expected) in cases {
        let answer = client.ask(packet);
        assert!(answer.starts_with("T05thread:p01.0"), "{packet}: {answer}");
        assert_eq!(vm.state().resumes.pop(), Some(expected), "{packet}");
    }
    // Nobody who could run was named.
    let output = client.ask("vCont;s:p1.9");
    assert!(String::from_utf8(unhex(&output[1..])).unwrap().contains("not resumed"), "{output}");
    assert!(client.receive().unwrap().starts_with("T02thread:"));
}

#[test]
fn stop_replies_name_thread_and_reason() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    // Where vCPU 1 is.
    let at = Gva(VIRTUAL + 0x1000);
    let cases = [
        (StopReason::Step, "T05thread:p01.02;"),
        (StopReason::HardwareBreakpoint(at), "T05thread:p01.02;hwbreak:;"),
        (StopReason::SoftwareBreakpoint(at), "T05thread:p01.02;swbreak:;"),
        (StopReason::Watchpoint { kind: WatchKind::Write, address: at }, "T05thread:p01.02;watch:ffff800008001000;"),
        (StopReason::Watchpoint { kind: WatchKind::Read, address: at }, "T05thread:p01.02;rwatch:ffff800008001000;"),
        (StopReason::Watchpoint { kind: WatchKind::Access, address: at }, "T05thread:p01.02;awatch:ffff800008001000;"),
        (StopReason::Interrupt, "T02thread:p01.02;"),
    ];
    for packet in 0..5 {
        // The client knows it from then on.
        assert_eq!(client.ask(&format!("Z{packet},ffff800008001000,4")), "OK");
        assert_eq!(client.ask(&format!("z{packet},ffff800008001000,4")), "OK");
    }
    for (reason, expected) in cases {
        client.send("vCont;c");
        vm.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(1), reason }));
        let answer = client.receive().unwrap();
        // Frame pointer, link register, stack pointer and program counter come along.
        let registers = ["1d", "1e", "1f", "20"].map(|n| format!("{n}:{};", client.ask(&format!("p{n}")))).concat();
        assert_eq!(answer, format!("{expected}{registers}"));
        assert_eq!(client.ask("qC"), "QCp1.2");
    }
    client.send("vCont;c");
    let reason = StopReason::Unsupported(Unsupported::AArch32);
    vm.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(0), reason }));
    let output = client.receive().unwrap();
    assert_eq!(unhex(&output[1..]), format!("vCPU 0: {}\n", Unsupported::AArch32).as_bytes());
    assert!(client.receive().unwrap().starts_with("T04thread:p01.01;"));
}

#[test]
fn hits_of_another_clients_breakpoints_are_told_as_plain_stops() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let at = Gva(VIRTUAL + 0x10);
    let watch = |address| StopReason::Watchpoint { kind: WatchKind::Write, address };
    let stop = |client: &mut Client, reason| {
        client.send("vCont;c");
        vm.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(1), reason }));
        client.receive().unwrap()
    };
    // gdb would take such a hit for one that came late, and go on.
    for reason in [StopReason::HardwareBreakpoint(at), StopReason::SoftwareBreakpoint(at), watch(at)] {
        assert!(stop(&mut client, reason).starts_with("T05thread:p01.02;1d:"));
    }
    // Taken out, as gdb does at every stop, a breakpoint is still one that the client knows.
    assert_eq!(client.ask("Z2,ffff800008000010,4"), "OK");
    assert_eq!(client.ask("z2,ffff800008000010,4"), "OK");
    assert!(stop(&mut client, watch(Gva(at.0 + 3))).contains("watch:ffff800008000013;"));
    assert!(!stop(&mut client, watch(Gva(at.0 + 4))).contains("watch:"));
    assert!(!stop(&mut client, StopReason::HardwareBreakpoint(at)).contains("hwbreak:"));
}

#[test]
fn interrupt_stops_a_running_guest_only() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.interrupt();
    assert_eq!(client.ask("qC"), "QCp1.1", "a stopped guest needs no stop");
    client.send("vCont;c");
    client.interrupt();
    assert!(client.receive().unwrap().starts_with("T02thread:p01.01;"));
    assert_eq!(vm.state().resumes.len(), 1);
}

#[test]
fn the_end_of_the_guest_is_told() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    client.send("vCont;c");
    vm.stop(VmEvent::Ended(3));
    assert_eq!(client.receive().as_deref(), Some("W03"));
    assert_eq!(client.receive(), None);
}

#[test]
fn a_refused_resume_is_a_stop_with_a_message() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    vm.state().refuse_resume = true;
    let output = client.ask("vCont;c");
    assert_eq!(unhex(&output[1..]), b"The guest was not resumed: the mock does not want to\n");
    // Not SIGTRAP: gdb would take that for a step on its way, and step on without end.
    assert!(client.receive().unwrap().starts_with("T02thread:p01.01;"));
    assert!(client.ask("vCont;s:1").starts_with("T05"));
}

#[test]
fn monitor_commands() {
    let server = Server::start(MockVm::new(2));
    let mut client = server.connect().greet();
    let help = client.monitor("help");
    for name in ["help", "breakpoints", "vcpus", "translate ADDR", "phys [on|off]", "echo TEXT"] {
        assert!(help.lines().any(|line| line.starts_with(name)), "{help}");
    }
    assert_eq!(client.monitor(""), help);
    assert_eq!(client.monitor("vcpus").lines().count(), 2);
    let answer = client.monitor(&format!("translate {:#x}", VIRTUAL + 5));
    assert_eq!(answer, format!("vCPU 0: virtual {:#x} is physical {:#x}\n", VIRTUAL + 5, PHYSICAL + 5));
    assert_eq!(client.monitor("translate 16"), "0x10 is not mapped\n");
    assert!(client.monitor("translate x").starts_with("usage"));
    assert!(client.monitor("phys maybe").starts_with("usage"));
    // Linux's own scripts for gdb ask for that, and want some text.
    assert!(client.monitor("info version").starts_with("guest-debug "));
    for unknown in ["dance", "info", "information version", "info versions", "helpless"] {
        assert!(client.monitor(unknown).contains("monitor help"), "{unknown}");
    }
    client.ask("Hg2");
    assert_eq!(client.monitor("echo hello"), "vCPU 1 says hello\n");
}

#[test]
fn system_registers_have_their_names_and_can_be_written() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect().greet();
    let xml = client.description();
    let number_of = |name: &str| {
        let (_, rest) = xml.split_once(&format!("name=\"{name}\" bitsize=\"64\" regnum=\"")).expect(name);
        rest.split('"').next().unwrap().parse::<usize>().unwrap()
    };
    let vbar = number_of("SCTLR_EL1");
    assert_eq!(client.ask(&format!("p{vbar:x}")), to_hex(&number(0x30d0_0800)));
    assert_eq!(client.ask(&format!("P{vbar:x}={}", to_hex(&number(5)))), "OK");
    assert_eq!(vm.register(0, Reg::Sys(SysReg::SCTLR_EL1)), 5);
    for name in ["SP_EL0", "SP_EL1", "ELR_EL1", "SPSR_EL1", "TCR_EL1", "MPIDR_EL1", "S3_0_C15_C1_2", "tpidr"] {
        number_of(name);
    }
    assert!(!xml.contains("pauth"), "this vCPU authenticates nothing");
    assert_eq!(client.ask("qXfer:features:read:other.xml:0,100"), "E00");
    assert_eq!(number_of("pc"), usize::from_str_radix(PC, 16).unwrap());
}

#[test]
fn a_client_that_acknowledges_can_have_an_answer_again() {
    let server = Server::start(MockVm::new(1));
    let mut client = server.connect();
    assert_eq!(client.ask("qC"), "QC1");
    client.raw(b"-");
    assert_eq!(client.receive().as_deref(), Some("QC1"));
    assert_eq!(client.ask("p0"), to_hex(&number(0x100)));
    client.raw(b"-");
    assert_eq!(client.receive(), Some(to_hex(&number(0x100))));
    // A packet that was damaged on its way is asked for again.
    client.raw(b"$qC#00");
    client.raw(b"$qC#b4");
    assert_eq!(client.receive().as_deref(), Some("QC1"));
}

/// As a relay begins.
fn ahead(server: &Server) -> Client {
    let mut client = server.connect();
    assert!(client.ask("qSupported:multiprocess+;guest-debug.ahead+").ends_with(";guest-debug.ahead+"));
    client.without_acknowledgements()
}

#[test]
fn what_is_wished_for_is_answered_in_front_of_a_stop() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let mut client = ahead(&server);
    // PC twice, the memory around it and around SP, a register, the threads, and a register that no stop reply has.
    let wishes =
        format!("m@{PC},4;m@{PC}~0,40;m@{SP}~-1,20;mffff800008000004,4;p0;x0,8;qXfer:threads:read::0,10;m@7,4");
    assert_eq!(client.ask(&format!("QGuestDebug.Ahead:{wishes}")), "OK");
    client.send("vCont;s:p1.1;c");
    let mut answers = Vec::new();
    let stop = loop {
        let answer = client.receive().unwrap();
        match client.notification() {
            Some(request) => answers.push((request, answer)),
            None => break answer,
        }
    };
    assert!(stop.starts_with("T05"), "{stop}");
    let asked: Vec<_> =
        answers.iter().map(|(request, _)| request.strip_prefix("guest-debug.ahead:").unwrap()).collect();
    assert_eq!(
        asked,
        [
            "mffff800008000004,4",
            "mffff800008000000,40",
            "mffff800008007fe0,20",
            "p0",
            "x0,8",
            "qXfer:threads:read::0,10"
        ]
    );
    for (request, answer) in &answers {
        let request = request.strip_prefix("guest-debug.ahead:").unwrap();
        assert_eq!(client.ask(request), *answer, "{request}");
    }

    // Until it is something else.
    client.ask("QGuestDebug.Ahead:");
    client.send("vCont;s:p1.1;c");
    assert!(client.receive().unwrap().starts_with("T05"));
    assert_eq!(client.notification(), None);
}

#[test]
fn nobody_is_answered_ahead_who_has_not_asked_for_it_or_acknowledges() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    let mut client = server.connect();
    assert!(!client.ask("qSupported:multiprocess+;swbreak+").contains("ahead"));
    assert_eq!(client.ask("QGuestDebug.Ahead:g"), "", "it is not known");
    assert!(client.ask("qSupported:multiprocess+;guest-debug.ahead+").contains("ahead"));
    assert_eq!(client.ask("QGuestDebug.Ahead:g"), "OK");
    client.send("vCont;s:p1.1;c");
    assert!(client.receive().unwrap().starts_with("T05"));
    assert_eq!(client.notification(), None, "this client acknowledges");
    for malformed in ["vCont;c", "m@20,0", "m@20,401", "m@20~9,40", "g;", &vec!["g"; 33].join(";")] {
        assert_eq!(client.ask(&format!("QGuestDebug.Ahead:{malformed}")), "E16", "{malformed}");
    }
}
