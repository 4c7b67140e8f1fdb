//! Saved VMs put together from parts, as other formats' loaders do.

use guest_debug::arm64::Reg;
use guest_debug::kvm::regid;
use guest_debug::{DebugVcpu as _, GuestRam as _};
use reference_vmm::inspect::{Frozen, FrozenError, FrozenRegion, FrozenVcpu};
use std::io::Write as _;
use std::sync::Arc;
use vm_memory::GuestAddress;
use vmm_sys_util::tempfile::TempFile;

/// A file with the numbers from 0.
fn file() -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(&(0..=255).collect::<Vec<u8>>()).unwrap();
    file
}

fn region(file: &TempFile, address: u64, length: u64, offset: u64) -> FrozenRegion {
    let file = Arc::new(file.as_file().try_clone().unwrap());
    FrozenRegion { address: GuestAddress(address), length, file, offset }
}

fn vcpu() -> FrozenVcpu {
    FrozenVcpu::from_kvm(true, [(regid::encode(Reg::X(0)), vec![0; 8])])
}

fn frozen(memory: Vec<FrozenRegion>) -> Result<Frozen, FrozenError> {
    Frozen::new(vec![vcpu()], memory, None)
}

#[test]
fn regions_share_a_file_and_have_gaps() {
    let file = file();
    // Adjacent in memory, the wrong way round in the file; then a gap. No offset is a page's.
    let memory = vec![region(&file, 0x1000, 16, 33), region(&file, 0x1010, 16, 1), region(&file, 0x2000, 16, 100)];
    let frozen = frozen(memory).unwrap();
    let read = |address, length| {
        let mut data = vec![0; length];
        frozen.memory().read(GuestAddress(address), &mut data).map(|()| data)
    };
    assert_eq!(read(0x100e, 4).unwrap(), [47, 48, 1, 2]);
    assert_eq!(read(0x2000, 2).unwrap(), [100, 101]);
    for (address, length) in [(0xfff, 2), (0x101f, 2), (0x200f, 2), (0x1800, 1), (u64::MAX, 2)] {
        let error = read(address, length).unwrap_err();
        assert_eq!((error.address, error.length), (address, length));
    }
    assert!(frozen.memory().write(GuestAddress(0x1000), &[1]).is_err());
}

#[test]
fn parts_that_can_not_be_are_named() {
    let file = file();
    let good = || vec![region(&file, 0x1000, 16, 0)];
    frozen(good()).unwrap();
    let two =
        |address, length, offset| frozen(vec![region(&file, 0x1000, 16, 0), region(&file, address, length, offset)]);
    let order = FrozenError::Order { index: 1, address: GuestAddress(0x100f) };
    assert_eq!(two(0x100f, 16, 0).unwrap_err(), order);
    assert_eq!(two(u64::MAX, 2, 0).unwrap_err(), FrozenError::Wraps { index: 1, length: 2 });
    assert_eq!(two(0x2000, 2, u64::MAX).unwrap_err(), FrozenError::Wraps { index: 1, length: 2 });
    assert_eq!(two(0x2000, 2, i64::MAX as u64).unwrap_err(), FrozenError::Wraps { index: 1, length: 2 });
    let vcpus = |vcpus| Frozen::new(vcpus, good(), None);
    assert_eq!(vcpus(vec![]).unwrap_err(), FrozenError::NoVcpus);
    let short = FrozenVcpu::from_kvm(true, [(regid::encode(Reg::Pc), vec![0; 4])]);
    let register = FrozenError::Register { vcpu: 1, reg: Reg::Pc.into(), length: 4, expected: 8 };
    assert_eq!(vcpus(vec![vcpu(), short]).unwrap_err(), register);
}

#[test]
fn registers_without_a_name_are_left_out() {
    let value = |byte| vec![byte; 8];
    let pc = regid::encode(Reg::Pc);
    // KVM_REG_ARM_FW_REG 0.
    let vcpu = FrozenVcpu::from_kvm(true, [(pc, value(1)), (0x6030_0000_0014_0000, value(2)), (pc, value(3))]);
    assert_eq!(vcpu.reg_list().unwrap(), [Reg::Pc]);
    assert_eq!(vcpu.get_u64(Reg::Pc).unwrap(), 0x0303_0303_0303_0303, "the last one counts");
    assert!(vcpu.set_u64(Reg::Pc, 0).is_err() && vcpu.get_u64(Reg::X(0)).is_err());
    assert_eq!((vcpu.pstate(), vcpu.sp()), (None, None));
}
