//! The parts of an x86_64 guest: structures of our own with KVM's names of fields, so that a file does not depend on how
//! KVM lays them out.

mod cpuid;
mod devices;
mod events;

pub use cpuid::{CpuidLeaf, Features};
pub use devices::{Devices, IoApicState, PicState, PitChannelState, PitState};
pub use events::{EventState, ExceptionState, InterruptState, NmiState, SmiState};

use super::bad;
use crate::error::VmError;
use crate::guest::Part;
use serde::{Deserialize, Serialize};
use std::fmt::LowerHex;

/// Bytes of `struct kvm_xsave`. An XSAVE area is larger only for features that a process has to ask the kernel for.
pub const XSAVE_SIZE: usize = 4096;
/// Bytes of `struct kvm_lapic_state`: the page of registers up to its last one.
pub const LAPIC_SIZE: usize = 1024;
/// The greatest KVM_MP_STATE of an x86_64 vCPU, KVM_MP_STATE_SIPI_RECEIVED.
const MAX_MP_STATE: u32 = 4;
/// As many as KVM lists for us at most.
const MAX_MSRS: usize = 256;
/// XCRs in `struct kvm_xcrs`.
const MAX_XCRS: usize = 16;

/// Bits of RFLAGS that are defined, or always set (SDM volume 1, 3.4.3).
const RFLAGS: u64 = 0x003f_7fd7;
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// L of a segment's access rights.
const LONG: u32 = 1 << 13;
/// What access rights have: type, S, DPL, P, AVL, L, D/B, G, and that the segment is unusable.
const ACCESS: u32 = 0x1_f0ff;

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// KVM_GET_MP_STATE: whether it runs, is halted, or waits for INIT or SIPI.
    pub mp_state: u32,
    /// KVM_GET_REGS.
    pub regs: GeneralRegisters,
    /// KVM_GET_SREGS.
    pub sregs: SystemRegisters,
    /// KVM_GET_DEBUGREGS: those of the guest itself, whatever a debugger has set.
    pub debug_regs: DebugRegisters,
    /// KVM_GET_XCRS; none on a host without XSAVE.
    pub xcrs: Vec<XcrState>,
    /// KVM_GET_XSAVE: x87, SSE, AVX and what else the host has, in the standard form (SDM volume 1, 13.4).
    #[serde(with = "hex::serde")]
    pub xsave: Vec<u8>,
    /// KVM_GET_LAPIC.
    #[serde(with = "hex::serde")]
    pub lapic: Vec<u8>,
    /// Every MSR that KVM lists and lets be read, in the order in which they are written.
    pub msrs: Vec<MsrState>,
    /// KVM_GET_VCPU_EVENTS.
    pub events: EventState,
}

/// Integer registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the SDM")]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// Segments, control registers, and where descriptor tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the SDM")]
pub struct SystemRegisters {
    pub cs: SegmentState,
    pub ds: SegmentState,
    pub es: SegmentState,
    pub fs: SegmentState,
    pub gs: SegmentState,
    pub ss: SegmentState,
    pub tr: SegmentState,
    pub ldt: SegmentState,
    pub gdt: TableState,
    pub idt: TableState,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// A segment register with what the CPU has cached of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentState {
    /// Selector.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u32,
    /// Access rights in the layout of the VMCS (SDM volume 3, table 24-2).
    pub access: u32,
}

/// Where a descriptor table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableState {
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// Debug registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub db: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// An extended control register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct XcrState {
    /// Its number.
    pub xcr: u32,
    /// Its value.
    pub value: u64,
}

/// A model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrState {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

impl Part for VcpuState {
    fn check(&self, path: &str) -> Result<(), VmError> {
        let Self { mp_state, regs, sregs, debug_regs, xcrs, xsave, lapic, msrs, events } = self;
        at_most(path, "mp_state", *mp_state, MAX_MP_STATE)?;
        only(&format!("{path}.regs"), "rflags", regs.rflags, RFLAGS)?;
        sregs.check(&format!("{path}.sregs"))?;
        for (name, value) in [("dr6", debug_regs.dr6), ("dr7", debug_regs.dr7)] {
            only(&format!("{path}.debug_regs"), name, value, u32::MAX.into())?;
        }
        has(path, "xsave", xsave.len(), XSAVE_SIZE)?;
        has(path, "lapic", lapic.len(), LAPIC_SIZE)?;
        for (name, count, most) in [("xcrs", xcrs.len(), MAX_XCRS), ("msrs", msrs.len(), MAX_MSRS)] {
            if count > most {
                return Err(bad(format!("{path}.{name}"), count, format!("at most {most} entries")));
            }
        }
        events.check(&format!("{path}.events"))
    }
}

