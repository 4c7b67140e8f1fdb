//! What a saved VM's architecture has to say about it.

use super::FrozenVcpu;
use super::report::{Hex, PstateReport, RflagsReport};
use crate::guest::Guest;
use guest_debug::DebugCaps;
use guest_debug::state::WatchState;

/// An architecture whose saved VMs can be looked at.
pub trait Inspected: Guest {
    /// Whether a vCPU runs, and does not wait to be started by another one.
    fn is_powered_on(vcpu: &Self::Vcpu) -> bool;

    /// A vCPU's registers that a debugger has names for, little-endian, in its order.
    fn registers(vcpu: Self::Vcpu, features: &Self::Features) -> Vec<(Self::Reg, Vec<u8>)>;

    /// The stack pointer that is in use, if it was saved.
    fn sp(vcpu: &FrozenVcpu<Self>) -> Option<u64>;

    /// PSTATE, of an arm64 vCPU.
    fn pstate(vcpu: &FrozenVcpu<Self>) -> Option<PstateReport>;

    /// RFLAGS, of an x86_64 vCPU.
    fn rflags(vcpu: &FrozenVcpu<Self>) -> Option<RflagsReport>;

    /// Slots that a vCPU has: the host's own limits are not saved.
    fn caps(vcpu: &FrozenVcpu<Self>) -> DebugCaps;

    /// Slots of a watch. One that no host could have is not in a session that was checked.
    fn slots(watch: &WatchState) -> usize;

    /// The bytes of a saved instruction that are the guest's.
    fn original(saved: &[u8; 4]) -> &[u8];

    /// The same as an instruction word, where instructions are words.
    fn instruction(saved: [u8; 4]) -> Option<Hex>;
}
