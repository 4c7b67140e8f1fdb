//! A VM as plain data: everything but its memory, as a snapshot and a migration carry it.
//!
//! It is that of an architecture, which it names, and no other takes it. What comes back is untrusted: [`VmState::check`]
//! looks at what can be checked without a VM, and KVM refuses the rest register by register.

pub mod arm64;
mod serial;
pub mod x86_64;

pub use serial::SerialState;

use crate::config::VmConfig;
use crate::error::VmError;
use crate::guest::{Guest, Part as _};
use guest_debug::Arm64;
use guest_debug::state::{Architecture, GuestDebugState};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Version of [`VmState`] that this program writes, and the newest that it reads.
pub const VM_STATE_VERSION: u32 = 1;

/// A VM without its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct VmState<G: Guest = Arm64> {
    /// [`VM_STATE_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// What the machine is made of.
    pub machine: MachineState<G>,
    /// What it boots when the guest resets itself.
    pub boot: BootState,
    /// The vCPUs, in the order of their indices.
    pub vcpus: Vec<G::Vcpu>,
    /// Interrupt controllers and timers.
    #[serde(flatten)]
    pub devices: G::Devices,
    /// The serial port.
    pub serial: SerialState,
    /// The debug session. A VMM without a debugger ignores it, and a snapshot without one is a VM that nobody debugged.
    #[serde(rename = "guest-debug", default, skip_serializing_if = "Option::is_none")]
    pub guest_debug: Option<Arc<GuestDebugState>>,
}

/// What a machine is made of: the host must have all of it before anything is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct MachineState<G: Guest = Arm64> {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What every vCPU is given.
    #[serde(flatten)]
    pub features: G::Features,
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

/// What every state begins with, whatever its architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// [`VmState::version`].
    pub version: u32,
    /// [`VmState::architecture`].
    pub architecture: Architecture,
}

impl Header {
    /// Whether it is one of a guest of the architecture `G`.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    pub fn check<G: Guest>(&self) -> Result<(), VmError> {
        if !(1..=VM_STATE_VERSION).contains(&self.version) {
            return Err(bad("version", self.version, format!("1 to {VM_STATE_VERSION}")));
        }
        check_architecture::<G>(self.architecture)
    }
}

/// Whether a guest is one of the architecture `G`.
pub(crate) fn check_architecture<G: Guest>(found: Architecture) -> Result<(), VmError> {
    if found == G::ARCHITECTURE {
        return Ok(());
    }
    Err(bad("architecture", found, format!("{} here", G::ARCHITECTURE)))
}

impl<G: Guest> VmState<G> {
    /// Checks what can be checked without a VM.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    pub fn check(&self) -> Result<(), VmError> {
        Header { version: self.version, architecture: self.architecture }.check::<G>()?;
        self.machine.check()?;
        if self.vcpus.len() != self.machine.cpus as usize {
            return Err(bad("vcpus", self.vcpus.len(), format!("{}, as machine.cpus says", self.machine.cpus)));
        }
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.check(&format!("vcpus[{index}]"))?;
        }
        self.devices.check("")?;
        self.serial.check()
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

impl<G: Guest> MachineState<G> {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the field that is wrong.
    pub fn check(&self) -> Result<(), VmError> {
        let sizes = VmConfig { cpus: self.cpus, memory_mib: self.memory_mib, ..VmConfig::new("") };
        sizes.check::<G>().map_err(|error| match error {
            VmError::Setting { name, value, acceptable } => {
                let field = if name == "--cpus" { "machine.cpus" } else { "machine.memory_mib" };
                VmError::State { field: field.to_owned(), value, acceptable }
            }
            error => error,
        })?;
        self.features.check("machine")
    }
}

fn bad(field: impl Into<String>, value: impl std::fmt::Display, acceptable: impl Into<String>) -> VmError {
    VmError::State { field: field.into(), value: value.to_string(), acceptable: acceptable.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::arm64::{Devices, Features, GicRegister, GicState, RegisterState, SVE_VLS_SIZE, VcpuState};
    use super::*;

    pub(super) fn boot() -> BootState {
        BootState { kernel: "/boot/Image".into(), initrd: None, cmdline: "quiet".to_owned() }
    }

    /// A state of one vCPU with two registers.
    pub(crate) fn sample() -> VmState {
        VmState {
            version: VM_STATE_VERSION,
            architecture: Architecture::Aarch64,
            machine: MachineState {
                cpus: 1,
                memory_mib: 8,
                features: Features { vcpu_features: vec![4, 0, 0, 0, 0, 0, 0], sve_vls: None },
            },
            boot: boot(),
            vcpus: vec![VcpuState {
                mp_state: 0,
                serror_pending: false,
                serror_esr: None,
                registers: vec![
                    RegisterState { id: 0x6030_0000_0010_0040, value: 0x8000_0000_u64.to_le_bytes().to_vec() },
                    RegisterState { id: 0x6020_0000_0010_00d4, value: vec![1, 2, 3, 4] },
                ],
            }],
            devices: Devices { gic: GicState(vec![GicRegister { group: 1, attr: 0, value: 0x12 }]) },
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
        let with_sve = Features { sve_vls: Some(vec![1; SVE_VLS_SIZE]), ..state.machine.features };
        let text = serde_json::to_string(&with_sve).unwrap();
        assert_eq!(serde_json::from_str::<Features>(&text).unwrap(), with_sve);
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
            ("machine.vcpu_features", |s| s.machine.features.vcpu_features = vec![1]),
            ("machine.sve_vls", |s| s.machine.features.sve_vls = Some(vec![1])),
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
