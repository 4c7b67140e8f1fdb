//! Instructions that are carried out from outside when a hit is passed.

use super::stack_pointer;
use crate::arm64::insn::{self, General, Simulated};
use crate::arm64::{Pstate, Reg};
use crate::session::SessionError;
use crate::session::runner::VcpuDebugger;
use crate::{DebugVcpu, Gva};
use vm_memory::GuestAddress;

impl VcpuDebugger {
    /// Carries out the instruction at `pc`, if registers are all that it needs.
    pub(super) fn simulate(
        &self,
        vcpu: &dyn DebugVcpu,
        pc: Gva,
        gpa: GuestAddress,
    ) -> Result<Option<u64>, SessionError> {
        let Ok(word) = self.session.fetch_word(gpa) else { return Ok(None) };
        let pstate = Pstate(self.get(vcpu, Reg::Pstate)?);
        let reg = |general| match general {
            General::X(n) => Reg::X(n),
            General::Sp => stack_pointer(pstate),
        };
        let read = |general| self.get(vcpu, reg(general));
        let Some(Simulated { pc: next, write }) = insn::simulate(word, pc.0, pstate, read)? else { return Ok(None) };
        if let Some((general, value)) = write {
            self.set(vcpu, reg(general), value)?;
        }
        self.write_pstate(vcpu, pstate, pstate.without(Pstate::BTYPE))?;
        self.set(vcpu, Reg::Pc, next)?;
        Ok(Some(next))
    }
}
