//! `reference-vmm inspect`: snapshots as tables, as JSON, and served to gdb; on any host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

/// Compares with a file in tests/data, which is part of this program: it may run on another machine. With UPDATE_GOLDEN set,
/// writes it.
macro_rules! golden {
    ($name:literal, $found:expr) => {{
        let found: String = $found;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name), found).unwrap();
        } else {
            assert_eq!(found, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name)), $name);
        }
    }};
}

mod client;
mod cloud_hypervisor;
mod parts;
mod pc;
mod sample;

use client::{Served, console};
use guest_debug::state::{GuestDebugState, StepRange, StopReasonState, VcpuDebugState, VcpuMode};
use proptest::prelude::*;
use reference_vmm::inspect::{self, FrozenVm, Opened, Report};
use reference_vmm::snapshot::{MEMORY_FILE, STATE_FILE};
use sample::{PHYSICAL, Sample, TEXT_AT, VIRTUAL, session, state};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// What gdb prints for these commands, or `None` if it is not installed.
fn gdb(served: &Served, commands: &[&str]) -> Option<String> {
    if Command::new("gdb-multiarch").arg("--version").output().is_err() {
        let test = std::thread::current();
        let _ = writeln!(std::io::stderr(), "SKIPPED: {}: no gdb-multiarch", test.name().unwrap_or("a test"));
        return None;
    }
    let mut gdb = Command::new("timeout");
    gdb.args(["60", "gdb-multiarch", "-nx", "-batch", "-ex", "set pagination off"]);
    gdb.arg("-ex").arg(format!("target remote {}", served.socket.display()));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    Some(text)
}

fn report(session: Option<GuestDebugState>) -> Report {
    inspect::open(&Sample::write(&state(session)).path).unwrap().report()
}

/// The client has resumed: one vCPU runs, the other one steps through a line.
fn stepping() -> GuestDebugState {
    let range = VcpuMode::SteppingRange(StepRange { start: VIRTUAL, end: VIRTUAL + 0x20 });
    let mode = |mode| VcpuDebugState { mode, told: None };
    GuestDebugState {
        reported: None,
        pending: vec![],
        selected_vcpu: None,
        vcpus: vec![mode(VcpuMode::Running), mode(range)],
        ..session()
    }
}

#[test]
fn tables() {
    golden!("inspect-stopped.txt", report(Some(session())).to_string());
    golden!("inspect-stepping.txt", report(Some(stepping())).to_string());
    golden!("inspect-no-session.txt", report(None).to_string());
}

#[test]
fn json() {
    golden!("inspect-stopped.json", report(Some(session())).to_json().unwrap());
    golden!("inspect-no-session.json", report(None).to_json().unwrap());
}

#[test]
fn the_command_prints_and_refuses() {
    if !Path::new(env!("CARGO_BIN_EXE_reference-vmm")).exists() {
        // Past libtest, which would keep it to itself.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: the_command_prints_and_refuses: the program is not on this machine");
        return;
    }
    let sample = Sample::write(&state(Some(session())));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reference-vmm"));
        let output = command.arg("inspect").arg(&sample.path).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let report = report(Some(session()));
    assert_eq!(run(&[]), (Some(0), report.to_string(), String::new()));
    assert_eq!(run(&["--json"]), (Some(0), report.to_json().unwrap(), String::new()));
    fs::remove_file(sample.path.join(MEMORY_FILE)).unwrap();
    let (code, out, error) = run(&[]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains(MEMORY_FILE), "{error}");
}

