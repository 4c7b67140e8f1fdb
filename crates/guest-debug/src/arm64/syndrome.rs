//! Syndromes of debug exits: ESR_EL2, as KVM hands it out in `hsr` and `hsr_high`.

/// Shift of the exception class in ESR_ELx.
pub const EC_SHIFT: u32 = 26;
/// Instruction length bit of ESR_ELx, set for 32-bit instructions and wherever it has no meaning.
pub const IL: u64 = 1 << 25;

/// Exception classes of ESR_ELx (Arm ARM, "ESR_EL1", field EC). The class for an exception that did not change the
/// exception level is the one from a lower level plus 1.
pub mod ec {
    /// Breakpoint, from a lower exception level.
    pub const BREAKPOINT: u8 = 0x30;
    /// Software step, from a lower exception level.
    pub const SOFTWARE_STEP: u8 = 0x32;
    /// Watchpoint, from a lower exception level.
    pub const WATCHPOINT: u8 = 0x34;
    /// BKPT of AArch32.
    pub const BKPT32: u8 = 0x38;
    /// Vector catch of AArch32.
    pub const VECTOR_CATCH32: u8 = 0x3a;
    /// BRK of AArch64.
    pub const BRK: u8 = 0x3c;
}

/// Fault status code of every debug exception but BRK.
pub(crate) const FSC_DEBUG: u64 = 0x22;
/// Software step: EX is valid.
const ISV: u64 = 1 << 24;
/// Software step: the stepped instruction was a load-exclusive.
const EX: u64 = 1 << 6;
/// Watchpoint: write, not read.
const WNR: u64 = 1 << 6;
/// Watchpoint: the access is a cache maintenance operation.
const CM: u64 = 1 << 8;
/// Watchpoint: FAR holds nothing of use.
const FNV: u64 = 1 << 10;
/// Watchpoint: FAR is near the access only.
const FNP: u64 = 1 << 15;
/// Watchpoint: it may not have matched at all.
const WPF: u64 = 1 << 16;
/// Watchpoint: WPT is valid.
const WPTV: u64 = 1 << 17;
/// Watchpoint: number of the watchpoint, six bits.
const WPT_SHIFT: u32 = 18;

/// An exception syndrome in the layout of ESR_ELx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// A syndrome from its class and ISS, with IL set.
    pub const fn new(ec: u8, iss: u32) -> Self {
        Self(((ec & 0x3f) as u64) << EC_SHIFT | IL | (iss & 0x01ff_ffff) as u64)
    }

    /// Exception class, bits 31:26.
    pub const fn ec(self) -> u8 {
        (self.0 >> EC_SHIFT & 0x3f) as u8
    }

    /// Instruction length, bit 25: set for 32-bit instructions.
    pub const fn il(self) -> bool {
        self.0 & IL != 0
    }

    /// Instruction specific syndrome, bits 24:0.
    pub const fn iss(self) -> u32 {
        (self.0 & 0x01ff_ffff) as u32
    }

    /// Of a watchpoint: FAR is not valid (`FnV`), which SVE and SME accesses may answer.
    pub const fn far_not_valid(self) -> bool {
        self.0 & FNV != 0
    }

    /// Of a watchpoint: FAR is an address near the access, not of it (`FnP`).
    pub const fn far_not_precise(self) -> bool {
        self.0 & FNP != 0
    }

    /// Of a watchpoint: the access may not have touched the watched bytes (`WPF`).
    pub const fn may_be_false(self) -> bool {
        self.0 & WPF != 0
    }
}

/// What made a vCPU leave the guest for its debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DebugEvent {
    /// A software step is complete.
    SoftwareStep {
        /// Whether `ex` says anything.
        isv: bool,
        /// The stepped instruction was a load-exclusive.
        ex: bool,
    },
    /// The address in a breakpoint register is about to be executed.
    HardwareBreakpoint,
    /// A watched byte is about to be accessed; FAR says where.
    Watchpoint {
        /// A store, or a cache maintenance operation.
        write: bool,
        /// The access is a cache maintenance operation.
        cache_maintenance: bool,
        /// Number of the slot that matched, where the CPU reports it.
        wpt: Option<u8>,
    },
    /// A BRK instruction; pc points at it.
    Brk {
        /// Its immediate.
        imm16: u16,
    },
    /// A BKPT instruction of AArch32.
    Bkpt32,
    /// A vector catch of AArch32.
    VectorCatch32,
    /// Anything else: not a debug exception from the guest.
    Other {
        /// Exception class.
        ec: u8,
    },
}

