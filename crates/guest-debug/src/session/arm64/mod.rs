//! arm64 guests: what their debug registers can do, how they translate, and where the parts of a vCPU's thread are.

mod cruise;
mod exit;
mod simulate;
mod step;

use super::debugged::{Debugged, Slots};
use super::runner::{Entry, VcpuDebugger};
use super::{DebugSession, SessionError};
use crate::agent;
use crate::arch::{Arm64, PlaceError};
use crate::arm64::dbgreg::DbgRegError;
use crate::arm64::exception::Features;
use crate::arm64::insn::{self, Insn};
use crate::arm64::translate::{self, Regime, Translation};
use crate::arm64::{BreakpointSlot, HwDebug, Pstate, Reg, SysReg, WatchSlot, watch};
use crate::uapi::KVM_ARM_MAX_DBG_REGS;
use crate::{Breakpoint, DebugCaps, DebugExit, DebugVcpu, GuestRam, Gva, VcpuError, VcpuId, WatchKind};
use cruise::Cruise;
use step::Flight;
use vm_memory::GuestAddress;

/// Immediate of the BRKs that the session plants. Linux does not use it (arch/arm64/include/asm/brk-imm.h), so that
/// a BRK which the guest writes over one of ours is told from it.
pub(super) const BRK_IMM: u16 = 0x67db;

/// The step that is under way, and what is known of the vCPU.
#[derive(Debug, Default)]
pub struct Motion {
    flight: Option<Flight>,
    cruise: Option<Cruise>,
    features: Option<Features>,
}

impl Debugged<Self> for Arm64 {
    type Motion = Motion;
    type WatchSlot = WatchSlot;
    type Code = [u8; 4];
    type Regime = Regime;

    const BREAK: [u8; 4] = (0xd420_0000 | (BRK_IMM as u32) << 5).to_le_bytes();
    const BREAK_IS_OWN: bool = true;
    const MAX_SLOTS: usize = KVM_ARM_MAX_DBG_REGS;
    const WATCH_TRAPS: bool = false;
    const WIDENS_READS: bool = false;
    const STEP_ENDS: bool = false;
    const WAITS: &str = "HVC or SMC";

    fn check(breakpoint: Breakpoint) -> Result<(), PlaceError> {
        match breakpoint {
            Breakpoint::Hardware(Gva(address)) => drop(BreakpointSlot::new(address)?),
            // It may carry a tag in its top byte.
            Breakpoint::Software(Gva(address)) if address % 4 != 0 => {
                return Err(DbgRegError::Misaligned { address }.into());
            }
            Breakpoint::Software(_) => {}
            Breakpoint::Watch { kind, address, length } => drop(watch::plan(kind, address.0, length)?),
        }
        Ok(())
    }

    fn watch_slots(kind: WatchKind, address: u64, length: u64) -> Result<Vec<WatchSlot>, PlaceError> {
        Ok(watch::plan(kind, address, length)?)
    }

    fn free(caps: &DebugCaps, used: Slots) -> Slots {
        Slots {
            breakpoints: caps.hw_bps.saturating_sub(used.breakpoints),
            watches: caps.hw_wps.saturating_sub(used.watches),
        }
    }

    fn hw(breakpoints: &[u64], watches: &[WatchSlot]) -> HwDebug {
        let breakpoints = breakpoints.iter().filter_map(|address| BreakpointSlot::new(*address).ok()).collect();
        HwDebug { breakpoints, watchpoints: watches.to_vec() }
    }

    /// Steps mask them.
    fn blocks_interrupts(_: &DebugCaps) -> bool {
        false
    }

    fn pc(vcpu: &dyn DebugVcpu<Self>) -> Result<u64, VcpuError> {
        vcpu.get_u64(Reg::Pc)
    }

    fn regime(vcpu: &dyn DebugVcpu) -> Result<Regime, VcpuError> {
        let sys = |reg| vcpu.get_u64(Reg::Sys(reg));
        Ok(Regime {
            sctlr: sys(SysReg::SCTLR_EL1)?,
            tcr: sys(SysReg::TCR_EL1)?,
            ttbr0: sys(SysReg::TTBR0_EL1)?,
            ttbr1: sys(SysReg::TTBR1_EL1)?,
            mmfr0: sys(SysReg::ID_AA64MMFR0_EL1)?,
            mmfr2: sys(SysReg::ID_AA64MMFR2_EL1).unwrap_or(0),
        })
    }

    fn translate(regime: &Regime, address: u64, ram: &dyn GuestRam) -> Result<Translation, SessionError> {
        Ok(translate::translate(regime, address, ram)?)
    }

    fn place(translation: &Translation) -> (u64, u64) {
        (translation.gpa, translation.block_size)
    }

    fn expression_register(vcpu: &dyn DebugVcpu, number: u16) -> Option<Result<u64, VcpuError>> {
        match agent::reg_of(number) {
            Some(reg) => Some(vcpu.get_u64(reg)),
            None if number == agent::SP => {
                let sp = |pstate| vcpu.get_u64(stack_pointer(Pstate(pstate)));
                Some(vcpu.get_u64(Reg::Pstate).and_then(sp))
            }
            None => None,
        }
    }

    /// A call of the hypervisor: CPU_OFF and CPU_SUSPEND wait.
    fn may_wait(code: &[u8]) -> bool {
        let word = code.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        word.is_some_and(|word| matches!(insn::decode(word), Insn::Hvc | Insn::Smc))
    }

    fn is_moving(motion: &Motion) -> bool {
        motion.flight.is_some() || motion.cruise.is_some()
    }

    fn is_stepping(motion: &Motion) -> bool {
        motion.flight.is_some()
    }

    fn forget(motion: &mut Motion) {
        motion.flight = None;
        motion.cruise = None;
    }

    fn begin(debugger: &mut VcpuDebugger, vcpu: &dyn DebugVcpu) -> Result<Entry, SessionError> {
        debugger.begin(vcpu)
    }

    fn settle(debugger: &mut VcpuDebugger, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        debugger.settle(vcpu)
    }

    fn after_io(debugger: &mut VcpuDebugger, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        debugger.after_access(vcpu)
    }

    fn on_debug_exit(debugger: &mut VcpuDebugger, vcpu: &dyn DebugVcpu, exit: DebugExit) -> Result<(), SessionError> {
        debugger.decode(vcpu, exit)
    }

    fn end_range(debugger: &mut VcpuDebugger, vcpu: &dyn DebugVcpu) -> Result<(), SessionError> {
        debugger.end_cruise(vcpu)
    }

    fn carry_out(
        debugger: &VcpuDebugger,
        vcpu: &dyn DebugVcpu,
        pc: Gva,
        gpa: GuestAddress,
    ) -> Result<Option<u64>, SessionError> {
        debugger.simulate(vcpu, pc, gpa)
    }
}

/// The stack pointer in use.
fn stack_pointer(pstate: Pstate) -> Reg {
    if pstate.el() == 0 || !pstate.sp_sel() { Reg::SpEl0 } else { Reg::SpEl1 }
}

impl DebugSession {
    /// The instruction that the guest has at `pc`, seen by a vCPU's own thread.
    fn fetch_insn(&self, id: VcpuId, vcpu: &dyn DebugVcpu, pc: u64) -> Result<u32, SessionError> {
        self.fetch_word(self.translate_by(id, vcpu, Gva(pc))?)
    }

    /// The instruction that the guest has at `gpa`.
    fn fetch_word(&self, gpa: GuestAddress) -> Result<u32, SessionError> {
        Ok(u32::from_le_bytes(self.fetch_code(gpa)?))
    }
}