impl SystemRegisters {
    /// What KVM asks of them (`kvm_is_valid_sregs`), register by register, so that an error can name one.
    fn check(&self, path: &str) -> Result<(), VmError> {
        let Self { cs, ds, es, fs, gs, ss, tr, ldt, .. } = *self;
        let segments =
            [("cs", cs), ("ds", ds), ("es", es), ("fs", fs), ("gs", gs), ("ss", ss), ("tr", tr), ("ldt", ldt)];
        for (name, segment) in segments {
            only(path, &format!("{name}.access"), segment.access, ACCESS)?;
        }
        let Self { cr0, cr4, efer, .. } = *self;
        let wrong =
            |name, value: u64, acceptable| Err(bad(format!("{path}.{name}"), format!("{value:#x}"), acceptable));
        only(path, "cr0", cr0, u32::MAX.into())?;
        if cr0 & CR0_PG != 0 && cr0 & CR0_PE == 0 {
            return wrong("cr0", cr0, "with PG only if with PE");
        }
        if cr0 & CR0_NW != 0 && cr0 & CR0_CD == 0 {
            return wrong("cr0", cr0, "with NW only if with CD");
        }
        let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
        if (efer & EFER_LMA != 0) != long {
            return wrong("efer", efer, "with LMA where it has LME and CR0 has PG, and nowhere else");
        }
        if long && cr4 & CR4_PAE == 0 {
            return wrong("cr4", cr4, "with PAE, as EFER has LMA");
        }
        if !long && cs.access & LONG != 0 {
            return wrong("cs.access", cs.access.into(), "without L, as EFER has no LMA");
        }
        only(path, "cr8", self.cr8, 15)
    }
}

/// Checks a number that has a greatest value.
fn at_most(path: &str, name: &str, value: impl Into<u64>, most: impl Into<u64>) -> Result<(), VmError> {
    let (value, most) = (value.into(), most.into());
    if value > most { Err(bad(format!("{path}.{name}"), value, format!("0 to {most}"))) } else { Ok(()) }
}

/// Checks that no other bits are set.
fn only<T: LowerHex + Copy + Into<u64>>(path: &str, name: &str, value: T, bits: T) -> Result<(), VmError> {
    if value.into() & !bits.into() != 0 {
        return Err(bad(format!("{path}.{name}"), format!("{value:#x}"), format!("of the bits {bits:#x}")));
    }
    Ok(())
}