#[test]
fn a_bad_session_is_named() {
    type Change = fn(&mut GuestDebugState);
    let cases: [(&str, Change); 5] = [
        ("version: the state has version 9", |s| s.version = 9),
        ("guest-debug: hardware[0]", |s| s.hardware[0] += 1),
        ("guest-debug: reported.vcpu", |s| s.reported.as_mut().unwrap().vcpu = 2),
        ("guest-debug: watches[1].length", |s| s.watches[1].length = 0),
        ("guest-debug: vcpus: the state has 1 vCPUs, the VM has 2", |s| {
            s.vcpus.pop();
            (s.reported, s.selected_vcpu) = (None, None);
        }),
    ];
    for (expected, change) in cases {
        let mut bad = session();
        change(&mut bad);
        let error = inspect::open(&Sample::write(&state(Some(bad))).path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(STATE_FILE), "{error}, not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_changed_byte_makes_it_panic(place: prop::sample::Index, byte: u8) {
        let mut text = serde_json::to_vec(&state(Some(session()))).unwrap();
        let place = place.index(text.len());
        text[place] = byte;
        let Ok(changed) = serde_json::from_slice(&text) else { return Ok(()) };
        if let Ok(frozen) = inspect::open(&Sample::write(&changed).path) {
            let report = frozen.report();
            report.to_json().unwrap();
            prop_assert!(report.to_string().starts_with("machine"));
            match frozen {
                Opened::Arm64(frozen) => drop(FrozenVm::new(&frozen).unwrap()),
                Opened::X86_64(frozen) => drop(FrozenVm::new(&frozen).unwrap()),
            }
        }
    }
}

#[test]
fn every_client_is_told_the_stop_and_reads() {
    let sample = Sample::write(&state(Some(session())));
    let served = Served::start(&sample.path);
    for _ in 0..2 {
        let mut client = served.connect();
        assert_eq!(client.ask("?"), "T05thread:p1.2;hwbreak:;");
        assert_eq!(client.ask("qfThreadInfo"), "mp01.01,p01.02");
        assert_eq!(client.ask("Hgp1.2"), "OK");
        assert_eq!(client.ask("p20"), hex::encode(VIRTUAL.to_le_bytes()));
        let text = hex::encode("a saved string");
        assert_eq!(client.ask(&format!("m{TEXT_AT:x},e")), text, "across two pages");
        assert_eq!(client.ask("m1000,4"), "E0e");
        let translated = format!("vCPU 1: virtual {VIRTUAL:#x} is physical 0x80003010\n");
        assert_eq!(client.monitor(&format!("translate {VIRTUAL:#x}")), translated);
        let breakpoints = client.monitor("breakpoints");
        for line in [
            "hardware breakpoint at 0xffffff8000000010",
            "write watchpoint at 0x80002001, 10 bytes, 2 slots",
            "software breakpoint at 0xffffff8000000020, physical 0x80003020",
            "hardware breakpoint slots: 1 of 6 in use",
            "watchpoint slots: 3 of 4 in use",
        ] {
            assert!(breakpoints.contains(line), "{breakpoints}");
        }
        assert_eq!(client.monitor("inspect"), report(Some(session())).to_string());
        assert!(client.monitor("help").contains("inspect"));
        assert_eq!(client.ask("Hgp1.1"), "OK");
        assert_eq!(client.ask(&format!("m{PHYSICAL:x},4")), "1f2003d5", "with the MMU off");
        assert_eq!(client.ask("D;1"), "OK");
        assert_eq!(client.receive(), None);
    }
}

#[test]
fn a_stop_whose_vcpu_has_moved_on_is_not_told() {
    // As after a while under a dormant session: the state is the old one, the guest is elsewhere.
    let mut moved = session();
    let stop = moved.reported.as_mut().unwrap();
    stop.pc += 4;
    stop.reason = StopReasonState::HardwareBreakpoint(stop.pc);
    moved.vcpus[1].told.as_mut().unwrap().pc = stop.pc;
    let report = report(Some(moved.clone()));
    assert!(report.to_string().contains("hardware breakpoint (void: it has moved on)\n"), "{report}");
    let sample = Sample::write(&state(Some(moved)));
    let served = Served::start(&sample.path);
    // The next one, which holds.
    assert_eq!(served.connect().ask("?"), "T05thread:p1.1;watch:80002004;");
}

#[test]
fn nothing_can_be_changed_and_nothing_runs() {
    let sample = Sample::write(&state(None));
    let memory = fs::read(sample.path.join(MEMORY_FILE)).unwrap();
    let served = Served::start(&sample.path);
    let mut client = served.connect();
    assert_eq!(client.ask("?"), "T05thread:p1.1;");
    let refused = "E.refused.this is a snapshot: ";
    for packet in ["Z0,80001000,4", "Z1,80001000,4", "Z2,80001000,4", "z1,80001000,4", "P0=0000000000000000"] {
        let answer = client.ask(packet);
        assert!(answer.starts_with(refused), "{packet}: {answer}");
    }
    assert_eq!(client.ask(&format!("M{PHYSICAL:x},4:00000000")), "E1e");
    for packet in ["vCont;c", "vCont;s:p1.2;c", "vCont;r80001000,80001010:p1.1", "c", "s"] {
        let answer = client.ask(packet);
        assert_eq!(console(&answer), "The guest was not resumed: this is a snapshot: it does not run\n", "{packet}");
        // Not SIGTRAP: gdb would take that for progress.
        let stop = client.receive().unwrap();
        assert!(stop.starts_with("T02thread:"), "{packet}: {stop}");
    }
    assert_eq!(client.ask("p20"), hex::encode(PHYSICAL.to_le_bytes()));
    drop(client);
    drop(served);
    assert!(memory == fs::read(sample.path.join(MEMORY_FILE)).unwrap(), "the file was written");
}

#[test]
fn memory_that_was_cut_off_is_unreadable() {
    let sample = Sample::write(&state(None));
    let served = Served::start(&sample.path);
    let mut client = served.connect();
    assert_eq!(client.ask(&format!("m{PHYSICAL:x},4")), "1f2003d5");
    let file = fs::OpenOptions::new().write(true).open(sample.path.join(MEMORY_FILE)).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(client.ask(&format!("m{PHYSICAL:x},4")), "E0e");
    assert_eq!(client.ask("Hgp1.2"), "OK");
    assert_eq!(client.ask(&format!("m{VIRTUAL:x},4")), "E0e", "its translation table is gone");
}

#[test]
fn the_real_gdb() {
    let sample = Sample::write(&state(Some(session())));
    let served = Served::start(&sample.path);
    let text_at = format!("x/s {TEXT_AT:#x}");
    let commands = [
        "info threads",
        "bt 1",
        "x/2i $pc",
        &text_at,
        "p/x $TTBR1_EL1",
        "monitor vcpus",
        "continue",
        "stepi",
        "hbreak *0x80001004",
        "continue",
        "delete",
        "set $x0 = 5",
        "p/x $x0",
        "thread 1",
        "p/x $pc",
        "detach",
    ];
    // Twice: what one client does is nothing to the next.
    for _ in 0..2 {
        let Some(text) = gdb(&served, &commands) else { return };
        for part in [
            "* 2    Thread 1.2 (vCPU 1: stopped, EL1h IF (0x600000c5)) 0xffffff8000000010",
            "#0  0xffffff8000000010 in ?? ()",
            "=> 0xffffff8000000010:\tnop",
            "0xffffff8000000ff8:\t\"a saved string\"",
            "$1 = 0x80100000",
            "vCPU 0: stopped, EL1t DAIF (0x3c4)\n",
            "this is a snapshot: it does not run\n",
            "Thread 2 received signal SIGINT",
            "this is a snapshot: it does not run, and takes no breakpoints",
            "this is a snapshot: its registers can't be written",
            "$2 = 0x100\n",
            "$3 = 0x80001000\n",
            "detached",
        ] {
            assert!(text.contains(part), "gdb did not print \"{part}\"");
        }
    }
}
