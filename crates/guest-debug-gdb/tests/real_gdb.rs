//! The real gdb against the mock.

mod common;

use common::mock::{MockVm, VIRTUAL};
use common::{Server, gdb_at, skipped};
use guest_debug::arm64::{Reg, SysReg};
use std::process::Command;

/// What gdb prints for these commands, or `None` if it is not installed.
fn gdb(server: &Server, commands: &[&str]) -> Option<String> {
    gdb_at(&server.path, commands)
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "gdb did not print \"{part}\"");
    }
}

#[test]
fn registers_and_threads() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let Some(text) = gdb(
        &server,
        &[
            "info registers",
            "info registers system",
            "p $v3.b.u",
            "p/x $fpsr",
            "p/x $fpcr",
            "p/x $tpidr",
            "p $cpsr",
            "set $x7 = 0x1122334455667788",
            "set $SCTLR_EL1 = 0x99",
            "set $v2.d.u[1] = 0xabcd",
            "set $sp = 0x4444",
            "info threads",
            "thread 2",
            "p/x $MPIDR_EL1",
            "detach",
        ],
    ) else {
        return;
    };
    assert_has(
        &text,
        &[
            "x0             0x100",
            "sp             0xffff800008008000",
            "pc             0xffff800008000000",
            "cpsr           0x3c5               [ SP EL=1 F I A D BTYPE=0 ]",
            "SCTLR_EL1      0x30d00800",
            "SP_EL0         0x1111",
            "S3_0_C15_C1_2  0x1234",
            "{3 <repeats 16 times>}",
            "= 0x8000000",
            "= 0x1000000",
            "= 0x7777",
            "vCPU 1: stopped, EL1h",
            "= 0x1\n",
        ],
    );
    assert!(!text.contains("warning: "), "gdb warns");
    assert_eq!(vm.register(0, Reg::X(7)), 0x1122_3344_5566_7788);
    assert_eq!(vm.register(0, Reg::Sys(SysReg::SCTLR_EL1)), 0x99);
    assert_eq!(vm.register(0, Reg::SpEl1), 0x4444);
    assert_eq!(vm.register(0, Reg::SpEl0), 0x1111);
    assert_eq!(vm.state().registers[0][&Reg::V(2)][8..], 0xabcdu64.to_le_bytes());
}

#[test]
fn stops_and_memory() {
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let (here, there) = (VIRTUAL + 0x40, VIRTUAL + 0x80);
    let Some(text) = gdb(
        &server,
        &[
            &format!("hbreak *{here:#x}"),
            "continue",
            "stepi",
            &format!("break *{there:#x}"),
            "continue",
            &format!("awatch *(char[3]*){:#x}", VIRTUAL + 0x101),
            "continue",
            "delete",
            &format!("x/2xw {:#x}", VIRTUAL + 0x40),
            &format!("set *(unsigned long*){:#x} = 0x1122", VIRTUAL + 0x200),
            &format!("x/2xw {:#x}", VIRTUAL + 0x7fffc),
            "x/xw 0x1000",
            "monitor phys on",
            "x/xw 0x40000040",
            "monitor translate 0xffff800008000123",
            "monitor breakpoints",
            "detach",
        ],
    ) else {
        return;
    };
    assert_has(
        &text,
        &[
            "Breakpoint 1, 0xffff800008000040",
            "Breakpoint 2, 0xffff800008000080",
            "Hardware access (read/write) watchpoint 3: *(char[3]*)0xffff800008000101",
            "Value = ",
            "0xffff800008000040:\t0x10101010\t0x11111111",
            "Cannot access memory at address 0x1000",
            "Cannot access memory at address 0xffff800008080000",
            "0x40000040:\t0x10101010",
            "is physical 0x40000123",
            "hardware breakpoint slots: 0 of 2 in use",
        ],
    );
    assert_eq!(vm.state().memory[0x200..0x208], 0x1122u64.to_le_bytes());
}