fn has(path: &str, name: &str, length: usize, expected: usize) -> Result<(), VmError> {
    if length == expected {
        return Ok(());
    }
    Err(bad(format!("{path}.{name}"), format!("{length} bytes"), format!("{expected} bytes")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::boot;
    use super::*;
    use crate::state::{MachineState, VM_STATE_VERSION, VmState};
    use guest_debug::state::Architecture;
    use guest_debug::{Arm64, X86_64};

    /// A state of one vCPU in 64-bit mode.
    pub(crate) fn sample() -> VmState<X86_64> {
        let code = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xa09b };
        let vcpu = VcpuState {
            mp_state: 0,
            regs: GeneralRegisters { rip: 0x10_0000, rflags: 2, ..GeneralRegisters::default() },
            sregs: SystemRegisters {
                cs: code,
                cr0: CR0_PE | CR0_PG,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..SystemRegisters::default()
            },
            debug_regs: DebugRegisters { db: [1, 2, 3, 4], dr6: 0xffff_0ff0, dr7: 0x400 },
            xcrs: vec![XcrState { xcr: 0, value: 7 }],
            xsave: vec![0; XSAVE_SIZE],
            lapic: vec![0; LAPIC_SIZE],
            msrs: vec![MsrState { index: 0x10, value: 12 }],
            events: EventState::default(),
        };
        let leaf = CpuidLeaf { function: 1, ecx: 1, ..CpuidLeaf::default() };
        VmState {
            version: VM_STATE_VERSION,
            architecture: Architecture::X86_64,
            machine: MachineState {
                cpus: 1,
                memory_mib: 8,
                features: Features { cpuid: vec![leaf], tsc_khz: Some(2_000_000) },
            },
            boot: boot(),
            vcpus: vec![vcpu],
            devices: Devices::default(),
            serial: vm_superio::SerialState::default().into(),
            guest_debug: None,
        }
    }

    #[test]
    fn json_round_trip() {
        let state = sample();
        state.check().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""architecture":"x86_64""#) && text.contains(r#""ioapic":"#), "{text}");
        assert_eq!(serde_json::from_str::<VmState<X86_64>>(&text).unwrap(), state);
    }

    #[test]
    fn each_architecture_refuses_the_other() {
        let mut mine = sample();
        mine.architecture = Architecture::Aarch64;
        assert!(mine.check().unwrap_err().to_string().contains("architecture is aarch64; it can be x86_64 here"));
        let mut other = super::super::tests::sample();
        other.architecture = Architecture::X86_64;
        let error = VmState::<Arm64>::check(&other).unwrap_err().to_string();
        assert!(error.contains("architecture is x86_64; it can be aarch64 here"), "{error}");
    }

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut VmState<X86_64>);
        let cases: [(&str, Change); 36] = [
            ("version", |s| s.version = VM_STATE_VERSION + 1),
            ("machine.cpus", |s| s.machine.cpus = 255),
            ("machine.memory_mib", |s| s.machine.memory_mib = 0),
            ("machine.cpuid", |s| s.machine.features.cpuid = vec![CpuidLeaf::default(); 81]),
            ("machine.cpuid", |s| s.machine.features.cpuid.clear()),
            ("machine.tsc_khz", |s| s.machine.features.tsc_khz = Some(0)),
            ("vcpus", |s| s.vcpus.clear()),
            ("vcpus[0].mp_state", |s| s.vcpus[0].mp_state = 5),
            ("vcpus[0].regs.rflags", |s| s.vcpus[0].regs.rflags = 1 << 22),
            ("vcpus[0].sregs.ss.access", |s| s.vcpus[0].sregs.ss.access = 0x100),
            ("vcpus[0].sregs.cs.access", |s| {
                s.vcpus[0].sregs = SystemRegisters { cs: s.vcpus[0].sregs.cs, ..SystemRegisters::default() }
            }),
            ("vcpus[0].sregs.cr0", |s| s.vcpus[0].sregs.cr0 &= !CR0_PE),
            ("vcpus[0].sregs.cr0", |s| s.vcpus[0].sregs.cr0 |= CR0_NW),
            ("vcpus[0].sregs.cr0", |s| s.vcpus[0].sregs.cr0 |= 1 << 32),
            ("vcpus[0].sregs.cr4", |s| s.vcpus[0].sregs.cr4 = 0),
            ("vcpus[0].sregs.efer", |s| s.vcpus[0].sregs.efer = EFER_LMA),
            ("vcpus[0].sregs.efer", |s| s.vcpus[0].sregs.efer = EFER_LME),
            ("vcpus[0].sregs.cr8", |s| s.vcpus[0].sregs.cr8 = 16),
            ("vcpus[0].debug_regs.dr6", |s| s.vcpus[0].debug_regs.dr6 = 1 << 32),
            ("vcpus[0].debug_regs.dr7", |s| s.vcpus[0].debug_regs.dr7 = 1 << 63),
            ("vcpus[0].xcrs", |s| s.vcpus[0].xcrs = vec![XcrState { xcr: 0, value: 1 }; 17]),
            ("vcpus[0].xsave", |s| s.vcpus[0].xsave.truncate(512)),
            ("vcpus[0].lapic", |s| s.vcpus[0].lapic.push(0)),
            ("vcpus[0].msrs", |s| s.vcpus[0].msrs = vec![s.vcpus[0].msrs[0]; 257]),
            ("vcpus[0].events.exception.vector", |s| {
                s.vcpus[0].events.exception = Some(ExceptionState { vector: 32, error_code: None });
            }),
            ("vcpus[0].events.exception.vector", |s| {
                s.vcpus[0].events.exception = Some(ExceptionState { vector: 2, error_code: None });
            }),
            ("vcpus[0].events.shadow", |s| s.vcpus[0].events.shadow = 4),
            ("vcpus[0].events.sipi_vector", |s| s.vcpus[0].events.sipi_vector = 256),
            ("pics[1].init_state", |s| s.devices.pics[1].init_state = 4),
            ("pics[0].poll", |s| s.devices.pics[0].poll = 2),
            ("ioapic.irr", |s| s.devices.ioapic.irr = 1 << 24),
            ("ioapic.id", |s| s.devices.ioapic.id = 16),
            ("pit.channels[2].mode", |s| s.devices.pit.channels[2].mode = 6),
            ("pit.channels[0].count", |s| s.devices.pit.channels[0].count = 0x1_0001),
            ("pit.flags", |s| s.devices.pit.flags = 8),
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
