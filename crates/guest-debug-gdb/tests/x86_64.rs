//! The real gdb on a session of an x86_64 guest, its vCPUs interpreted.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
#[path = "../../guest-debug/tests/fake_x86/mod.rs"]
#[allow(dead_code, reason = "shared with the backend's tests")]
mod fake_x86;

use common::{TempDir, gdb_at};
use fake_x86::{CAPS, COUNT, DATA, LOAD, NOP, RAM, STORE, Vm, jump};
use guest_debug::x86_64::Reg;
use guest_debug_gdb::{GdbServer, ListenAddress, SessionVm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What gdb prints for these commands to a VM, or `None` if it is not installed.
fn gdb(vm: &Vm, commands: &[&str]) -> Option<String> {
    vm.session.detach().unwrap();
    let directory = TempDir::new();
    let path = directory.0.join("gdb");
    let server = GdbServer::bind(&ListenAddress::Unix(path.clone())).unwrap();
    let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
    let (handle, theirs) = (SessionVm::new(vm.session.clone()), shutdown.try_clone().unwrap());
    let server = std::thread::spawn(move || server.run(handle, theirs).unwrap());
    let text = gdb_at(&path, commands);
    shutdown.write(1).unwrap();
    server.join().unwrap();
    text
}

/// Each of them behind the one before.
fn assert_has(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part);
        assert!(at.is_some(), "gdb did not print \"{part}\" at its place");
        rest = &rest[at.unwrap() + part.len()..];
    }
}

fn vm() -> Vm {
    Vm::new(2, CAPS, &[NOP, COUNT, STORE, LOAD, &jump(-10)])
}

#[test]
fn registers_are_those_that_gdb_knows() {
    let vm = vm();
    let text = gdb(
        &vm,
        &[
            "interrupt",
            "p/x $cs",
            "p $eflags",
            "p/x $cr0",
            "p/x $efer",
            "p $st0",
            "p $xmm1.uint128",
            "p $ymm2.v8_int32",
            "p $mxcsr",
            "p/x $fs_base",
            "set $k_gs_base = 0xffff888000001234",
            "set $fs_base = 0x7f0000001000",
            "info threads",
            "detach",
        ],
    );
    let Some(text) = text else { return };
    assert_has(
        &text,
        &[
            "= 0x10",
            "= [ IF ]",
            "= 0x1",
            "= 0x501",
            "= 0",
            "= 0",
            "= {0, 0, 0, 0, 0, 0, 0, 0}",
            "= [ ]",
            "= 0x0",
            "Thread 1.1 (vCPU 0: stopped, long mode, CPL 0 IF (0x202))",
        ],
    );
    assert!(!text.contains("warning: "), "gdb warns");
    assert_eq!((vm.get(Reg::KGsBase), vm.get(Reg::FsBase)), (0xffff_8880_0000_1234, 0x7f00_0000_1000));
}

#[test]
fn stops_are_where_gdb_expects_them() {
    let vm = vm();
    let text = gdb(
        &vm,
        &[
            &format!("hbreak *{RAM:#x}"),
            "set scheduler-locking on",
            "continue",
            "stepi",
            "p/x $pc",
            &format!("break *{:#x}", RAM + 4),
            "continue",
            "p/x $pc",
            "x/i $pc",
            "delete",
            "stepi",
            &format!("awatch *(long *){DATA:#x}"),
            "continue",
            "p/x $pc",
            &format!("monitor translate {RAM:#x}"),
            "delete",
            "set breakpoint always-inserted on",
            &format!("rwatch *(long *){DATA:#x}"),
            "monitor breakpoints",
            "delete",
            "detach",
        ],
    );
    let Some(text) = text else { return };
    let (stepped, broken, watched) =
        (format!("= {:#x}", RAM + 1), format!("= {:#x}", RAM + 4), format!("= {:#x}", RAM + 10));
    assert_has(
        &text,
        &[
            "hit Breakpoint 1",
            &stepped,
            "hit Breakpoint 2",
            &broken,
            "mov    %rbx,(%rax)",
            "Hardware access (read/write) watchpoint 3",
            "Value = ",
            &watched,
            "is physical 0x100000",
            "read watchpoint at 0x10b000, 8 bytes, 1 slots, stops at writes too",
        ],
    );
    assert_eq!(vm.byte(RAM + 4), STORE[0], "nothing is left in the guest");
}

#[test]
fn a_condition_is_evaluated_beside_the_vcpu() {
    let vm = vm();
    let text = gdb(
        &vm,
        &[
            "set breakpoint condition-evaluation target",
            "set scheduler-locking on",
            "set $rbx = 0",
            &format!("break *{:#x} if $rbx == 1000", RAM + 4),
            "continue",
            "p $rbx",
            "monitor hits",
            "delete",
            "detach",
        ],
    );
    let Some(text) = text else { return };
    assert_has(&text, &["hit Breakpoint 1", "= 1000", "1 hits"]);
}

/// gdb takes a breakpoint's hit that is not at its pc for an old one, and would let the guest go on in silence.
#[test]
fn a_breakpoint_in_a_segment_with_a_base_stops() {
    let vm = vm();
    vm.vcpus[0].enter_real_mode(0xfff0);
    let text = gdb(
        &vm,
        &[
            "set scheduler-locking on",
            "set $rbx = 0",
            &format!("hbreak *{:#x}", RAM + 1),
            "continue",
            "p/x $pc",
            "x/3xb ($cs << 4) + $pc",
            "p $rbx",
            "continue",
            "p $rbx",
            "stepi",
            "p/x $pc",
            "detach",
        ],
    );
    let Some(text) = text else { return };
    assert_has(
        &text,
        &[
            "received signal SIGTRAP",
            "= 0x101",
            "0x100001:\t0x48\t0xff\t0xc3",
            "= 0",
            "received signal SIGTRAP",
            "= 1",
            "= 0x104",
        ],
    );
}