/// Packets that gdb sends for each of these commands.
fn packets_of(server: &Server, setup: &[&str], commands: &[&str]) -> Option<Vec<Vec<String>>> {
    // A packet as well, so that it is where it belongs among what gdb logs.
    let mark = "maintenance packet qMarked";
    let log = ["set debug remote 1"].into_iter().chain(commands.iter().flat_map(|command| [mark, command]));
    let all = setup.iter().copied().chain(log).chain([mark, "set debug remote 0", "detach"]);
    let text = gdb(server, &all.collect::<Vec<_>>())?;
    let sent = text.lines().filter_map(|line| line.split_once("Sending packet: $")?.1.split_once('#'));
    let sent: Vec<_> = sent.map(|(packet, _)| packet.to_owned()).collect();
    let mut parts: Vec<_> = sent.split(|packet| packet == "qMarked").skip(1).map(<[_]>::to_vec).collect();
    parts.pop();
    assert_eq!(parts.len(), commands.len());
    Some(parts)
}

/// How many of them read memory: gdb 16 and later do it by `x`.
fn reads_of(packets: &[String]) -> usize {
    packets.iter().filter(|packet| packet.starts_with(['m', 'x'])).count()
}

#[test]
fn what_a_stop_reply_says_is_not_asked_for() {
    let server = Server::start(MockVm::new(2));
    let Some(packets) = packets_of(&server, &["stepi"], &["stepi", "stepi"]) else { return };
    for packets in packets {
        assert!(packets.iter().any(|packet| packet.starts_with("vCont;s:p1.1;c")), "{packets:?}");
        // The stopped vCPU's place and frame are in the stop reply, and the threads in one answer.
        for unasked in ["g", "p", "qfThreadInfo", "qsThreadInfo", "qThreadExtraInfo", "Hg", "?"] {
            let asked = |packet: &&String| packet.split([',', ':', ';']).next() == Some(unasked);
            assert_eq!(packets.iter().find(asked), None, "{packets:?}");
        }
        let lists = packets.iter().filter(|packet| packet.starts_with("qXfer:threads:read")).count();
        assert_eq!(lists, 1, "{packets:?}");
        // gdb looks at the instruction before the step, for exclusives, and twice behind it whether there is memory.
        let reads = reads_of(&packets);
        assert_eq!((reads, packets.len()), (3, 5), "{packets:?}");
    }
}

/// What the gdb guide promises of breakpoints that stay inserted.
#[test]
fn a_step_with_breakpoints_that_stay_costs_no_packet_more() {
    let server = Server::start(MockVm::new(2));
    let breakpoint = format!("hbreak *{:#x}", VIRTUAL + 0x1000);
    let stays = "set breakpoint always-inserted on";
    let Some(packets) = packets_of(&server, &[&breakpoint, "stepi"], &["stepi", stays, "stepi", "stepi"]) else {
        return;
    };
    let breakpoints = |packets: &[String]| packets.iter().filter(|packet| packet.starts_with(['Z', 'z'])).count();
    // The first of them puts it in.
    assert_eq!((breakpoints(&packets[0]), breakpoints(&packets[3])), (2, 0), "{packets:?}");
}

/// What the gdb guide promises of `mem 0 0 rw cache`.
#[test]
fn a_gdb_that_keeps_memory_asks_once_a_stop() {
    let server = Server::start(MockVm::new(2));
    let Some(packets) = packets_of(&server, &["mem 0 0 rw cache", "stepi"], &["stepi", "stepi"]) else { return };
    for packets in packets {
        let reads = reads_of(&packets);
        assert_eq!((reads, packets.len()), (1, 3), "{packets:?}");
    }
}

#[test]
fn memory_is_asked_for_in_large_pieces_and_searched_without_coming_here() {
    let vm = MockVm::new(1);
    let server = Server::start(vm.clone());
    vm.state().memory[0x1_5000..0x1_5008].copy_from_slice(&0x0123_4567_89ab_cdefu64.to_le_bytes());
    let end = VIRTUAL + 0x8_0000;
    let dump = format!("dump binary memory /dev/null {VIRTUAL:#x} {end:#x}");
    let find = format!("find /g {VIRTUAL:#x}, {end:#x} - 1, 0x0123456789abcdef");
    let Some(packets) = packets_of(&server, &[], &[&dump, &find]) else { return };
    // 512 KiB: two answers of 256 KiB.
    assert_eq!(packets[0].len(), 2, "{:?}", packets[0]);
    // The second search begins behind the place that was found.
    assert_eq!(packets[1].len(), 2, "{:?}", packets[1]);
    assert!(packets[1].iter().all(|packet| packet.starts_with("qSearch:memory:")), "{:?}", packets[1]);
}

