//! What saving and restoring costs grows with the number of vCPUs and breakpoints, and not faster. Counted, not timed.

#![cfg(feature = "serde")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use guest_debug::arm64::Reg;
use guest_debug::state::{
    Architecture, GuestDebugState, STATE_VERSION, SoftwareState, StopReasonState, StopState, ToldState, VcpuDebugState,
    VcpuMode,
};
use guest_debug::{DebugCaps, DebugSession, DebugVcpu, GuestRam, RamError, Restore, VcpuError, VcpuId, VmHost};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vm_memory::GuestAddress;

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };
const TEXT: u64 = 0x40_0000;

/// Counts what is asked of the host. Memory always reads as zeros, the instruction that every breakpoint stands on.
#[derive(Default)]
struct Host {
    reads: AtomicUsize,
    writes: AtomicUsize,
    registers: AtomicUsize,
}

impl Host {
    fn counts(&self) -> [usize; 3] {
        [&self.reads, &self.writes, &self.registers].map(|count| count.swap(0, Ordering::Relaxed))
    }
}

#[derive(Clone)]
struct Counted(Arc<Host>);

impl GuestRam for Counted {
    fn read(&self, _: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: GuestAddress, _: &[u8]) -> Result<(), RamError> {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl DebugVcpu for Counted {
    fn get_reg(&self, _: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.0.registers.fetch_add(1, Ordering::Relaxed);
        value.copy_from_slice(&TEXT.to_le_bytes()[..value.len()]);
        Ok(())
    }
}

impl VmHost for Counted {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(Arc::new(self.clone()))
    }

    fn kick(&self, _: VcpuId) {}
}

fn sample(vcpus: u32, breakpoints: u64) -> GuestDebugState {
    let stop = |vcpu| StopState { vcpu, pc: TEXT, reason: StopReasonState::SoftwareBreakpoint(TEXT) };
    let told = || Some(ToldState { pc: TEXT, watches: Vec::new() });
    GuestDebugState {
        version: STATE_VERSION,
        architecture: Architecture::Aarch64,
        attached: true,
        held: false,
        selected_vcpu: None,
        hardware: Vec::new(),
        watches: Vec::new(),
        software: (0..breakpoints)
            .map(|index| SoftwareState {
                physical: 0x8000_0000 + index * 64,
                original: [0; 4],
                names: vec![TEXT + index * 64],
            })
            .collect(),
        vcpus: (0..vcpus).map(|_| VcpuDebugState { mode: VcpuMode::Stopped, told: told() }).collect(),
        reported: Some(stop(0)),
        pending: (1..vcpus).map(stop).collect(),
        put_aside: Vec::new(),
        rules: Vec::new(),
    }
}

/// Reads, writes and register accesses of a restore, of a freeze with its state, and the size of that in JSON.
fn cost(vcpus: u32, breakpoints: u64) -> ([usize; 3], [usize; 3], usize) {
    let host = Arc::new(Host::default());
    let counted = Counted(host.clone());
    let state = sample(vcpus, breakpoints);
    let session = DebugSession::from_state(&state, vcpus, CAPS, Arc::new(counted.clone()), Restore::Arm).unwrap();
    session.set_host(Box::new(counted)).unwrap();
    session.arm().unwrap();
    let restore = host.counts();
    session.freeze().unwrap();
    let saved = session.state().unwrap();
    assert_eq!(saved, state);
    (restore, host.counts(), serde_json::to_vec(&saved).unwrap().len())
}

#[test]
fn twice_as_many_breakpoints_cost_twice_as_much() {
    let one = cost(1, 1000);
    let two = cost(1, 2000);
    // A look at each page, 64 to a page, and a write for each on the way in; a look at each on the way out, which finds
    // nothing of ours to lift.
    assert_eq!((one.0, one.1), ([16, 1000, 1], [1000, 0, 0]));
    assert_eq!((two.0, two.1), ([32, 2000, 1], [2000, 0, 0]));
    assert!(two.2 <= 2 * one.2, "{} bytes, then {}", one.2, two.2);
}

#[test]
fn twice_as_many_vcpus_cost_twice_as_much() {
    let one = cost(256, 1);
    let two = cost(512, 1);
    // Each stop's pc is compared with its vCPU's, once.
    assert_eq!((one.0, one.1), ([1, 1, 256], [1, 0, 0]));
    assert_eq!((two.0, two.1), ([1, 1, 512], [1, 0, 0]));
    assert!(two.2 <= 2 * one.2, "{} bytes, then {}", one.2, two.2);
}

#[test]
fn what_arrived_ahead_costs_nothing_more_to_arm() {
    let host = Arc::new(Host::default());
    let counted = Counted(host.clone());
    let session =
        DebugSession::from_state(sample(1, 10_000), 1, CAPS, Arc::new(counted.clone()), Restore::Arm).unwrap();
    session.set_host(Box::new(counted)).unwrap();
    session.plant_ahead(GuestAddress(0x8000_0000), 10_000 * 64).unwrap();
    assert_eq!(host.counts(), [157, 10_000, 0], "planted while the guest still runs at the source");
    session.plant_ahead(GuestAddress(0x9000_0000), 1 << 20).unwrap();
    session.arm().unwrap();
    assert_eq!(host.counts(), [0, 0, 1], "a look at the one vCPU's pc");
}
