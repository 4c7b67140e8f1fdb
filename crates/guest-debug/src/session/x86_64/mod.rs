//! x86_64 guests: what their debug registers can do, how they translate, and where the parts of a vCPU's thread are.

mod context;
mod exit;
mod step;

use super::SessionError;
use super::debugged::{Debugged, Slots};
use super::runner::{Entry, VcpuDebugger};
use crate::arch::{PlaceError, X86_64};
use crate::uapi::x86_64::KVM_GUESTDBG_BLOCKIRQ;
use crate::x86_64::dbgreg::SLOTS;
use crate::x86_64::slot::{Condition, SlotError};
use crate::x86_64::stop::DebugExitArch;
use crate::x86_64::translate::{self, Paging, Translation};
use crate::x86_64::{HwDebug, Reg, Slot, VaBits, insn, watch};
use crate::{Breakpoint, DebugCaps, DebugVcpu, GuestRam, Gva, VcpuError, WatchKind};
use context::Context;
use step::Flight;
use vm_memory::GuestAddress;

/// Addresses are checked for the wider of the two: which one a guest has it decides when it boots. What is canonical in 57
/// bits alone is never reached by one with 48.
const VA: VaBits = VaBits::Bits57;

/// Where a vCPU's steps are.
#[derive(Debug, Default)]
pub struct Motion {
    /// The step that is under way.
    flight: Option<Flight>,
    /// What is known of the vCPU between two steps of a range.
    known: Option<Context>,
    /// How often it has been begun again because its instruction had not executed.
    again: u32,
}

impl Debugged<Self> for X86_64 {
    type Motion = Motion;
    type WatchSlot = Slot;
    type Code = [u8; 1];
    type Regime = Paging;

    /// INT3. A guest's own is the same byte.
    const BREAK: [u8; 1] = [0xcc];
    const BREAK_IS_OWN: bool = false;
    const MAX_SLOTS: usize = SLOTS;
    const WATCH_TRAPS: bool = true;
    const WIDENS_READS: bool = true;
    /// KVM gives the guest RFLAGS.TF when it is told to step, and takes it away with the next write of its registers.
    const STEP_ENDS: bool = true;
    const WAITS: &str = "HLT";

    fn check(breakpoint: Breakpoint) -> Result<(), PlaceError> {
        match breakpoint {
            Breakpoint::Hardware(Gva(address)) | Breakpoint::Software(Gva(address)) => {
                let _ = Slot::new(address, Condition::Execute, VA)?;
            }
            Breakpoint::Watch { kind, address, length } => drop(Self::watch_slots(kind, address.0, length)?),
        }
        Ok(())
    }

    fn watch_slots(kind: WatchKind, address: u64, length: u64) -> Result<Vec<Slot>, PlaceError> {
        Ok(watch::plan(kind, address, length, VA)?.slots)
    }

    /// Breakpoints and watches share the slots.
    fn free(caps: &DebugCaps, used: Slots) -> Slots {
        let all = caps.hw_bps.max(caps.hw_wps).min(SLOTS).saturating_sub(used.breakpoints + used.watches);
        Slots {
            breakpoints: caps.hw_bps.saturating_sub(used.breakpoints).min(all),
            watches: caps.hw_wps.saturating_sub(used.watches).min(all),
        }
    }

    fn hw(breakpoints: &[u64], watches: &[Slot]) -> HwDebug {
        let breakpoints = breakpoints.iter().filter_map(|address| Slot::new(*address, Condition::Execute, VA).ok());
        let mut hw = HwDebug::default();
        let slots = breakpoints.chain(watches.iter().copied());
        hw.slots.iter_mut().zip(slots).for_each(|(to, slot)| *to = Some(slot));
        hw
    }

    fn blocks_interrupts(caps: &DebugCaps) -> bool {
        caps.control_flags & KVM_GUESTDBG_BLOCKIRQ != 0
    }

    fn pc(vcpu: &dyn DebugVcpu<Self>) -> Result<u64, VcpuError> {
        Ok(Context::read(vcpu)?.pc)
    }

    fn regime(vcpu: &dyn DebugVcpu<Self>) -> Result<Paging, VcpuError> {
        context::paging(vcpu)
    }

    fn translate(paging: &Paging, address: u64, ram: &dyn GuestRam) -> Result<Translation, SessionError> {
        Ok(translate::translate(paging, address, ram)?)
    }

    fn place(translation: &Translation) -> (u64, u64) {
        (translation.gpa, translation.page_size)
    }

    fn expression_register(vcpu: &dyn DebugVcpu<Self>, number: u16) -> Option<Result<u64, VcpuError>> {
        Reg::by_expression_number(number).map(|reg| vcpu.get_u64(reg))
    }

    fn may_wait(code: &[u8]) -> bool {
        matches!(insn::decode(code, insn::CodeSize::Bits64), insn::Insn::Hlt { .. })
    }

    fn is_moving(motion: &Motion) -> bool {
        motion.flight.is_some() || motion.known.is_some()
    }

    fn is_stepping(motion: &Motion) -> bool {
        motion.flight.is_some()
    }

    fn forget(motion: &mut Motion) {
        *motion = Motion::default();
    }

    fn begin(debugger: &mut VcpuDebugger<Self>, vcpu: &dyn DebugVcpu<Self>) -> Result<Entry, SessionError> {
        debugger.begin(vcpu)
    }

    fn settle(debugger: &mut VcpuDebugger<Self>, vcpu: &dyn DebugVcpu<Self>) -> Result<(), SessionError> {
        debugger.settle(vcpu)
    }

    fn after_io(debugger: &mut VcpuDebugger<Self>, vcpu: &dyn DebugVcpu<Self>) -> Result<(), SessionError> {
        debugger.end_if_moved(vcpu)
    }

    fn on_debug_exit(
        debugger: &mut VcpuDebugger<Self>,
        vcpu: &dyn DebugVcpu<Self>,
        exit: DebugExitArch,
    ) -> Result<(), SessionError> {
        debugger.decode(vcpu, exit)
    }

    /// Every step of a range is whole.
    fn end_range(_: &mut VcpuDebugger<Self>, _: &dyn DebugVcpu<Self>) -> Result<(), SessionError> {
        Ok(())
    }

    /// A step does.
    fn carry_out(
        _: &VcpuDebugger<Self>,
        _: &dyn DebugVcpu<Self>,
        _: Gva,
        _: GuestAddress,
    ) -> Result<Option<u64>, SessionError> {
        Ok(None)
    }
}

/// As many slots as there are, the first ones first. Answers how many.
fn fill(hw: &mut HwDebug, addresses: impl IntoIterator<Item = u64>) -> usize {
    let slots = addresses.into_iter().map(|address| Slot::new(address, Condition::Execute, VA));
    let slots = slots.filter_map(Result::<Slot, SlotError>::ok);
    let free = hw.slots.iter_mut().filter(|slot| slot.is_none());
    free.zip(slots).map(|(free, slot)| *free = Some(slot)).count()
}
