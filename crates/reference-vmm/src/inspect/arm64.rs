//! Saved arm64 vCPUs.

use super::FrozenVcpu;
use super::inspected::Inspected;
use super::report::{Hex, PstateReport, RflagsReport};
use crate::state::arm64::{Features, VcpuState};
use guest_debug::arm64::{Reg, SysReg, watch};
use guest_debug::kvm::regid;
use guest_debug::state::WatchState;
use guest_debug::{Arm64, DebugCaps, DebugVcpu as _};

/// `KVM_MP_STATE_STOPPED`: powered off by PSCI. Here by its number, because the kernel's bindings are a dependency on
/// hosts with KVM alone.
pub(super) const MP_STATE_STOPPED: u32 = 5;

/// Debug features 0 (Arm ARM, ID_AA64DFR0_EL1).
const ID_AA64DFR0_EL1: SysReg = SysReg::new(3, 0, 0, 5, 0);
/// Number of breakpoints, less one.
const BRPS: u32 = 12;
/// Number of watchpoints, less one.
const WRPS: u32 = 20;

impl Inspected for Arm64 {
    fn is_powered_on(vcpu: &VcpuState) -> bool {
        vcpu.mp_state != MP_STATE_STOPPED
    }

    fn registers(vcpu: VcpuState, _: &Features) -> Vec<(Reg, Vec<u8>)> {
        let known =
            vcpu.registers.into_iter().filter_map(|register| Some((regid::decode(register.id)?, register.value)));
        known.collect()
    }

    fn sp(vcpu: &FrozenVcpu) -> Option<u64> {
        vcpu.sp()
    }

    fn pstate(vcpu: &FrozenVcpu) -> Option<PstateReport> {
        vcpu.pstate().map(PstateReport::from)
    }

    fn rflags(_: &FrozenVcpu) -> Option<RflagsReport> {
        None
    }

    /// What the vCPU says that it has: KVM shows its guests as many as the host has.
    fn caps(vcpu: &FrozenVcpu) -> DebugCaps {
        let features = vcpu.get_u64(Reg::Sys(ID_AA64DFR0_EL1)).ok();
        let slots = |shift: u32| features.map_or(0, |value| (value >> shift & 15) as usize + 1);
        DebugCaps { guest_debug: true, hw_bps: slots(BRPS), hw_wps: slots(WRPS), control_flags: 0 }
    }

    fn slots(watch: &WatchState) -> usize {
        watch::plan(watch.kind, watch.address, watch.length).map_or(0, |slots| slots.len())
    }

    fn original(saved: &[u8; 4]) -> &[u8] {
        saved
    }

    fn instruction(saved: [u8; 4]) -> Option<Hex> {
        Some(Hex(u32::from_le_bytes(saved).into()))
    }
}
