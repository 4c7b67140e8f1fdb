//! arm64 (gdb's manual, "AArch64 Features").

mod features;
mod pauth;
mod sysreg_names;
mod vectors;

use super::{Described, Description, Missing, to_u64};
use guest_debug::Arm64;
use guest_debug::agent;
use guest_debug::arm64::{Pstate, Reg, SysReg};

/// Number of the stack pointer.
const SP: usize = 31;
/// Number of the program counter.
const PC: usize = 32;
/// Number of X30, the link register.
const LR: usize = 30;
/// Number of the frame pointer, X29.
const FP: usize = 29;

type Values = super::Values<Arm64>;
type Source = super::Source<Arm64>;
type Builder = super::Builder<Arm64>;

/// What is no register of KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// The stack pointer that the current exception level uses.
    StackPointer,
    /// Bits of a pointer that hold an authentication code.
    PauthMask(pauth::Mask),
}

impl Described<Self> for Arm64 {
    type Special = Special;

    const EXPEDITED: &[usize] = &[FP, LR, SP, PC];
    const IDENTITY: &[Reg] = &[Reg::SveVls, Reg::Sys(SysReg::ID_AA64ISAR1_EL1), Reg::Sys(SysReg::ID_AA64ISAR2_EL1)];
    const STATE: &[Reg] = &[Reg::Pstate];
    /// 2 and 3 would be Thumb.
    const BREAKPOINT_KIND: u64 = 4;
    const TRIPLE: &str = "aarch64-unknown-unknown";

    fn least() -> Vec<Reg> {
        (0..31).map(Reg::X).chain([Reg::SpEl0, Reg::SpEl1, Reg::Pc, Reg::Pstate]).collect()
    }

    /// The identification registers and the vector lengths count.
    fn describe(regs: &[Reg], values: &Values) -> Description<Self> {
        let mut builder = Builder::default();
        features::core(&mut builder);
        let general = if regs.contains(&Reg::Z(0)) {
            vectors::sve(&mut builder, vectors::vector_length(values))
        } else if regs.contains(&Reg::V(0)) {
            vectors::fpu(&mut builder)
        } else {
            builder.entries.len()
        };
        if pauth::has_address_authentication(values) && regs.contains(&Reg::Sys(SysReg::TCR_EL1)) {
            pauth::feature(&mut builder);
        }
        if regs.contains(&Reg::Sys(SysReg::TPIDR_EL0)) {
            features::tls(&mut builder);
        }
        features::system(&mut builder, regs);
        Description::new("aarch64", general, builder)
    }

    fn state(values: &Values) -> Option<String> {
        let pstate = values.get(&Reg::Pstate).and_then(|bytes| to_u64(bytes))?;
        Some(Pstate(pstate).to_string())
    }

    fn expression_number(source: Source) -> Option<u16> {
        match source {
            Source::Register(reg) => agent::number_of(reg),
            Source::Special(Special::StackPointer) => Some(agent::SP),
            Source::Constant(_) | Source::Special(Special::PauthMask(_)) => None,
        }
    }

    fn reads(special: Special) -> Vec<Reg> {
        match special {
            Special::StackPointer => vec![Reg::Pstate, Reg::SpEl0, Reg::SpEl1],
            Special::PauthMask(_) => vec![Reg::Sys(SysReg::TCR_EL1)],
        }
    }

    fn compose(special: Special, values: &Values) -> Option<Vec<u8>> {
        match special {
            Special::StackPointer => {
                let pstate = Pstate(to_u64(values.get(&Reg::Pstate)?)?);
                values.get(&stack_pointer(pstate)).cloned()
            }
            Special::PauthMask(mask) => {
                let tcr = to_u64(values.get(&Reg::Sys(SysReg::TCR_EL1))?)?;
                Some(mask.bits(tcr).to_le_bytes().to_vec())
            }
        }
    }

    fn reads_for_write(special: Special) -> Vec<Reg> {
        match special {
            Special::StackPointer => vec![Reg::Pstate],
            Special::PauthMask(_) => Vec::new(),
        }
    }

    fn target(special: Special, values: &Values) -> Option<Result<Reg, Missing>> {
        match special {
            Special::StackPointer => {
                let pstate = values.get(&Reg::Pstate).and_then(|bytes| to_u64(bytes));
                Some(pstate.map(|pstate| stack_pointer(Pstate(pstate))).ok_or(Missing))
            }
            Special::PauthMask(_) => None,
        }
    }
}

/// The register that SP means (Arm ARM, D1.4.2): SP_EL0 at EL0 and wherever PSTATE.SP is 0.
fn stack_pointer(pstate: Pstate) -> Reg {
    if pstate.el() == 0 || !pstate.sp_sel() { Reg::SpEl0 } else { Reg::SpEl1 }
}

#[cfg(test)]
mod tests;
