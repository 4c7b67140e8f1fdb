//! What the pure parts cost: debug registers encoded, an exit classified, an address translated; and whether a breakpoint costs
//! more where there are many.
//!
//! ```text
//! cargo bench -p guest-debug --bench pure
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_debug::arm64::insn;
use guest_debug::arm64::syndrome::decode;
use guest_debug::arm64::translate::{Regime, translate};
use guest_debug::arm64::{BreakpointSlot, HwDebug, Reg, SysReg, watch};
use guest_debug::uapi::GuestDebug;
use guest_debug::{
    Breakpoint, DebugCaps, DebugConfig, DebugSession, DebugVcpu, Gva, VcpuError, VcpuId, VmHost, WatchKind,
};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 16, hw_wps: 16, control_flags: 0 };
const RAM: u64 = 0x4000_0000;
const TEXT: u64 = 0x1_0000_0000;
const DATA: u64 = RAM + 0x10_0000;
const MAPPED: u64 = 2 << 20;
/// Software breakpoints that are there already.
const BREAKPOINTS: [u64; 3] = [0, 100, 10_000];

/// 39-bit addresses.
fn regime() -> Regime {
    Regime { sctlr: 1, tcr: 25 | 2 << 32, ttbr0: RAM, ttbr1: 0, mmfr0: 2, mmfr2: 0 }
}

/// Pages at TEXT, and blocks of 2 MiB behind them.
fn memory() -> Arc<GuestMemoryMmap> {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 8 << 20)]).unwrap();
    let put = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
    put(RAM + (TEXT >> 30) * 8, RAM + 0x1000 | 3);
    put(RAM + 0x1000, RAM + 0x2000 | 3);
    put(RAM + 0x1008, RAM | 0x401);
    for page in 0..MAPPED >> 12 {
        put(RAM + 0x2000 + page * 8, DATA + (page << 12) | 0x403);
    }
    Arc::new(ram)
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for slots in [0u64, 1, 4, 16] {
        let breakpoints = (0..slots).map(|n| BreakpointSlot::new(TEXT + 4 * n).unwrap()).collect();
        let watch = |n| watch::plan(WatchKind::Write, TEXT + 64 * n, 8).unwrap();
        let hw = HwDebug { breakpoints, watchpoints: (0..slots).flat_map(watch).collect() };
        let config = DebugConfig { enabled: true, single_step: false, block_interrupts: false, hw };
        group.bench_function(BenchmarkId::new("registers", slots), |bencher| {
            bencher.iter(|| GuestDebug::new(black_box(&config)));
        });
    }
    for length in [1u64, 8, 64, 4096] {
        group.bench_function(BenchmarkId::new("watch", length), |bencher| {
            bencher.iter(|| watch::plan(WatchKind::Write, black_box(TEXT), black_box(length)).unwrap());
        });
    }
    group.finish();
}

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    for (name, syndrome) in [("step", 0xca00_0022u64), ("breakpoint", 0xc200_0022), ("watch", 0xd200_0062)] {
        group
            .bench_function(BenchmarkId::new("syndrome", name), |bencher| bencher.iter(|| decode(black_box(syndrome))));
    }
    // nop; ldp x0, x1, [x2]; stlxr w0, x1, [x2]
    for (name, word) in [("nop", 0xd503_201fu32), ("pair", 0xa940_0440), ("exclusive", 0xc800_fc41)] {
        group.bench_function(BenchmarkId::new("instruction", name), |bencher| {
            bencher.iter(|| insn::decode(black_box(word)));
        });
        group.bench_function(BenchmarkId::new("access", name), |bencher| {
            bencher.iter(|| insn::access(black_box(word)));
        });
    }
    group.finish();
}

fn addresses(criterion: &mut Criterion) {
    let (regime, ram) = (regime(), memory());
    let off = Regime { sctlr: 0, ..regime };
    let mut group = criterion.benchmark_group("translate");
    for (name, regime, at) in [("off", &off, RAM), ("block", &regime, TEXT + MAPPED), ("page", &regime, TEXT)] {
        group.bench_function(name, |bencher| bencher.iter(|| translate(regime, black_box(at), &ram).unwrap()));
    }
    group.finish();
}

/// A stopped vCPU in the address space that [`memory`] has.
struct Stopped;

impl DebugVcpu for Stopped {
    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let number = match reg {
            Reg::Sys(SysReg::SCTLR_EL1) => regime().sctlr,
            Reg::Sys(SysReg::TCR_EL1) => regime().tcr,
            Reg::Sys(SysReg::TTBR0_EL1) => regime().ttbr0,
            Reg::Sys(SysReg::ID_AA64MMFR0_EL1) => regime().mmfr0,
            _ => 0,
        };
        value.copy_from_slice(&number.to_le_bytes()[..value.len()]);
        Ok(())
    }
}

struct Host;

impl VmHost for Host {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(Arc::new(Stopped))
    }

    fn kick(&self, _: VcpuId) {}
}

/// A session with so many software breakpoints.
fn session(breakpoints: u64) -> Arc<DebugSession> {
    let session = DebugSession::new(1, CAPS, Arc::new(memory()), true).unwrap();
    session.set_host(Box::new(Host)).unwrap();
    session.attach().unwrap();
    for number in 0..breakpoints {
        session.insert(VcpuId(0), place(number)).unwrap();
    }
    session
}

fn place(number: u64) -> Breakpoint {
    Breakpoint::Software(Gva(TEXT + 64 + number * 64))
}

fn among_many(criterion: &mut Criterion) {
    for breakpoints in BREAKPOINTS {
        let session = session(breakpoints);
        let mut group = criterion.benchmark_group("software breakpoint");
        group.bench_function(BenchmarkId::new("insert and remove one more", breakpoints), |bencher| {
            let one = Breakpoint::Software(Gva(TEXT));
            bencher.iter(|| {
                session.insert(VcpuId(0), one).unwrap();
                session.remove(one).unwrap();
            });
        });
        group.finish();
        let mut group = criterion.benchmark_group("read memory");
        group.throughput(Throughput::Bytes(MAPPED));
        group.bench_function(BenchmarkId::new("among breakpoints", breakpoints), |bencher| {
            let read = |()| session.read_memory(VcpuId(0), Gva(TEXT), MAPPED as usize).unwrap();
            bencher.iter_batched(|| (), read, BatchSize::LargeInput);
        });
        group.finish();
    }
}

criterion_group! {
    name = pure;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = encode, classify, addresses, among_many
}
criterion_main!(pure);
