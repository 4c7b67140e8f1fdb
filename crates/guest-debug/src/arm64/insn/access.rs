//! How many bytes a load or store touches.

use super::{bits, is_load};

/// Largest block of DC ZVA and of a data cache line that the architecture allows, in bytes.
pub const MAX_BLOCK: u32 = 2048;
/// Reach of a memory copy or set instruction: FAR stays in the translation granule of the watched byte, of which 4 KiB
/// is the smallest. A debugger that looks further gains false hits and little else.
const MOPS_REACH: u32 = 4096;

/// The memory access of an instruction.
///
/// An access that sets neither `read` nor `write` does one of them, and only the syndrome says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Bytes from the lowest to the highest one accessed. With `dc_zva`, the most that a CPU may have, until
    /// [`Access::with_block_of`] says better.
    pub bytes: u32,
    /// It loads.
    pub read: bool,
    /// It stores.
    pub write: bool,
    /// It works on the aligned block of `bytes` bytes around its address: DC ZVA and its like.
    pub dc_zva: bool,
}

impl Access {
    /// This access, a block operation being as large as DCZID_EL0 says.
    #[must_use]
    pub const fn with_block_of(self, dczid: u64) -> Self {
        let bytes = 4 << (dczid & 0xf);
        Self { bytes: if self.dc_zva && bytes < self.bytes { bytes } else { self.bytes }, ..self }
    }

    const fn load(bytes: u32) -> Option<Self> {
        Some(Self { bytes, read: true, write: false, dc_zva: false })
    }

    const fn store(bytes: u32) -> Option<Self> {
        Some(Self { bytes, read: false, write: true, dc_zva: false })
    }

    const fn either(load: bool, bytes: u32) -> Option<Self> {
        Some(Self { bytes, read: load, write: !load, dc_zva: false })
    }

    const fn atomic(bytes: u32) -> Option<Self> {
        Some(Self { bytes, read: true, write: true, dc_zva: false })
    }

    const fn block(bytes: u32) -> Option<Self> {
        Some(Self { bytes, read: false, write: true, dc_zva: true })
    }
}

/// The size and direction of an instruction's memory access.
///
/// `None` for instructions that access no memory, for prefetches, for SVE and SME, whose extent depends on registers,
/// and for words that this decoder does not know. Unallocated words inside a known class may get an answer: an
/// instruction that raised a watchpoint is not one of them.
pub const fn access(word: u32) -> Option<Access> {
    match word & !0x1f {
        // DC ZVA, GVA and GZVA.
        0xd50b_7420 | 0xd50b_7460 | 0xd50b_7480 => return Access::block(MAX_BLOCK),
        // DC IVAC, IGVAC and IGDVAC: the only cache maintenance that watchpoints match.
        0xd508_7620 | 0xd508_7660 | 0xd508_76a0 => return Access::block(MAX_BLOCK),
        _ => {}
    }
    // Loads and stores have bit 27 set and bit 25 clear.
    if word & 0x0a00_0000 != 0x0800_0000 {
        return None;
    }
    let vector = word & 1 << 26 != 0;
    match (bits(word, 28, 2), vector) {
        (0b00, false) => exclusive_or_ordered(word),
        (0b00, true) if word >> 31 == 0 => structures(word),
        (0b00, true) => None,
        (0b01, _) => literal_and_others(word, vector),
        (0b10, _) => pair(word, vector),
        (_, _) => register(word, vector),
    }
}

/// Bytes of a general register access by its `size` field in bits 31:30.
const fn sized(word: u32) -> u32 {
    1 << (word >> 30)
}

/// `size` 001000/001001: exclusives, ordered accesses, compare and swap.
const fn exclusive_or_ordered(word: u32) -> Option<Access> {
    // Bits 24, 23 and 21: unprivileged or not, not exclusive, pair.
    let pair_bytes = if word & 1 << 30 == 0 { 8 } else { 16 };
    match (bits(word, 23, 2), bits(word, 21, 1)) {
        (0b00, 0) | (0b01, 0) | (0b10, 0) => Access::either(is_load(word), sized(word)),
        (0b00, _) if word >> 31 == 0 => Access::atomic(pair_bytes),
        (0b00, _) => Access::either(is_load(word), pair_bytes),
        (0b01, _) => Access::atomic(sized(word)),
        (0b11, 0) if word >> 31 == 0 => Access::atomic(16),
        (0b11, 0) => Access::atomic(sized(word)),
        _ => None,
    }
}

