//! A snapshot of an x86_64 guest: vCPU 0 in 64-bit mode with page tables in guest memory, vCPU 1 waiting for its INIT.

use crate::client::Served;
use guest_debug::state::{
    Architecture, GuestDebugState, STATE_VERSION, SoftwareState, StopReasonState, StopState, ToldState, VcpuDebugState,
    VcpuMode, WatchState,
};
use guest_debug::{WatchKind, X86_64};
use reference_vmm::guest::Guest as _;
use reference_vmm::snapshot::Writer;
use reference_vmm::state::x86_64::{
    CpuidLeaf, DebugRegisters, Devices, EventState, Features, GeneralRegisters, LAPIC_SIZE, MsrState, SegmentState,
    SystemRegisters, VcpuState, XSAVE_SIZE, XcrState,
};
use reference_vmm::state::{BootState, MachineState, VM_STATE_VERSION, VmState};
use reference_vmm::{inspect, memory};
use std::fs;
use std::path::PathBuf;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

/// Where vCPU 0 is.
const VIRTUAL: u64 = 0xffff_ffff_8000_1010;
/// Where that is.
const PHYSICAL: u64 = 0x6010;
const TEXT: &str = "a saved string";
/// Across two pages that are not adjacent.
const TEXT_AT: u64 = 0xffff_ffff_8000_1ff8;

fn write(state: &VmState<X86_64>) -> (TempDir, PathBuf) {
    let ram = memory::allocate(&X86_64::ram(8)).unwrap();
    let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).unwrap();
    // PML4, page directory pointers, page directory, page table.
    for (at, entry) in [(0x1ff8, 0x2003_u64), (0x2ff0, 0x3003), (0x3000, 0x4003), (0x4008, 0x6003), (0x4010, 0x8003)] {
        put(at, &entry.to_le_bytes());
    }
    put(PHYSICAL, &[0x90; 16]);
    let (first, second) = TEXT.as_bytes().split_at(8);
    put(0x6ff8, first);
    put(0x8000, second);
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("snapshot");
    let writer = Writer::create(&path).unwrap();
    writer.write_state(state).unwrap();
    writer.write_memory(&ram).unwrap();
    writer.commit().unwrap();
    (directory, path)
}

fn state() -> VmState<X86_64> {
    let code = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xa09b };
    let mut xsave = vec![0; XSAVE_SIZE];
    // XMM1, and the component that it is of.
    xsave[176..192].fill(0x5a);
    xsave[512] = 2;
    let running = VcpuState {
        mp_state: 0,
        regs: GeneralRegisters { rax: 0x1234, rip: VIRTUAL, rsp: VIRTUAL + 0x800, rflags: 0x202, ..<_>::default() },
        sregs: SystemRegisters {
            cs: code,
            cr0: 0x8000_0011,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0x500,
            ..SystemRegisters::default()
        },
        debug_regs: DebugRegisters::default(),
        xcrs: vec![XcrState { xcr: 0, value: 7 }],
        xsave,
        lapic: vec![0; LAPIC_SIZE],
        msrs: vec![MsrState { index: 0xc000_0102, value: 0x77 }],
        events: EventState::default(),
    };
    let waiting = VcpuState {
        mp_state: 1,
        regs: GeneralRegisters { rip: 0xfff0, rflags: 2, ..GeneralRegisters::default() },
        sregs: SystemRegisters { cr0: 0x6000_0010, ..SystemRegisters::default() },
        ..running.clone()
    };
    let avx = CpuidLeaf { function: 1, ecx: 1 << 28, ..CpuidLeaf::default() };
    VmState {
        version: VM_STATE_VERSION,
        architecture: Architecture::X86_64,
        machine: MachineState { cpus: 2, memory_mib: 8, features: Features { cpuid: vec![avx], tsc_khz: None } },
        boot: BootState { kernel: "bzImage".into(), initrd: None, cmdline: String::new() },
        vcpus: vec![running, waiting],
        devices: Devices::default(),
        serial: vm_superio::SerialState::default().into(),
        guest_debug: Some(session().into()),
    }
}

