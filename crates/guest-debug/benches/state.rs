//! What it costs to save and to restore a session: from `DebugSession::state` to bytes, and from bytes to a session that
//! is armed. Sizes are printed first.
//!
//! ```text
//! cargo bench -p guest-debug --features versionize --bench state
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use guest_debug::arm64::Reg;
use guest_debug::state::{
    Architecture, GuestDebugState, STATE_VERSION, SoftwareState, StopReasonState, StopState, ToldState, VcpuDebugState,
    VcpuMode, WatchState, versioned,
};
use guest_debug::{DebugCaps, DebugSession, DebugVcpu, Restore, VcpuError, VcpuId, VmHost, WatchKind};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const VCPUS: [u32; 4] = [1, 8, 64, 512];
const BREAKPOINTS: [u64; 5] = [0, 100, 1000, 4096, 10_000];
const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };

/// Where the guest's code is, and how far a function is from the next: what a kernel's text has on average.
const RAM: u64 = 0x8000_0000;
const TEXT: u64 = 0xffff_8000_8000_0000;
const FUNCTION: u64 = 256;
const NOP: [u8; 4] = 0xd503_201f_u32.to_le_bytes();

/// A stopped vCPU. What KVM takes for a register is not the session's.
struct Stopped;

impl DebugVcpu for Stopped {
    fn get_reg(&self, _: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        value.copy_from_slice(&TEXT.to_le_bytes()[..value.len()]);
        Ok(())
    }
}

struct Host(Arc<Stopped>);

impl VmHost for Host {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(self.0.clone())
    }

    fn kick(&self, _: VcpuId) {}
}

type Ram = Arc<GuestMemoryMmap<AtomicBitmap>>;

fn ram() -> Ram {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 4 << 20)]).unwrap())
}

/// Stopped at a hardware breakpoint, with every slot in use and every vCPU told.
fn sample(vcpus: u32, breakpoints: u64) -> GuestDebugState {
    let told = || Some(ToldState { pc: TEXT, watches: Vec::new() });
    GuestDebugState {
        version: STATE_VERSION,
        architecture: Architecture::Aarch64,
        attached: true,
        held: false,
        selected_vcpu: Some(0),
        hardware: (0..6).map(|index| TEXT + index * 4).collect(),
        watches: (0..4)
            .map(|index| WatchState { address: TEXT + index * 8, length: 8, kind: WatchKind::Write })
            .collect(),
        software: (0..breakpoints)
            .map(|index| SoftwareState {
                physical: RAM + index * FUNCTION,
                original: NOP,
                names: vec![TEXT + index * FUNCTION],
            })
            .collect(),
        vcpus: (0..vcpus).map(|_| VcpuDebugState { mode: VcpuMode::Stopped, told: told() }).collect(),
        reported: Some(StopState { vcpu: 0, pc: TEXT, reason: StopReasonState::HardwareBreakpoint(TEXT) }),
        pending: Vec::new(),
        put_aside: Vec::new(),
        rules: Vec::new(),
    }
}

fn armed(state: impl Into<Arc<GuestDebugState>>, ram: &Ram) -> Arc<DebugSession> {
    let state = state.into();
    let vcpus = state.vcpus.len() as u32;
    let session = DebugSession::from_state(state, vcpus, CAPS, Arc::new(ram.clone()), Restore::Arm).unwrap();
    session.set_host(Box::new(Host(Arc::new(Stopped)))).unwrap();
    session.arm().unwrap();
    session
}

/// Memory as a snapshot has it.
fn load(ram: &Ram, state: &GuestDebugState) {
    for breakpoint in &state.software {
        ram.write_slice(&breakpoint.original, GuestAddress(breakpoint.physical)).unwrap();
    }
}

fn json(state: &GuestDebugState) -> Vec<u8> {
    serde_json::to_vec(state).unwrap()
}

fn versionize(state: &GuestDebugState) -> Vec<u8> {
    versioned::write(state).unwrap()
}

fn sizes() {
    println!("{:>6} {:>11} {:>12} {:>16}", "vcpus", "breakpoints", "JSON, bytes", "versionize, bytes");
    for vcpus in VCPUS {
        for breakpoints in BREAKPOINTS {
            let state = sample(vcpus, breakpoints);
            println!("{vcpus:>6} {breakpoints:>11} {:>12} {:>16}", json(&state).len(), versionize(&state).len());
        }
    }
}

fn benches(criterion: &mut Criterion) {
    sizes();
    for vcpus in VCPUS {
        for breakpoints in BREAKPOINTS {
            save_and_restore(criterion, vcpus, breakpoints);
        }
    }
}

fn save_and_restore(criterion: &mut Criterion, vcpus: u32, breakpoints: u64) {
    let state = sample(vcpus, breakpoints);
    let ram = ram();
    load(&ram, &state);
    let session = armed(&state, &ram);
    session.freeze().unwrap();
    assert_eq!(session.state().unwrap(), state, "nothing is lost");
    let size = format!("{vcpus}x{breakpoints}");

    let mut group = criterion.benchmark_group("save");
    group.bench_function(BenchmarkId::new("state", &size), |bencher| {
        bencher.iter_with_large_drop(|| session.state().unwrap());
    });
    let saved = session.save().unwrap();
    group.bench_function(BenchmarkId::new("unchanged", &size), |bencher| {
        bencher.iter(|| assert!(session.update_since(&saved).unwrap().is_none()));
    });
    group.bench_function(BenchmarkId::new("json", &size), |bencher| {
        bencher.iter_with_large_drop(|| json(&session.state().unwrap()));
    });
    group.bench_function(BenchmarkId::new("versionize", &size), |bencher| {
        bencher.iter_with_large_drop(|| versionize(&session.state().unwrap()));
    });
    group.finish();

    // What is in memory when a session is armed for the first time decides what planting costs, so each has it anew.
    let fresh = || load(&ram, &state);
    let mut group = criterion.benchmark_group("restore");
    group.bench_function(BenchmarkId::new("arm", &size), |bencher| {
        let parsed = || {
            fresh();
            Arc::new(state.clone())
        };
        bencher.iter_batched(parsed, |state| armed(state, &ram), criterion::BatchSize::PerIteration);
    });
    let bytes = json(&state);
    group.bench_function(BenchmarkId::new("json", &size), |bencher| {
        let parsed = |bytes| serde_json::from_str::<GuestDebugState>(str::from_utf8(bytes).unwrap()).unwrap();
        let restore = |()| armed(parsed(black_box(&bytes)), &ram);
        bencher.iter_batched(fresh, restore, criterion::BatchSize::PerIteration);
    });
    let bytes = versionize(&state);
    group.bench_function(BenchmarkId::new("versionize", &size), |bencher| {
        let restore = |()| armed(versioned::read(black_box(&bytes)).unwrap(), &ram);
        bencher.iter_batched(fresh, restore, criterion::BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group! {
    name = state;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = benches
}
criterion_main!(state);
