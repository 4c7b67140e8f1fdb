//! What every vCPU is given when it is made: its CPUID, and the rate of its time-stamp counter.

use super::bad;
use crate::error::VmError;
use crate::guest::Part;
use serde::{Deserialize, Serialize};

/// As many leaves as KVM takes from us.
pub const MAX_LEAVES: usize = 80;

/// What every vCPU is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// CPUID, but for APIC ids.
    pub cpuid: Vec<CpuidLeaf>,
    /// Rate of the time-stamp counter in kHz, where KVM can say.
    pub tsc_khz: Option<u32>,
}

/// A leaf of CPUID: `struct kvm_cpuid_entry2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the SDM")]
pub struct CpuidLeaf {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question, where it matters.
    pub index: u32,
    /// KVM_CPUID_FLAG_...
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Registers of leaves that are nothing but bits of features (SDM volume 2, CPUID; APM volume 3, appendix E; kernel:
/// Documentation/virt/kvm/x86/cpuid.rst): function, index, and which of EAX, EBX, ECX and EDX.
const FEATURE_BITS: [(u32, u32, [bool; 4]); 10] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (7, 2, [false, false, false, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
];
const NAMES: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

impl CpuidLeaf {
    fn registers(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }
}

impl Part for Features {
    fn check(&self, path: &str) -> Result<(), VmError> {
        if !(1..=MAX_LEAVES).contains(&self.cpuid.len()) {
            return Err(bad(format!("{path}.cpuid"), self.cpuid.len(), format!("1 to {MAX_LEAVES} leaves")));
        }
        match self.tsc_khz {
            Some(0) => Err(bad(format!("{path}.tsc_khz"), 0, "more than 0")),
            _ => Ok(()),
        }
    }
}

impl Features {
    /// Whether a host that offers this has every feature that these are of, on a CPU of the same vendor. KVM itself takes any
    /// CPUID, and the guest would find out.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the leaf and the register that has too much.
    pub fn fit(&self, offered: &[CpuidLeaf]) -> Result<(), VmError> {
        let find = |list: &[CpuidLeaf], function, index| {
            let is = |leaf: &&CpuidLeaf| leaf.function == function && leaf.index == index;
            list.iter().find(is).map_or([0; 4], CpuidLeaf::registers)
        };
        let vendor = |list| {
            let [_, b, c, d] = find(list, 0, 0);
            let bytes = [b, d, c].map(u32::to_le_bytes).concat();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (own, theirs) = (vendor(&self.cpuid), vendor(offered));
        if own != theirs {
            return Err(bad("machine.cpuid, leaf 0x0", format!("{own:?}"), format!("{theirs:?} on this host")));
        }
        for (function, index, registers) in FEATURE_BITS {
            let (wanted, has) = (find(&self.cpuid, function, index), find(offered, function, index));
            for (((name, counts), wanted), has) in NAMES.into_iter().zip(registers).zip(wanted).zip(has) {
                if counts && wanted & !has != 0 {
                    let field = format!("machine.cpuid, leaf {function:#x} index {index}, {name}");
                    return Err(bad(field, format!("{wanted:#x}"), format!("of the bits {has:#x} on this host")));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(edits: &[CpuidLeaf]) -> Features {
        // "GenuineIntel".
        let vendor = CpuidLeaf { ebx: 0x756e_6547, edx: 0x4965_6e69, ecx: 0x6c65_746e, ..CpuidLeaf::default() };
        Features { cpuid: [&[vendor], edits].concat(), tsc_khz: None }
    }

    #[test]
    fn a_host_with_less_is_named() {
        let leaf = |function, index, ecx| CpuidLeaf { function, index, ecx, ..CpuidLeaf::default() };
        let host = features(&[leaf(1, 0, 0b111), leaf(7, 0, 1)]).cpuid;
        for fine in [features(&[]), features(&[leaf(1, 0, 0b101)]), features(&[leaf(1, 0, 0b111), leaf(7, 0, 1)])] {
            fine.fit(&host).unwrap();
        }
        // Numbers, and not bits.
        features(&[leaf(4, 0, 9)]).fit(&host).unwrap();
        for (wanted, text) in [
            (leaf(1, 0, 0b1001), "machine.cpuid, leaf 0x1 index 0, ecx is 0x9; it can be of the bits 0x7 on this host"),
            (leaf(7, 0, 2), "leaf 0x7 index 0, ecx is 0x2"),
            (leaf(0xd, 1, 1), "leaf 0xd index 1, ecx is 0x1; it can be of the bits 0x0"),
        ] {
            let error = features(&[wanted]).fit(&host).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let other = Features { cpuid: vec![CpuidLeaf { ebx: 0x6874_7541, ..CpuidLeaf::default() }], tsc_khz: None };
        let error = other.fit(&host).unwrap_err().to_string();
        assert!(error.contains("Auth") && error.contains("\"GenuineIntel\" on this host"), "{error}");
    }
}
