//! The parts of an arm64 guest. Values are KVM's own: register ids and device attributes.

use super::bad;
use crate::error::VmError;
use crate::guest::Part;
use serde::{Deserialize, Serialize};

/// The most registers that a vCPU may bring: KVM has fewer than 1,000.
const MAX_REGISTERS: usize = 4096;
/// Bytes of the largest register there is: KVM's size field ends at 2,048 bits.
const MAX_REGISTER_SIZE: usize = 256;
/// Words of features in `struct kvm_vcpu_init`.
pub const VCPU_FEATURE_WORDS: usize = 7;
/// Bytes of the KVM_REG_ARM64_SVE_VLS pseudo-register.
pub const SVE_VLS_SIZE: usize = 64;

/// What every vCPU is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// As KVM_ARM_VCPU_INIT takes them, without KVM_ARM_VCPU_POWER_OFF.
    pub vcpu_features: Vec<u32>,
    /// Vector lengths of SVE (KVM_REG_ARM64_SVE_VLS), where the guest has SVE.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub sve_vls: Option<Vec<u8>>,
}

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// KVM_GET_MP_STATE: whether it runs or waits to be powered on.
    pub mp_state: u32,
    /// An SError is pending (KVM_GET_VCPU_EVENTS).
    pub serror_pending: bool,
    /// Its syndrome, where the vCPU has one to give.
    pub serror_esr: Option<u64>,
    /// Every register that KVM_GET_REG_LIST names, in KVM's order.
    pub registers: Vec<RegisterState>,
}

/// A register of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    /// KVM's number for it.
    pub id: u64,
    /// Its value, little-endian; in hexadecimal in text formats.
    #[serde(with = "hex::serde")]
    pub value: Vec<u8>,
}

/// The interrupt controller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Devices {
    /// Its registers, in the order in which they are written.
    pub gic: GicState,
}

/// All state of a GIC that a guest can set, in the order in which it is to be written back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GicState(pub Vec<GicRegister>);

/// A register of the GIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicRegister {
    /// Attribute group of the KVM device.
    pub group: u32,
    /// Attribute.
    pub attr: u64,
    /// Its value.
    pub value: u64,
}

impl Part for Features {
    fn check(&self, path: &str) -> Result<(), VmError> {
        if self.vcpu_features.len() != VCPU_FEATURE_WORDS {
            let acceptable = format!("{VCPU_FEATURE_WORDS} words");
            return Err(bad(format!("{path}.vcpu_features"), self.vcpu_features.len(), acceptable));
        }
        match &self.sve_vls {
            Some(vls) if vls.len() != SVE_VLS_SIZE => {
                Err(bad(format!("{path}.sve_vls"), vls.len(), format!("{SVE_VLS_SIZE} bytes")))
            }
            _ => Ok(()),
        }
    }
}

impl Part for VcpuState {
    fn check(&self, path: &str) -> Result<(), VmError> {
        if self.registers.len() > MAX_REGISTERS {
            let field = format!("{path}.registers");
            return Err(bad(field, self.registers.len(), format!("at most {MAX_REGISTERS}")));
        }
        for register in &self.registers {
            let size = register_size(register.id);
            if register.value.len() != size || size > MAX_REGISTER_SIZE {
                let field = format!("{path}.registers, id {:#x}", register.id);
                return Err(bad(field, format!("{} bytes", register.value.len()), format!("{size} bytes")));
            }
        }
        Ok(())
    }
}

/// KVM looks at each register when it is written.
impl Part for Devices {
    fn check(&self, _: &str) -> Result<(), VmError> {
        Ok(())
    }
}

/// Bytes of a register, from KVM's number for it (KVM_REG_SIZE_MASK, bits 55:52: the logarithm).
pub fn register_size(id: u64) -> usize {
    1 << (id >> 52 & 15)
}

/// [`hex::serde`] for what may be absent.
mod hex_option {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => to.serialize_some(&hex::encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| hex::decode(text).map_err(serde::de::Error::custom)).transpose()
    }
}
