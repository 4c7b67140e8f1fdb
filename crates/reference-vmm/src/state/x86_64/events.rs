//! What is about to happen to a vCPU: `struct kvm_vcpu_events`.

use super::{at_most, bad};
use crate::error::VmError;
use serde::{Deserialize, Serialize};

/// The last exception; behind it are interrupts.
const MAX_EXCEPTION: u8 = 31;
/// An NMI has a way of its own.
const NMI: u8 = 2;

/// Exceptions and interrupts on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventState {
    /// The exception that the vCPU takes at the next entry.
    pub exception: Option<ExceptionState>,
    /// The interrupt that it takes then.
    pub interrupt: Option<InterruptState>,
    /// Interrupts are held back for an instruction: KVM_X86_SHADOW_INT_MOV_SS and KVM_X86_SHADOW_INT_STI.
    pub shadow: u8,
    /// Non-maskable interrupts.
    pub nmi: NmiState,
    /// Page number of a SIPI that was received.
    pub sipi_vector: u32,
    /// System management mode, where KVM has it.
    pub smi: Option<SmiState>,
}

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionState {
    /// Its number.
    pub vector: u8,
    /// What it pushes, if it does.
    pub error_code: Option<u32>,
}

/// An interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptState {
    /// Its number.
    pub vector: u8,
    /// An INT instruction made it.
    pub soft: bool,
}

/// Non-maskable interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NmiState {
    /// One is taken at the next entry.
    pub injected: bool,
    /// So many wait.
    pub pending: u8,
    /// They are held back until IRET.
    pub masked: bool,
}

/// System management mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SmiState {
    /// The vCPU is in it.
    pub smm: bool,
    /// An SMI waits.
    pub pending: bool,
    /// It was entered from the handler of an NMI.
    pub smm_inside_nmi: bool,
    /// An INIT waits for its end.
    pub latched_init: bool,
}

impl EventState {
    pub(super) fn check(&self, path: &str) -> Result<(), VmError> {
        if let Some(ExceptionState { vector, .. }) = self.exception
            && (vector > MAX_EXCEPTION || vector == NMI)
        {
            let acceptable = format!("0 to {MAX_EXCEPTION}, and not {NMI}");
            return Err(bad(format!("{path}.exception.vector"), vector, acceptable));
        }
        at_most(path, "shadow", self.shadow, 3_u8)?;
        at_most(path, "sipi_vector", self.sipi_vector, u8::MAX)
    }
}