/// Decodes the syndrome of a debug exit. Every value decodes to something.
pub const fn decode(syndrome: u64) -> DebugEvent {
    match Syndrome(syndrome).ec() {
        ec::SOFTWARE_STEP => DebugEvent::SoftwareStep { isv: syndrome & ISV != 0, ex: syndrome & EX != 0 },
        ec::BREAKPOINT => DebugEvent::HardwareBreakpoint,
        ec::WATCHPOINT => DebugEvent::Watchpoint {
            write: syndrome & WNR != 0,
            cache_maintenance: syndrome & CM != 0,
            wpt: if syndrome & WPTV != 0 { Some((syndrome >> WPT_SHIFT & 0x3f) as u8) } else { None },
        },
        ec::BRK => DebugEvent::Brk { imm16: syndrome as u16 },
        ec::BKPT32 => DebugEvent::Bkpt32,
        ec::VECTOR_CATCH32 => DebugEvent::VectorCatch32,
        ec => DebugEvent::Other { ec },
    }
}

/// The syndrome that the architecture gives an event: what [`decode`] undoes.
pub const fn encode(event: DebugEvent) -> u64 {
    let (ec, iss) = match event {
        DebugEvent::SoftwareStep { isv, ex } => (ec::SOFTWARE_STEP, FSC_DEBUG | bit(isv, ISV) | bit(ex, EX)),
        DebugEvent::HardwareBreakpoint => (ec::BREAKPOINT, FSC_DEBUG),
        DebugEvent::Watchpoint { write, cache_maintenance, wpt } => {
            let slot = match wpt {
                Some(slot) => WPTV | ((slot & 0x3f) as u64) << WPT_SHIFT,
                None => 0,
            };
            (ec::WATCHPOINT, FSC_DEBUG | bit(write, WNR) | bit(cache_maintenance, CM) | slot)
        }
        DebugEvent::Brk { imm16 } => (ec::BRK, imm16 as u64),
        DebugEvent::Bkpt32 => (ec::BKPT32, 0),
        DebugEvent::VectorCatch32 => (ec::VECTOR_CATCH32, FSC_DEBUG),
        DebugEvent::Other { ec } => (ec, 0),
    };
    Syndrome::new(ec, iss as u32).0
}

const fn bit(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn syndromes_that_hardware_reports() {
        assert_eq!(decode(0xca00_0022), DebugEvent::SoftwareStep { isv: false, ex: false });
        assert_eq!(decode(0xcb00_0062), DebugEvent::SoftwareStep { isv: true, ex: true });
        assert_eq!(decode(0xc200_0022), DebugEvent::HardwareBreakpoint);
        assert_eq!(decode(0xd200_0062), DebugEvent::Watchpoint { write: true, cache_maintenance: false, wpt: None });
        assert_eq!(decode(0xd20e_0122), DebugEvent::Watchpoint { write: false, cache_maintenance: true, wpt: Some(3) });
        assert_eq!(decode(0xf200_0800), DebugEvent::Brk { imm16: 0x800 });
        assert_eq!(decode(0xe000_0000), DebugEvent::Bkpt32);
        assert_eq!(decode(0xea00_0022), DebugEvent::VectorCatch32);
        assert_eq!(decode(0x9600_0046), DebugEvent::Other { ec: 0x25 });
    }

    #[test]
    fn the_high_half_changes_nothing() {
        assert_eq!(decode(0xffff_ffff_f200_0001), DebugEvent::Brk { imm16: 1 });
    }

    #[test]
    fn quality_of_a_watchpoints_address() {
        let plain = Syndrome(0xd200_0022);
        assert!(!plain.far_not_valid() && !plain.far_not_precise() && !plain.may_be_false());
        assert!(Syndrome(0xd200_0422).far_not_valid());
        assert!(Syndrome(0xd200_8022).far_not_precise());
        assert!(Syndrome(0xd201_0022).may_be_false());
    }

    fn events() -> impl Strategy<Value = DebugEvent> {
        prop_oneof![
            any::<(bool, bool)>().prop_map(|(isv, ex)| DebugEvent::SoftwareStep { isv, ex }),
            Just(DebugEvent::HardwareBreakpoint),
            (any::<bool>(), any::<bool>(), proptest::option::of(0u8..64)).prop_map(
                |(write, cache_maintenance, wpt)| { DebugEvent::Watchpoint { write, cache_maintenance, wpt } }
            ),
            any::<u16>().prop_map(|imm16| DebugEvent::Brk { imm16 }),
            Just(DebugEvent::Bkpt32),
            Just(DebugEvent::VectorCatch32),
            (0u8..0x30).prop_map(|ec| DebugEvent::Other { ec }),
        ]
    }

    proptest! {
        #[test]
        fn events_round_trip(event in events()) {
            prop_assert_eq!(decode(encode(event)), event);
        }

        #[test]
        fn decoding_what_was_decoded_changes_nothing(syndrome: u64) {
            let event = decode(syndrome);
            prop_assert_eq!(decode(encode(event)), event);
            prop_assert_eq!(Syndrome(encode(event)).ec(), Syndrome(syndrome).ec());
        }
    }
}
