//! What the session itself costs for each instruction of a range: the vCPU here costs nothing, and is at once where it would
//! come out of the guest.
//!
//! ```text
//! cargo bench -p guest-debug --bench steps
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_debug::arm64::{Reg, SysReg};
use guest_debug::{
    DebugCaps, DebugConfig, DebugExit, DebugSession, DebugVcpu, Entry, ResumeAction, VcpuError, VcpuId, VmHost, Wait,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };
const CODE: u64 = 0x4000_0000;
const VECTORS: u64 = CODE + 0x10_0000;
const STEPS: u64 = 10_000;
/// EL1 with SP_EL1, everything masked.
const PSTATE: u64 = 0x3c5;
/// Of a step's exit: class "software step from a lower level", ISV, and the fault status of a debug exception.
const STEPPED: DebugExit = DebugExit { syndrome: 0x32 << 26 | 1 << 25 | 1 << 24 | 0x22, far: 0 };

/// The same of a hardware breakpoint's.
const HIT: DebugExit = DebugExit { syndrome: 0x30 << 26 | 1 << 25 | 0x22, far: 0 };

/// A vCPU with its MMU off that goes straight on.
#[derive(Default)]
struct Straight {
    pc: AtomicU64,
    config: Mutex<DebugConfig>,
}

impl Straight {
    /// One instruction, or up to the next breakpoint.
    fn enter(&self) -> DebugExit {
        let config = self.config.lock().unwrap();
        let pc = self.pc.load(Ordering::Relaxed);
        let ahead = config.hw.breakpoints.iter().map(|slot| slot.address).filter(|at| *at > pc);
        let (next, exit) = if config.single_step { (pc + 4, STEPPED) } else { (ahead.min().unwrap(), HIT) };
        self.pc.store(next, Ordering::Relaxed);
        exit
    }
}

impl DebugVcpu for Straight {
    fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
        self.config.lock().unwrap().clone_from(config);
        Ok(())
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let number = match reg {
            Reg::Pc => self.pc.load(Ordering::Relaxed),
            Reg::Pstate => PSTATE,
            Reg::Sys(SysReg::VBAR_EL1) => VECTORS,
            _ => 0,
        };
        value.copy_from_slice(&number.to_le_bytes()[..value.len()]);
        Ok(())
    }

    fn set_reg(&self, _: Reg, _: &[u8]) -> Result<(), VcpuError> {
        Ok(())
    }
}

struct Host(Arc<Straight>);

impl VmHost for Host {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(self.0.clone())
    }

    // It stops by itself, at the end of the range.
    fn kick(&self, _: VcpuId) {}
}

/// The vCPU's thread.
fn run(session: &Arc<DebugSession>, vcpu: &Straight) {
    let mut debugger = session.vcpu_thread(VcpuId(0)).unwrap();
    while debugger.wait() == Wait::Run {
        if debugger.before_run(vcpu).unwrap() == Entry::Run {
            debugger.on_debug_exit(vcpu, vcpu.enter()).unwrap();
        }
    }
}

fn ranges(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("range of steps");
    group.throughput(Throughput::Elements(STEPS));
    // add x0, x0, #1; ldr x1, [x2]; mrs x4, sp_el0; b .+4
    for (name, word) in [("add", 0x9100_0400u32), ("ldr", 0xf940_0041), ("mrs", 0xd538_4104), ("b", 0x1400_0001)] {
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(CODE), 2 << 20)]).unwrap();
        let place = |number| GuestAddress(CODE + 4 * number);
        (0..=STEPS).for_each(|number| ram.write_obj(word, place(number)).unwrap());
        let session = DebugSession::new(1, CAPS, Arc::new(Arc::new(ram)), true).unwrap();
        let vcpu = Arc::new(Straight::default());
        session.set_host(Box::new(Host(vcpu.clone()))).unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| run(&session, &vcpu));
            session.attach().unwrap();
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    vcpu.pc.store(CODE, Ordering::Relaxed);
                    let range = ResumeAction::StepRange(CODE..CODE + 4 * STEPS);
                    session.resume(&[(VcpuId(0), range)]).unwrap();
                    while session.take_stop().unwrap().is_none() {
                        thread::sleep(Duration::from_micros(20));
                    }
                });
            });
            session.close();
            running.join().unwrap();
        });
    }
    group.finish();
}

criterion_group! {
    name = steps;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = ranges
}
criterion_main!(steps);
