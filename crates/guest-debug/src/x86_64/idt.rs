//! The interrupt descriptor table, as far as a step needs it: where a vector's handler begins.
//!
//! Source: SDM 6.14.1 "64-Bit Mode IDT" and figure 6-8, 6.14.2 "64-Bit Mode Stack Frame"; APM 8.9.

/// A gate of the IDT in long mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// First instruction of the handler.
    pub handler: u64,
    /// A trap gate: RFLAGS.IF stays as it is. An interrupt gate clears it.
    pub trap: bool,
}

impl Gate {
    /// Decodes a gate; `None` for one that is not present, or neither an interrupt nor a trap gate.
    pub const fn decode(low: u64, high: u64) -> Option<Self> {
        const PRESENT: u64 = 1 << 47;
        let trap = match low >> 40 & 0x1f {
            0xe => false,
            0xf => true,
            _ => return None,
        };
        if low & PRESENT == 0 {
            return None;
        }
        let handler = low & 0xffff | low >> 48 << 16 | high << 32;
        Some(Self { handler, trap })
    }
}

/// First instruction of a real-mode handler, a linear address, by its entry in the interrupt vector table: offset, then
/// segment (SDM 20.1.4).
pub const fn real_mode_handler(entry: u32) -> u64 {
    (entry >> 16 << 4) as u64 + (entry & 0xffff) as u64
}

/// Where the saved FLAGS are in real mode, from the stack pointer in a handler: behind IP and CS. There are no error codes.
pub const REAL_MODE_FLAGS: u64 = 4;

/// Whether the CPU pushes an error code for an exception (SDM table 6-1).
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Where the saved RFLAGS are, from the stack pointer in the handler of `vector`: behind RIP, CS and an error code.
/// `software` is set for INT n, which never pushes one.
pub const fn saved_flags(vector: u8, software: bool) -> u64 {
    if has_error_code(vector) && !software { 24 } else { 16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gates_of_linux() {
        // asm_exc_page_fault at 0xffffffff82000b40, interrupt gate, DPL 0, CS 0x10.
        let low = 0x8200_8e00_0010_0b40;
        assert_eq!(Gate::decode(low, 0xffff_ffff), Some(Gate { handler: 0xffff_ffff_8200_0b40, trap: false }));
        assert_eq!(Gate::decode(low | 1 << 40, 0), Some(Gate { handler: 0x8200_0b40, trap: true }));
        assert_eq!(Gate::decode(low & !(1 << 47), 0xffff_ffff), None, "not present");
        assert_eq!(Gate::decode(low ^ 0b11 << 40, 0), None, "a call gate");
        assert_eq!(Gate::decode(0, 0), None);
    }

    #[test]
    fn the_vector_of_a_pc_bios() {
        // INT 10h at f000:f065, its address in every BIOS.
        assert_eq!(real_mode_handler(0xf000_f065), 0xf_f065);
        assert_eq!(real_mode_handler(u32::MAX), 0x10_ffef);
    }

    #[test]
    fn an_error_code_is_below_the_frame() {
        assert_eq!((saved_flags(14, false), saved_flags(14, true), saved_flags(3, false)), (24, 16, 16));
    }

    proptest! {
        #[test]
        fn any_gate_decodes(low: u64, high: u64) {
            let _ = Gate::decode(low, high);
        }
    }
}
