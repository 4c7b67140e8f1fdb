//! Width of linear addresses.

use std::fmt;

/// Bits of a linear address in 64-bit mode: what CR4.LA57 decides. The bits above repeat the highest one (SDM 4.1.1 and
/// volume 1, 3.3.7.1 "Canonical Addressing"; APM 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaBits {
    /// 4-level paging.
    Bits48,
    /// 5-level paging.
    Bits57,
}

impl VaBits {
    /// The number of bits.
    pub const fn get(self) -> u32 {
        match self {
            Self::Bits48 => 48,
            Self::Bits57 => 57,
        }
    }

    /// Whether the bits above the width repeat its highest bit.
    pub const fn is_canonical(self, address: u64) -> bool {
        let unused = 64 - self.get();
        ((address << unused) as i64 >> unused) as u64 == address
    }
}

impl fmt::Display for VaBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_both_holes() {
        for (va, low, high) in [
            (VaBits::Bits48, 0x0000_7fff_ffff_ffff, 0xffff_8000_0000_0000),
            (VaBits::Bits57, 0x00ff_ffff_ffff_ffff, 0xff00_0000_0000_0000),
        ] {
            for address in [0, low, high, u64::MAX] {
                assert!(va.is_canonical(address), "{address:#x} in {va} bits");
            }
            for address in [low + 1, high - 1, 1 << 62] {
                assert!(!va.is_canonical(address), "{address:#x} in {va} bits");
            }
        }
    }
}
