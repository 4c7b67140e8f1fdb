//! A VM as plain data: everything but its memory, as a snapshot and a migration carry it.
//!
//! The values are KVM's own (register ids, device attributes), since the host that takes them is KVM on the same
//! architecture. What comes back is untrusted: [`VmState::check`] looks at what can be checked without a VM, and KVM
//! refuses the rest register by register.

use crate::config::VmConfig;
use crate::error::VmError;
use guest_debug::state::{Architecture, GuestDebugState};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Version of [`VmState`] that this program writes, and the newest that it reads.
pub const VM_STATE_VERSION: u32 = 1;

/// The most registers that a vCPU may bring: KVM has fewer than 1,000.
const MAX_REGISTERS: usize = 4096;
/// Bytes of the largest register there is: KVM's size field ends at 2,048 bits.
const MAX_REGISTER_SIZE: usize = 256;
/// Input that vm-superio's serial port holds.
const SERIAL_FIFO_SIZE: usize = 64;

/// A VM without its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// [`VM_STATE_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// What the machine is made of.
    pub machine: MachineState,
    /// What it boots when the guest resets itself.
    pub boot: BootState,
    /// The vCPUs, in the order of their indices.
    pub vcpus: Vec<VcpuState>,
    /// Registers of the interrupt controller, in the order in which they are written.
    pub gic: GicState,
    /// The serial port.
    pub serial: SerialState,
    /// The debug session. A VMM without a debugger ignores it, and a snapshot without one is a VM that nobody debugged.
    #[serde(rename = "guest-debug", default, skip_serializing_if = "Option::is_none")]
    pub guest_debug: Option<Arc<GuestDebugState>>,
}

/// What a machine is made of: the host must have all of it before anything is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Features of every vCPU, as KVM_ARM_VCPU_INIT takes them, without KVM_ARM_VCPU_POWER_OFF.
    pub vcpu_features: Vec<u32>,
    /// Vector lengths of SVE (KVM_REG_ARM64_SVE_VLS), where the guest has SVE.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub sve_vls: Option<Vec<u8>>,
}

/// What a machine boots. Files by their paths: they are needed again only if the guest resets itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootState {
    /// See [`VmConfig::kernel`].
    pub kernel: PathBuf,
    /// See [`VmConfig::initrd`].
    pub initrd: Option<PathBuf>,
    /// See [`VmConfig::cmdline`].
    pub cmdline: String,
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

/// The serial port's registers; see [`vm_superio::SerialState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Input that the guest has not read yet.
    #[serde(with = "hex::serde")]
    pub input: Vec<u8>,
}

impl VmState {
    /// Checks what can be checked without a VM.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    pub fn check(&self) -> Result<(), VmError> {
        if !(1..=VM_STATE_VERSION).contains(&self.version) {
            return Err(bad("version", self.version, format!("1 to {VM_STATE_VERSION}")));
        }
        if self.architecture != Architecture::Aarch64 {
            return Err(bad("architecture", self.architecture, Architecture::Aarch64.to_string()));
        }
        self.machine.check()?;
        if self.vcpus.len() != self.machine.cpus as usize {
            return Err(bad("vcpus", self.vcpus.len(), format!("{}, as machine.cpus says", self.machine.cpus)));
        }
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.check(index)?;
        }
        if self.serial.input.len() > SERIAL_FIFO_SIZE {
            let acceptable = format!("at most {SERIAL_FIFO_SIZE} bytes");
            return Err(bad("serial.input", self.serial.input.len(), acceptable));
        }
        Ok(())
    }

    /// The settings of this VM.
    pub fn config(&self) -> VmConfig {
        VmConfig {
            cpus: self.machine.cpus,
            memory_mib: self.machine.memory_mib,
            initrd: self.boot.initrd.clone(),
            cmdline: self.boot.cmdline.clone(),
            ..VmConfig::new(self.boot.kernel.clone())
        }
    }
}