/// Saved at a software breakpoint of vCPU 0.
fn session() -> GuestDebugState {
    let stopped = VcpuDebugState { mode: VcpuMode::Stopped, told: None };
    let told = Some(ToldState { pc: VIRTUAL, watches: vec![] });
    GuestDebugState {
        version: STATE_VERSION,
        architecture: Architecture::X86_64,
        attached: true,
        held: false,
        selected_vcpu: Some(0),
        hardware: vec![VIRTUAL + 1],
        watches: vec![WatchState { address: TEXT_AT, length: 10, kind: WatchKind::Write }],
        software: vec![SoftwareState { physical: PHYSICAL, original: [0x90, 0, 0, 0], names: vec![VIRTUAL] }],
        vcpus: vec![VcpuDebugState { told, ..stopped.clone() }, stopped],
        reported: Some(StopState { vcpu: 0, pc: VIRTUAL, reason: StopReasonState::SoftwareBreakpoint(VIRTUAL) }),
        pending: vec![],
        put_aside: vec![],
        rules: vec![],
    }
}

#[test]
fn a_pcs_tables() {
    let (_directory, path) = write(&state());
    let report = inspect::open(&path).unwrap().report();
    golden!("inspect-x86_64.txt", report.to_string());
    golden!("inspect-x86_64.json", report.to_json().unwrap());
}

#[test]
fn a_pc_is_served_to_gdb() {
    let (_directory, path) = write(&state());
    let served = Served::start(&path);
    let mut client = served.connect();
    let stop = client.ask("?");
    assert!(stop.starts_with("T05") && stop.contains("thread:p1.1;") && stop.contains("swbreak:"), "{stop}");
    // Through the page tables, across two pages.
    assert_eq!(client.ask(&format!("m{TEXT_AT:x},e")), hex::encode(TEXT));
    assert_eq!(client.ask(&format!("m{VIRTUAL:x},2")), "9090", "the guest's own instruction");
    assert_eq!(client.ask("m1000,4"), "E0e");
    let translated = format!("vCPU 0: virtual {VIRTUAL:#x} is physical {PHYSICAL:#x}\n");
    assert_eq!(client.monitor(&format!("translate {VIRTUAL:#x}")), translated);
    // RIP and XMM1 by gdb's numbers.
    assert_eq!(client.ask("p10"), hex::encode(VIRTUAL.to_le_bytes()));
    assert_eq!(client.ask("p29"), "5a".repeat(16));
    assert!(client.ask("P0=0000000000000000").contains("its registers can't be written"));
    // Its paging is off.
    assert_eq!(client.ask("Hgp1.2"), "OK");
    assert_eq!(client.ask(&format!("m{PHYSICAL:x},2")), "9090");
}

#[test]
fn the_real_gdb_at_a_pc() {
    let (_directory, path) = write(&state());
    let served = Served::start(&path);
    let text_at = format!("x/s {TEXT_AT:#x}");
    let commands = ["info threads", "x/2i $pc", &text_at, "p/x $rax", "p/x $cr3", "p/x $k_gs_base", "stepi", "detach"];
    let Some(text) = crate::gdb(&served, &commands) else { return };
    for part in [
        "* 1    Thread 1.1 (vCPU 0: stopped, long mode, CPL 0 IF (0x202))",
        "=> 0xffffffff80001010:\tnop",
        "\"a saved string\"",
        "$1 = 0x1234",
        "$2 = 0x1000",
        "$3 = 0x77",
        "this is a snapshot: it does not run",
    ] {
        assert!(text.contains(part), "gdb did not print \"{part}\"");
    }
}

#[test]
fn a_session_of_the_other_architecture_is_refused() {
    let mut state = state();
    state.guest_debug = Some(crate::session().into());
    let (_directory, path) = write(&state);
    let error = inspect::open(&path).unwrap_err().to_string();
    assert!(error.contains("guest-debug") && error.contains("aarch64"), "{error}");
    // What names neither is named.
    let file = path.join(reference_vmm::snapshot::STATE_FILE);
    let text = fs::read_to_string(&file).unwrap().replacen("\"x86_64\"", "\"sparc\"", 1);
    fs::write(&file, text).unwrap();
    let error = inspect::open(&path).unwrap_err().to_string();
    assert!(error.contains("sparc") && error.contains("x86_64"), "{error}");
}