/// LD1 to LD4 and ST1 to ST4.
const fn structures(word: u32) -> Option<Access> {
    let vector_bytes = if word & 1 << 30 == 0 { 8 } else { 16 };
    if word & 1 << 24 == 0 {
        let registers = match bits(word, 12, 4) {
            0b0000 | 0b0010 => 4,
            0b0100 | 0b0110 => 3,
            0b1000 | 0b1010 => 2,
            0b0111 => 1,
            _ => return None,
        };
        return Access::either(is_load(word), registers * vector_bytes);
    }
    let elements = 1 + bits(word, 21, 1) + 2 * bits(word, 13, 1);
    let size = bits(word, 10, 2);
    let scale = match bits(word, 14, 2) {
        0b10 if size & 1 != 0 => 3,
        // Load and replicate: the element has the size of the lanes.
        0b11 => size,
        scale => scale,
    };
    Access::either(is_load(word), elements << scale)
}

/// `xx01`: literals, ordered unscaled accesses, tags, memory copy and set, atomics of other kinds.
const fn literal_and_others(word: u32, vector: bool) -> Option<Access> {
    let size = word >> 30;
    if word & 1 << 24 == 0 {
        return match (size, vector) {
            (0b11, _) => None,
            (0b01, false) => Access::load(8),
            (_, false) => Access::load(4),
            (_, true) => Access::load(4 << size),
        };
    }
    let opc = bits(word, 22, 2);
    let form = bits(word, 10, 2);
    if word & 1 << 21 == 0 {
        return match (form, vector) {
            (0b00, false) => Access::either(opc != 0, sized(word)),
            // SETP and its family, or CPYP and its family. Bit 26 is no vector bit here.
            (0b01, _) if opc == 3 => Access::store(MOPS_REACH),
            (0b01, _) => Some(Access { bytes: MOPS_REACH, read: false, write: false, dc_zva: false }),
            // Load-acquire and store-release of a pair, or of one register with writeback (bit 23).
            (0b10, false) if opc & 2 == 0 => Access::either(is_load(word), 2 * sized(word)),
            (0b10, false) => Access::either(is_load(word), sized(word)),
            (0b10, true) => Access::either(opc & 1 != 0, if opc & 2 != 0 { 16 } else { sized(word) }),
            // Guarded control stack.
            (_, false) => Access::store(8),
            (_, true) => None,
        };
    }
    match size {
        0b11 => tags(word),
        // RCW compare and swap, 128-bit and unprivileged atomics.
        0b00 | 0b01 => match (form, bits(word, 10, 6)) {
            (0b10, 0b000010) => Access::atomic(8),
            (0b11, 0b000011) | (0b00, _) => Access::atomic(16),
            (0b01, _) => Access::atomic(4 << size),
            _ => None,
        },
        _ => None,
    }
}

/// Loads and stores of allocation tags: a granule has 16 bytes.
const fn tags(word: u32) -> Option<Access> {
    match (bits(word, 22, 2), bits(word, 10, 2)) {
        (0b00, 0b00) => Access::block(MAX_BLOCK),
        (0b01, 0b00) => Access::load(16),
        (0b10, 0b00) => Some(Access { bytes: 256, read: false, write: true, dc_zva: true }),
        (_, 0b00) => Some(Access { bytes: 256, read: true, write: false, dc_zva: true }),
        (0b00 | 0b01, _) => Access::store(16),
        _ => Access::store(32),
    }
}

/// LDP and STP.
const fn pair(word: u32, vector: bool) -> Option<Access> {
    let load = is_load(word);
    let bytes = match (word >> 30, vector) {
        (opc, true) => 8 << if opc == 3 { 2 } else { opc },
        (0b00, false) => 8,
        // LDPSW loads two words, STGP stores a tagged pair.
        (0b01, false) if load => 8,
        (_, false) => 16,
    };
    Access::either(load, bytes)
}

/// `xx11`: single registers with any addressing mode, atomics.
const fn register(word: u32, vector: bool) -> Option<Access> {
    let size = word >> 30;
    let opc = bits(word, 22, 2);
    let form = bits(word, 10, 2);
    if word & 1 << 24 == 0 && word & 1 << 21 != 0 {
        match form {
            0b00 => return atomic(word, vector),
            0b10 => {}
            // LDRAA and LDRAB.
            _ => return if size == 3 && !vector { Access::load(8) } else { None },
        }
    }
    if vector {
        return Access::either(opc & 1 != 0, if opc & 2 != 0 { 16 } else { sized(word) });
    }
    // Prefetch.
    if size == 3 && opc == 2 {
        return None;
    }
    Access::either(opc != 0, sized(word))
}

