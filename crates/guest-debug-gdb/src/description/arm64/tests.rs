use super::*;
use crate::description::Entry;
use crate::vm::VmError;

fn values(list: &[(Reg, u64)]) -> Values {
    list.iter().map(|(reg, value)| (*reg, value.to_le_bytes().to_vec())).collect()
}

fn names(description: &Description<Arm64>) -> Vec<&str> {
    description.entries.iter().map(|entry| entry.name.as_str()).collect()
}

#[test]
fn numbers_are_those_that_gdb_gives_by_itself() {
    let plain = Arm64::describe(&[Reg::V(0)], &Values::new());
    let at = |name: &str| names(&plain).iter().position(|other| *other == name);
    let expected =
        [("x0", 0), ("x30", 30), ("sp", SP), ("pc", PC), ("cpsr", 33), ("v0", 34), ("fpsr", 66), ("fpcr", 67)];
    for (name, number) in expected {
        assert_eq!(at(name), Some(number), "{name}");
    }
    assert_eq!(plain.general().len(), 68);
    let sve = Arm64::describe(&[Reg::V(0), Reg::Z(0)], &Values::new());
    let at = |name: &str| names(&sve).iter().position(|other| *other == name);
    for (name, number) in [("z0", 34), ("fpsr", 66), ("fpcr", 67), ("p0", 68), ("ffr", 84), ("vg", 85)] {
        assert_eq!(at(name), Some(number), "{name}");
    }
    assert_eq!(sve.general().len(), 86);
}

#[test]
fn nothing_is_described_that_the_vcpu_does_not_have() {
    let bare = Arm64::describe(&[], &Values::new());
    assert_eq!(bare.entries.len(), 34);
    assert!(!bare.xml().contains("fpu") && !bare.xml().contains("tls"));
    let authentic = values(&[(Reg::Sys(SysReg::ID_AA64ISAR2_EL1), 0x3000)]);
    assert!(Arm64::describe(&[Reg::Sys(SysReg::TCR_EL1)], &authentic).xml().contains("pauth_v2"));
    assert!(!Arm64::describe(&[], &authentic).xml().contains("pauth"), "the masks come from TCR_EL1");
}

#[test]
fn a_register_that_is_listed_twice_is_described_once() {
    let sp_el1 = Reg::Sys(SysReg::new(3, 4, 4, 1, 0));
    let description = Arm64::describe(&[Reg::SpEl1, sp_el1], &Values::new());
    assert_eq!(names(&description).iter().filter(|name| **name == "SP_EL1").count(), 1);
}

#[test]
fn vector_lengths_come_from_the_bitmap_whatever_is_in_it() {
    for (bitmap, expected) in [(0, 16), (1, 16), (0b1011, 64), (0x8000, 256), (u64::MAX, 256)] {
        assert_eq!(vectors::vector_length(&values(&[(Reg::SveVls, bitmap)])), expected);
    }
    assert_eq!(vectors::vector_length(&Values::new()), 16);
}

#[test]
fn constants_can_not_be_written() {
    let entry: Entry<Arm64> = Entry { name: "vg".to_owned(), size: 8, source: Source::Constant(4) };
    assert_eq!(entry.compose(&Values::new()), Some(4u64.to_le_bytes().to_vec()));
    assert!(matches!(entry.decompose(&[0; 8], &Values::new()), Err(VmError::Unsupported(_))));
    assert!(matches!(entry.decompose(&[0; 4], &Values::new()), Err(VmError::Other(_))));
}