impl MachineState {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    pub fn check(&self) -> Result<(), VmError> {
        let sizes = VmConfig { cpus: self.cpus, memory_mib: self.memory_mib, ..VmConfig::new("") };
        sizes.check().map_err(|error| match error {
            VmError::Setting { name, value, acceptable } => {
                let field = if name == "--cpus" { "machine.cpus" } else { "machine.memory_mib" };
                VmError::State { field: field.to_owned(), value, acceptable }
            }
            error => error,
        })?;
        if self.vcpu_features.len() != VCPU_FEATURE_WORDS {
            let acceptable = format!("{VCPU_FEATURE_WORDS} words");
            return Err(bad("machine.vcpu_features", self.vcpu_features.len(), acceptable));
        }
        match &self.sve_vls {
            Some(vls) if vls.len() != SVE_VLS_SIZE => {
                Err(bad("machine.sve_vls", vls.len(), format!("{SVE_VLS_SIZE} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Words of features in `struct kvm_vcpu_init`.
pub const VCPU_FEATURE_WORDS: usize = 7;
/// Bytes of the KVM_REG_ARM64_SVE_VLS pseudo-register.
pub const SVE_VLS_SIZE: usize = 64;

impl VcpuState {
    fn check(&self, index: usize) -> Result<(), VmError> {
        if self.registers.len() > MAX_REGISTERS {
            let field = format!("vcpus[{index}].registers");
            return Err(bad(field, self.registers.len(), format!("at most {MAX_REGISTERS}")));
        }
        for register in &self.registers {
            let size = register_size(register.id);
            if register.value.len() != size || size > MAX_REGISTER_SIZE {
                let field = format!("vcpus[{index}].registers, id {:#x}", register.id);
                return Err(bad(field, format!("{} bytes", register.value.len()), format!("{size} bytes")));
            }
        }
        Ok(())
    }
}

/// Bytes of a register, from KVM's number for it (KVM_REG_SIZE_MASK, bits 55:52: the logarithm).
pub fn register_size(id: u64) -> usize {
    1 << (id >> 52 & 15)
}

fn bad(field: impl Into<String>, value: impl std::fmt::Display, acceptable: String) -> VmError {
    VmError::State { field: field.into(), value: value.to_string(), acceptable }
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl From<&SerialState> for vm_superio::SerialState {
    fn from(state: &SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        }
    }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A state of one vCPU with two registers.
    pub(crate) fn sample() -> VmState {
        VmState {
            version: VM_STATE_VERSION,
            architecture: Architecture::Aarch64,
            machine: MachineState { cpus: 1, memory_mib: 8, vcpu_features: vec![4, 0, 0, 0, 0, 0, 0], sve_vls: None },
            boot: BootState { kernel: "/boot/Image".into(), initrd: None, cmdline: "quiet".to_owned() },
            vcpus: vec![VcpuState {
                mp_state: 0,
                serror_pending: false,
                serror_esr: None,
                registers: vec![
                    RegisterState { id: 0x6030_0000_0010_0040, value: 0x8000_0000_u64.to_le_bytes().to_vec() },
                    RegisterState { id: 0x6020_0000_0010_00d4, value: vec![1, 2, 3, 4] },
                ],
            }],
            gic: GicState(vec![GicRegister { group: 1, attr: 0, value: 0x12 }]),
            serial: vm_superio::SerialState::default().into(),
            guest_debug: None,
        }
    }

    #[test]
    fn json_round_trip() {
        let state = sample();
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""value":"0000008000000000""#), "{text}");
        assert!(!text.contains("guest-debug"), "{text}");
        assert_eq!(serde_json::from_str::<VmState>(&text).unwrap(), state);
        let with_sve = MachineState { sve_vls: Some(vec![1; SVE_VLS_SIZE]), ..state.machine };
        let text = serde_json::to_string(&with_sve).unwrap();
        assert_eq!(serde_json::from_str::<MachineState>(&text).unwrap(), with_sve);
    }

    #[test]
    fn each_bad_field_is_named() {
        sample().check().unwrap();
        type Change = fn(&mut VmState);
        let cases: [(&str, Change); 10] = [
            ("version", |s| s.version = VM_STATE_VERSION + 1),
            ("version", |s| s.version = 0),
            ("architecture", |s| s.architecture = Architecture::X86_64),
            ("machine.cpus", |s| s.machine.cpus = 0),
            ("machine.memory_mib", |s| s.machine.memory_mib = 1 << 40),
            ("machine.vcpu_features", |s| s.machine.vcpu_features = vec![1]),
            ("machine.sve_vls", |s| s.machine.sve_vls = Some(vec![1])),
            ("vcpus", |s| s.vcpus.clear()),
            ("vcpus[0].registers", |s| s.vcpus[0].registers[1].value.push(0)),
            ("serial.input", |s| s.serial.input = vec![0; 1000]),
        ];
        for (field, change) in cases {
            let mut state = sample();
            change(&mut state);
            match state.check() {
                Err(VmError::State { field: found, .. }) => assert!(found.starts_with(field), "{found}, not {field}"),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