/// LDADD and its family, SWP, LDAPR, LD64B and ST64B.
const fn atomic(word: u32, vector: bool) -> Option<Access> {
    if vector {
        return Access::atomic(sized(word));
    }
    // A, R, o3 and opc.
    match (bits(word, 22, 2), bits(word, 12, 4), word >> 30) {
        (0b10, 0b1100, _) => Access::load(sized(word)),
        (0b00, 0b1101, 3) => Access::load(64),
        (0b00, 0b1001..=0b1011, 3) => Access::store(64),
        _ => Access::atomic(sized(word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[(u32, u32)], expected: fn(u32) -> Option<Access>) {
        for &(word, bytes) in words {
            assert_eq!(access(word), expected(bytes), "{word:#010x}");
        }
    }

    #[test]
    fn loads() {
        check(
            &[
                (0x3940_0020, 1),  // ldrb w0, [x1]
                (0x7880_2c20, 2),  // ldrsh x0, [x1, #2]!
                (0xb840_4420, 4),  // ldr w0, [x1], #4
                (0xf862_6820, 8),  // ldr x0, [x1, x2]
                (0xb980_0820, 4),  // ldrsw x0, [x1, #8]
                (0x3d40_0020, 1),  // ldr b0, [x1]
                (0x7d40_0420, 2),  // ldr h0, [x1, #2]
                (0xbd40_0020, 4),  // ldr s0, [x1]
                (0xfc5f_8c20, 8),  // ldr d0, [x1, #-8]!
                (0x3dc0_0420, 16), // ldr q0, [x1, #16]
                (0x3cdf_f020, 16), // ldur q0, [x1, #-1]
                (0xf840_0820, 8),  // ldtr x0, [x1]
                (0x2940_0440, 8),  // ldp w0, w1, [x2]
                (0xa9c1_0440, 16), // ldp x0, x1, [x2, #16]!
                (0x6940_0440, 8),  // ldpsw x0, x1, [x2]
                (0x2d40_0440, 8),  // ldp s0, s1, [x2]
                (0x6c40_0440, 16), // ldnp d0, d1, [x2]
                (0x5800_0040, 8),  // ldr x0, label
                (0x1800_0040, 4),  // ldr w0, label
                (0x9800_0040, 4),  // ldrsw x0, label
                (0x9c00_0080, 16), // ldr q0, label
                (0x1c00_0080, 4),  // ldr s0, label
                (0xc85f_fc20, 8),  // ldaxr x0, [x1]
                (0x887f_0440, 8),  // ldxp w0, w1, [x2]
                (0x88df_fc20, 4),  // ldar w0, [x1]
                (0xc95f_7c20, 8),  // ldtxr x0, [x1]
                (0xf8bf_c020, 8),  // ldapr x0, [x1]
                (0x1940_1020, 1),  // ldapurb w0, [x1, #1]
                (0x9980_0020, 4),  // ldapursw x0, [x1]
                (0x1dc0_0820, 16), // ldapur q0, [x1]
                (0xd941_1840, 16), // ldiapp x0, x1, [x2]
                (0xf820_0420, 8),  // ldraa x0, [x1]
                (0x4c40_7000, 16), // ld1 {v0.16b}, [x0]
                (0x0c40_6000, 24), // ld1 {v0.8b-v2.8b}, [x0]
                (0x4c40_8800, 32), // ld2 {v0.4s, v1.4s}, [x0]
                (0x4c40_0c00, 64), // ld4 {v0.2d-v3.2d}, [x0]
                (0x0d40_0c00, 1),  // ld1 {v0.b}[3], [x0]
                (0x4ddf_8400, 8),  // ld1 {v0.d}[1], [x0], #8
                (0x0d40_b000, 12), // ld3 {v0.s-v2.s}[1], [x0]
                (0x4d40_c800, 4),  // ld1r {v0.4s}, [x0]
                (0x4d60_ec00, 32), // ld4r {v0.2d-v3.2d}, [x0]
                (0xd960_0020, 16), // ldg x0, [x1]
                (0xf83f_d100, 64), // ld64b x0, [x8]
            ],
            Access::load,
        );
    }

    #[test]
    fn stores() {
        check(
            &[
                (0x3c81_0420, 16), // str q0, [x1], #16
                (0x3ca2_6820, 16), // str q0, [x1, x2]
                (0xfc22_6820, 8),  // str d0, [x1, x2]
                (0x7900_0020, 2),  // strh w0, [x1]
                (0xf800_3020, 8),  // stur x0, [x1, #3]
                (0x3800_0820, 1),  // sttrb w0, [x1]
                (0xa9bf_07e0, 16), // stp x0, x1, [sp, #-16]!
                (0xac81_0440, 32), // stp q0, q1, [x2], #32
                (0x0800_7c41, 1),  // stxrb w0, w1, [x2]
                (0xc820_8861, 16), // stlxp w0, x1, x2, [x3]
                (0xc89f_fc20, 8),  // stlr x0, [x1]
                (0x089f_7c20, 1),  // stllrb w0, [x1]
                (0xd900_1020, 8),  // stlur x0, [x1, #1]
                (0x1d00_0820, 1),  // stlur b0, [x1]
                (0x4c9f_2000, 64), // st1 {v0.16b-v3.16b}, [x0], #64
                (0x4c81_4400, 48), // st3 {v0.8h-v2.8h}, [x0], x1
                (0x0d20_4800, 4),  // st2 {v0.h, v1.h}[1], [x0]
                (0x4d20_a400, 32), // st4 {v0.d-v3.d}[1], [x0]
                (0xd920_0820, 16), // stg x0, [x1]
                (0xd9a0_0820, 32), // st2g x0, [x1]
                (0xd960_1c20, 16), // stzg x0, [x1, #16]!
                (0xd9e0_0820, 32), // stz2g x0, [x1]
                (0x6900_0440, 16), // stgp x0, x1, [x2]
                (0xf83f_9100, 64), // st64b x0, [x8]
                (0xf820_b102, 64), // st64bv x0, x2, [x8]
                (0xd91f_0c20, 8),  // gcsstr x0, [x1]
            ],
            Access::store,
        );
    }

    #[test]
    fn loads_that_store() {
        check(
            &[
                (0xc8a0_7c41, 8),  // cas x0, x1, [x2]
                (0x08e0_fc41, 1),  // casalb w0, w1, [x2]
                (0x0820_7c82, 8),  // casp w0, w1, w2, w3, [x4]
                (0x4860_fc82, 16), // caspal x0, x1, x2, x3, [x4]
                (0xf820_0041, 8),  // ldadd x0, x1, [x2]
                (0x3820_8041, 1),  // swpb w0, w1, [x2]
                (0xb820_305f, 4),  // stset w0, [x2]
                (0x1921_8040, 16), // swpp x0, x1, [x2]
                (0x1920_0841, 8),  // rcwcas x0, x1, [x2]
                (0x1920_0c82, 16), // rcwcasp x0, x1, x2, x3, [x4]
                (0x5920_0441, 8),  // ldtadd x0, x1, [x2]
            ],
            Access::atomic,
        );
    }

    #[test]
    fn blocks() {
        check(
            &[
                (0xd50b_7423, MAX_BLOCK), // dc zva, x3
                (0xd508_7623, MAX_BLOCK), // dc ivac, x3
                (0xd920_0020, MAX_BLOCK), // stzgm x0, [x1]
            ],
            Access::block,
        );
    }

    #[test]
    fn the_cpu_says_how_large_a_block_is() {
        let zva = access(0xd50b_7423).unwrap();
        assert_eq!(zva.with_block_of(4).bytes, 64);
        assert_eq!(zva.with_block_of(u64::MAX).bytes, MAX_BLOCK, "no CPU has more");
        let load = access(0xf840_0820).unwrap();
        assert_eq!(load.with_block_of(0), load);
    }

    #[test]
    fn copies_and_sets() {
        // setp [x0]!, x1!, x2 and setgp [x0]!, x1!, x2.
        check(&[(0x19c2_0420, MOPS_REACH), (0x1dc2_0420, MOPS_REACH)], Access::store);
        // cpyfp [x0]!, [x1]!, x2! and cpyp [x0]!, [x1]!, x2!: the syndrome says which side it was.
        check(&[(0x1901_0440, MOPS_REACH), (0x1d01_0440, MOPS_REACH)], |bytes| {
            Some(Access { bytes, read: false, write: false, dc_zva: false })
        });
    }

    #[test]
    fn nothing_that_watchpoints_match() {
        let words = [
            0xd800_0080, // prfm pldl1keep, label
            0xf980_0000, // prfm pldl1keep, [x0]
            0xf89f_f000, // prfum pldl1keep, [x0, #-1]
            0xf8a1_6800, // prfm pldl1keep, [x0, x1]
            0xd50b_7e23, // dc civac, x3
            0xa400_a000, // ld1b {z0.b}, p0/z, [x0]
            0x8580_4000, // ldr z0, [x0]
            0x8b02_0020, // add x0, x1, x2
            0xd503_201f, // nop
            0,
        ];
        for word in words {
            assert_eq!(access(word), None, "{word:#010x}");
        }
    }
}
