//! A small snapshot: vCPU 0 with its MMU off, vCPU 1 with a translation table in guest memory.

use guest_debug::arm64::{Reg, SysReg};
use guest_debug::kvm::regid;
use guest_debug::state::{
    Architecture, BreakpointState, GuestDebugState, RuleState, STATE_VERSION, SoftwareState, StopReasonState,
    StopState, ToldState, VcpuDebugState, VcpuMode, WatchHit, WatchState,
};
use guest_debug::{Arm64, WatchKind};
use reference_vmm::guest::Guest as _;
use reference_vmm::memory;
use reference_vmm::snapshot::Writer;
use reference_vmm::state::arm64::{Devices, Features, RegisterState, VcpuState};
use reference_vmm::state::{BootState, MachineState, VM_STATE_VERSION, VmState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

/// Where vCPU 0 is.
pub const PHYSICAL: u64 = 0x8000_1000;
/// Where vCPU 1 is.
pub const VIRTUAL: u64 = 0xffff_ff80_0000_0010;
/// The pages from the one with [`VIRTUAL`] on.
const PAGES: [u64; 2] = [0x8000_3000, 0x8000_5000];
const NOP: u32 = 0xd503_201f;
const TEXT: &str = "a saved string";
/// Where [`TEXT`] is, across the two pages.
pub const TEXT_AT: u64 = 0xffff_ff80_0000_0ff8;

/// A snapshot in a directory of its own, which goes with it.
pub struct Sample {
    _directory: TempDir,
    pub path: PathBuf,
}

impl Sample {
    pub fn write(state: &VmState) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("snapshot");
        write(&path, state);
        Self { _directory: directory, path }
    }
}

fn write(path: &Path, state: &VmState) {
    let ram = memory::allocate(&Arm64::ram(8)).unwrap();
    let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).unwrap();
    put(PHYSICAL, &NOP.to_le_bytes());
    // Levels 1 to 3 of a 39-bit range with 4 KiB pages; the pages are not adjacent.
    put(0x8010_0000, &(0x8010_1000_u64 | 3).to_le_bytes());
    put(0x8010_1000, &(0x8010_2000_u64 | 3).to_le_bytes());
    for (index, page) in (0..).zip(PAGES) {
        put(0x8010_2000 + 8 * index, &(page | 0x703).to_le_bytes());
        put(page, &NOP.to_le_bytes().repeat(16));
    }
    let (first, second) = TEXT.as_bytes().split_at(8);
    put(PAGES[0] + 0xff8, first);
    put(PAGES[1], second);
    put(PAGES[1] + second.len() as u64, &[0]);
    let writer = Writer::create(path).unwrap();
    writer.write_state(state).unwrap();
    writer.write_memory(&ram).unwrap();
    writer.commit().unwrap();
}

pub fn state(guest_debug: Option<GuestDebugState>) -> VmState {
    VmState {
        version: VM_STATE_VERSION,
        architecture: Architecture::Aarch64,
        machine: MachineState {
            cpus: 2,
            memory_mib: 8,
            features: Features { vcpu_features: vec![0; 7], sve_vls: None },
        },
        boot: BootState { kernel: "Image".into(), initrd: None, cmdline: String::new() },
        vcpus: vec![
            vcpu(&[(Reg::Pc, PHYSICAL), (Reg::SpEl0, 0x8001_0000), (Reg::SpEl1, 7), (Reg::Pstate, 0x3c4)]),
            vcpu(&[
                (Reg::Pc, VIRTUAL),
                (Reg::SpEl0, 7),
                (Reg::SpEl1, VIRTUAL + 0x800),
                (Reg::Pstate, 0x6000_00c5),
                (Reg::Sys(SysReg::SCTLR_EL1), 1),
                // T0SZ and T1SZ for 39 bits, nothing below (EPD0), 4 KiB above (TG1), 40-bit addresses (IPS).
                (Reg::Sys(SysReg::TCR_EL1), 2 << 32 | 2 << 30 | 25 << 16 | 1 << 7 | 25),
                (Reg::Sys(SysReg::TTBR1_EL1), 0x8010_0000),
            ]),
        ],
        devices: Devices::default(),
        serial: vm_superio::SerialState::default().into(),
        guest_debug: guest_debug.map(Arc::new),
    }
}

/// A vCPU with every register that it needs, and these values.
fn vcpu(values: &[(Reg, u64)]) -> VcpuState {
    let sys = |n1, m, n2| Reg::Sys(SysReg::new(3, 0, n1, m, n2));
    let mut registers: Vec<(Reg, u64)> = (0..31).map(|n| (Reg::X(n), 0x100 + u64::from(n))).collect();
    registers.extend([Reg::SpEl0, Reg::Pc, Reg::Pstate, Reg::SpEl1, Reg::ElrEl1, Reg::SpsrEl1].map(|reg| (reg, 0)));
    let control = [SysReg::SCTLR_EL1, SysReg::TCR_EL1, SysReg::TTBR0_EL1, SysReg::TTBR1_EL1];
    registers.extend(control.map(|reg| (Reg::Sys(reg), 0)));
    // 40-bit addresses; 6 breakpoints and 4 watchpoints (ID_AA64DFR0_EL1).
    registers.extend([(Reg::Sys(SysReg::ID_AA64MMFR0_EL1), 2), (sys(0, 5, 0), 3 << 20 | 5 << 12 | 6)]);
    for (reg, value) in values {
        registers.iter_mut().find(|(known, _)| known == reg).unwrap().1 = *value;
    }
    let saved =
        |(reg, value): (Reg, u64)| RegisterState { id: regid::encode(reg), value: value.to_le_bytes().to_vec() };
    let registers = registers.into_iter().map(saved).collect();
    VcpuState { mp_state: 0, serror_pending: false, serror_esr: None, registers }
}

/// Saved at a hardware breakpoint of vCPU 1, with a watch of vCPU 0 pending.
pub fn session() -> GuestDebugState {
    let stopped = VcpuDebugState { mode: VcpuMode::Stopped, told: None };
    let told = Some(ToldState { pc: VIRTUAL, watches: vec![] });
    let watch = |address, length, kind| WatchState { address, length, kind };
    let hit = WatchHit { kind: WatchKind::Write, address: 0x8000_2004 };
    GuestDebugState {
        version: STATE_VERSION,
        architecture: Architecture::Aarch64,
        attached: true,
        held: false,
        selected_vcpu: Some(1),
        hardware: vec![VIRTUAL],
        watches: vec![watch(0x8000_2001, 10, WatchKind::Write), watch(VIRTUAL + 0xf0, 64, WatchKind::Access)],
        software: vec![SoftwareState {
            physical: PAGES[0] + 0x20,
            original: NOP.to_le_bytes(),
            names: vec![PAGES[0] + 0x20, VIRTUAL + 0x10],
        }],
        vcpus: vec![stopped.clone(), VcpuDebugState { told, ..stopped }],
        reported: Some(StopState { vcpu: 1, pc: VIRTUAL, reason: StopReasonState::HardwareBreakpoint(VIRTUAL) }),
        pending: vec![StopState { vcpu: 0, pc: PHYSICAL, reason: StopReasonState::Watchpoint(hit) }],
        put_aside: vec![],
        rules: vec![RuleState {
            breakpoint: BreakpointState::Hardware(VIRTUAL),
            // X0 is 5.
            conditions: vec![vec![0x26, 0, 0, 0x22, 5, 0x13, 0x27]],
            commands: vec![],
            ignore: 3,
            reached: 20,
            hits: 4,
        }],
    }
}
