//! Saved PCs that this host can't take: each is refused, and the error names the field.

use crate::support::{NOP, POWER_OFF, Running, Sink};
use guest_debug::Arm64;
use guest_debug::kvm::HostArch;
use reference_vmm::config::{DebugLimits, DebugMode};
use reference_vmm::error::VmError;
use reference_vmm::guest::Guest;
use reference_vmm::kvm::{Machine, Vm};
use reference_vmm::operations::Operations as _;
use reference_vmm::snapshot::Snapshot;
use reference_vmm::state::VmState;
use reference_vmm::state::x86_64::{EventState, ExceptionState, MsrState, XcrState};
use vmm_sys_util::tempdir::TempDir;

fn restore(state: &VmState<HostArch>) -> Result<Vm, VmError> {
    let machine = Machine::like(&state.machine, Box::<Sink>::default())?;
    Vm::restored(machine, state, DebugMode::Run, &DebugLimits::default())
}

/// A VM that was saved before its first instruction.
fn saved() -> Option<(TempDir, VmState<HostArch>)> {
    let vm = Running::start(&[NOP, POWER_OFF], 2, DebugMode::Hold)?;
    let directory = TempDir::new().unwrap();
    vm.vm.snapshot(&directory.as_path().join("snapshot"), &mut drop).unwrap();
    let snapshot = Snapshot::<HostArch>::open(&directory.as_path().join("snapshot")).unwrap();
    Some((directory, snapshot.state))
}

#[test]
fn what_kvm_does_not_take_is_named() {
    type Change = fn(&mut VmState<HostArch>);
    let cases: [(&str, Change); 8] = [
        ("machine.cpuid, leaf 0x1 index 0, ecx", |s| {
            let leaf = s.machine.features.cpuid.iter_mut().find(|leaf| leaf.function == 1).unwrap();
            leaf.ecx = u32::MAX;
        }),
        ("vcpus[0].sregs", |s| s.vcpus[0].sregs.cr4 |= 1 << 40),
        ("vcpus[1].sregs", |s| s.vcpus[1].sregs.cr4 |= 1 << 31),
        ("vcpus[0].xsave", |s| s.vcpus[0].xsave[512 + 7] = 0xff),
        ("vcpus[0].xcrs", |s| s.vcpus[0].xcrs = vec![XcrState { xcr: 0, value: 0 }]),
        ("vcpus[0].msrs, index 0x12345678", |s| s.vcpus[0].msrs.push(MsrState { index: 0x1234_5678, value: 1 })),
        ("vcpus[0].events.exception.vector", |s| {
            let exception = Some(ExceptionState { vector: 40, error_code: None });
            s.vcpus[0].events = EventState { exception, ..s.vcpus[0].events };
        }),
        ("vcpus", |s| drop(s.vcpus.pop())),
    ];
    let Some((_directory, good)) = saved() else { return };
    restore(&good).unwrap();
    for (field, change) in cases {
        let mut state = good.clone();
        change(&mut state);
        match restore(&state) {
            Err(VmError::State { field: found, .. }) => assert!(found.starts_with(field), "{found}, not {field}"),
            Err(error) => panic!("{field}: {error}"),
            Ok(_) => panic!("{field} was taken"),
        }
    }
}

#[test]
fn a_snapshot_and_a_session_of_another_architecture_are_refused() {
    let Some((directory, good)) = saved() else { return };
    let error = Snapshot::<Arm64>::open(&directory.as_path().join("snapshot")).unwrap_err().to_string();
    assert!(error.contains("architecture is x86_64; it can be aarch64 here"), "{error}");
    let mut state = good.clone();
    let mut session = (**state.guest_debug.as_ref().unwrap()).clone();
    session.architecture = <Arm64 as guest_debug::Arch>::ARCHITECTURE;
    state.guest_debug = Some(session.into());
    let error = restore(&state).map(drop).unwrap_err().to_string();
    assert!(error.contains("aarch64") && error.contains("x86_64"), "{error}");
    assert_eq!(HostArch::ram(8).len(), 1);
}