#[test]
fn refusals_say_why() {
    let server = Server::start(MockVm::new(1));
    let find = format!("find /w {VIRTUAL:#x}, +0x20000000, 0x12345678");
    let breaks = ["hbreak *0x1000", "hbreak *0x2000", "hbreak *0x3000"];
    let Some(text) = gdb(&server, &[&find, breaks[0], breaks[1], breaks[2], "continue", "detach"]) else {
        return;
    };
    assert_has(&text, &["no slot left: all 2 are in use", "the search failed: not supported"]);
}

/// A vCPU with vectors of `16 * n` bytes, and with pointer authentication.
fn with_sve(n: u8) -> MockVm {
    let mut lengths = vec![0; 64];
    lengths[usize::from(n - 1) / 8] |= 1 << ((n - 1) % 8);
    lengths[0] |= 1;
    let mut more = vec![
        (Reg::SveVls, lengths),
        (Reg::Ffr, vec![0xff; 32]),
        (Reg::Sys(SysReg::ID_AA64ISAR1_EL1), 0x10u64.to_le_bytes().to_vec()),
    ];
    more.extend((0..32).map(|z| (Reg::Z(z), (0..=255).map(|byte| z ^ byte).collect())));
    more.extend((0..16).map(|p| (Reg::P(p), vec![p; 32])));
    MockVm::with_registers(1, &more)
}

#[test]
fn vectors_of_every_length_and_pointer_authentication() {
    for n in [1, 2, 4, 16] {
        let vm = with_sve(n);
        let server = Server::start(vm.clone());
        let Some(text) = gdb(
            &server,
            &[
                "p sizeof($z0)",
                "p $vg",
                "p/x $v1.b.u",
                "p/x $p3",
                "p/x $fpsr",
                "p/x $pauth_dmask",
                "p/x $pauth_cmask_high",
                "p $z2.d.u[0]=0x55",
                "p $p2[0]=0x77",
                "detach",
            ],
        ) else {
            return;
        };
        let length = 16 * u32::from(n);
        assert_has(&text, &[&format!("$1 = {length}\n"), &format!("$2 = {}\n", length / 8), "$5 = 0x8000000\n"]);
        assert_has(&text, &["$3 = {0x1, 0x0, 0x3, 0x2, 0x5,", "{0x3"]);
        // TCR_EL1 of the mock: 48-bit addresses, the top byte of the lower half ignored.
        assert_has(&text, &["$6 = 0x7f000000000000\n", "$7 = 0xff7f000000000000\n"]);
        let state = vm.state();
        let z2 = &state.registers[0][&Reg::Z(2)];
        assert_eq!(z2[..8], 0x55u64.to_le_bytes());
        assert_eq!(z2[8..], (8..=255).map(|byte: u8| 2 ^ byte).collect::<Vec<_>>(), "the rest is as it was");
        assert_eq!(state.registers[0][&Reg::P(2)][..2], [0x77, 2]);
    }
}

#[test]
fn lldb_attaches_shows_registers_and_stops() {
    if Command::new("lldb").arg("--version").output().is_err() {
        skipped("lldb is not installed");
        return;
    }
    let vm = MockVm::new(2);
    let server = Server::start(vm.clone());
    let connect = format!("process connect --plugin gdb-remote unix-connect://{}", server.path.display());
    let commands = [
        connect.as_str(),
        "register read",
        "thread list",
        "breakpoint set -H -a 0xffff800008000040",
        "continue",
        "thread step-inst",
        "memory read -c 8 0xffff800008000044",
        "register write x5 0x1234",
        "process detach",
    ];
    let mut lldb = Command::new("timeout");
    lldb.args(["60", "lldb", "--no-lldbinit", "--batch"]);
    for command in commands {
        lldb.args(["-o", command]);
    }
    let output = lldb.output().expect("lldb did not start");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert_has(
        &text,
        &[
            "x0 = 0x0000000000000100",
            "pc = 0xffff800008000000",
            "thread #2",
            "stop reason = breakpoint 1.1",
            "stop reason = instruction step into",
            "0xffff800008000044: 11 11 11 11",
            "detached",
        ],
    );
    assert_eq!(vm.register(0, Reg::X(5)), 0x1234);
    assert_eq!(vm.state().breakpoints, []);
}
