//! What a debug exit says: the exception, pc, DR6 and DR7 that KVM reports, decoded to causes.
//!
//! Sources: SDM 17.3 "Debug Exceptions" and table 6-2 for what is a fault and what a trap; in the kernel
//! `handle_exception_nmi` and `handle_dr` of `arch/x86/kvm/vmx/vmx.c`, `db_interception` and `bp_interception` of
//! `arch/x86/kvm/svm/svm.c`, `kvm_vcpu_do_singlestep` and `kvm_vcpu_check_code_breakpoint` of `arch/x86/kvm/x86.c`.

use crate::stop::WatchKind;
use crate::x86_64::dbgreg::{Dr6, Dr7};

/// Vector of the debug exception, #DB.
pub const DB_VECTOR: u32 = 1;
/// Vector of the breakpoint exception, #BP.
pub const BP_VECTOR: u32 = 3;

/// An exception that is the guest's own, for its next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// #BP, for the INT3 that the vCPU is at.
    Breakpoint,
    /// #DB.
    Debug {
        /// What its handler finds in DR6.
        dr6: u64,
    },
}

/// A debug exit: the fields of the kernel's `struct kvm_debug_exit_arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DebugExitArch {
    /// The vector: 1 or 3.
    pub exception: u32,
    /// The linear address, CS base plus RIP.
    pub pc: u64,
    /// DR6; not looked at for vector 3, where KVM does not write it.
    pub dr6: u64,
    /// The DR7 that was in effect: the debugger's where it has armed slots, else the guest's.
    ///
    /// KVM does not write the field where it emulates an instruction instead of running it, for an execution breakpoint
    /// as well as for a step: it then holds what an earlier exit left. Who has armed slots knows their DR7, and passes
    /// that.
    pub dr7: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// INT3, opcode CC. It has not taken effect and pc is **on** it, not behind as in the guest's own handler: VMX and SVM
    /// both intercept it before RIP is advanced, and KVM reports that RIP; the kernel's selftest `debug_regs` asserts it. A
    /// breakpoint planted at `address` needs no rewinding of pc. The two-byte `INT 3` (CD 03) is a software interrupt to
    /// both, is not intercepted as #BP, and never comes here.
    Int3 {
        /// Linear address of the INT3.
        address: u64,
    },
    /// A debug exception.
    Debug {
        /// What DR6 says, in order: first what the instruction before pc did, then what keeps the one at pc from
        /// executing. Empty for INT1 (opcode F1), which sets no bit, and where only slots matched that DR7 does not
        /// enable.
        causes: Vec<Cause>,
        /// DR6.RTM is clear: the guest was in a transactional region, and pc is where that began.
        ///
        /// Not to be relied on with VMX: Linux before 5.7 reports it for every exception that the CPU raises, later
        /// versions for none.
        rtm: bool,
    },
    /// KVM reports no such vector in a debug exit.
    Other {
        /// The vector.
        exception: u32,
    },
}

/// One event that DR6 reports. The order is that of [`Stop::Debug`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A task switch to a TSS whose T flag is set; pc is at the new task's first instruction. A trap.
    TaskSwitch,
    /// A data slot matched. A trap: the access has happened, pc is behind the instruction, and for a repeated string
    /// instruction on it, with further rounds to come.
    Watch {
        /// Number of the slot. Its bytes are all that is known about the address.
        slot: u8,
        /// `R/W` of the slot: writes, or accesses.
        kind: WatchKind,
    },
    /// An I/O slot matched (a guest's own, with CR4.DE). A trap.
    Io {
        /// Number of the slot.
        slot: u8,
    },
    /// A bus lock was taken, and the guest had asked to be told. A trap.
    BusLock,
    /// An instruction was executed with RFLAGS.TF set. A trap: pc is at the next one.
    Step,
    /// An execution slot matched. A fault: the instruction at pc has not executed.
    Breakpoint {
        /// Number of the slot.
        slot: u8,
    },
    /// The instruction at pc accesses a debug register and DR7.GD is set. A fault: it has not executed. The GD that counts
    /// is the debugger's while it has armed slots.
    GeneralDetect,
}

impl Cause {
    /// Whether it happens before an instruction executes, which pc is at; otherwise after one, which pc is behind.
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Breakpoint { .. } | Self::GeneralDetect)
    }
}

/// Decodes a debug exit. Every value decodes to something.
///
/// Of `B0` to `B3` only those count whose slot DR7 enables: the CPU may set the others too (SDM 17.2.3).
pub fn decode(exit: &DebugExitArch) -> Stop {
    match exit.exception {
        BP_VECTOR => Stop::Int3 { address: exit.pc },
        DB_VECTOR => {
            let dr6 = Dr6::from_bits(exit.dr6);
            Stop::Debug { causes: causes(dr6, Dr7::from_bits(exit.dr7)), rtm: dr6.rtm }
        }
        exception => Stop::Other { exception },
    }
}

fn causes(dr6: Dr6, dr7: Dr7) -> Vec<Cause> {
    let hits = (0u8..).zip(dr6.hits.into_iter().zip(dr7.slots));
    let slots =
        hits.filter(|(_, (hit, control))| *hit && control.enabled()).map(|(slot, (_, control))| match control.rw {
            0b00 => Cause::Breakpoint { slot },
            0b01 => Cause::Watch { slot, kind: WatchKind::Write },
            0b10 => Cause::Io { slot },
            _ => Cause::Watch { slot, kind: WatchKind::Access },
        });
    let others =
        [(dr6.bt, Cause::TaskSwitch), (dr6.bld, Cause::BusLock), (dr6.bs, Cause::Step), (dr6.bd, Cause::GeneralDetect)];
    let mut causes: Vec<_> =
        others.into_iter().filter_map(|(happened, cause)| happened.then_some(cause)).chain(slots).collect();
    causes.sort_unstable();
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DR6: u64 = Dr6::ACTIVE_LOW;
    /// Execution, write of 4 bytes, access of 8 bytes, execution; the last one is not enabled.
    const DR7: u64 = 0x0bd0_062a;

    fn debug(dr6: u64, dr7: u64) -> Vec<Cause> {
        match decode(&DebugExitArch { exception: DB_VECTOR, pc: 0x1000, dr6, dr7 }) {
            Stop::Debug { causes, rtm: false } => causes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_bit_of_dr6() {
        assert_eq!(debug(DR6, DR7), []);
        assert_eq!(debug(DR6 | 1, DR7), [Cause::Breakpoint { slot: 0 }]);
        assert_eq!(debug(DR6 | 2, DR7), [Cause::Watch { slot: 1, kind: WatchKind::Write }]);
        assert_eq!(debug(DR6 | 4, DR7), [Cause::Watch { slot: 2, kind: WatchKind::Access }]);
        assert_eq!(debug(DR6 & !0x800, DR7), [Cause::BusLock]);
        assert_eq!(debug(DR6 | 0x2000, DR7), [Cause::GeneralDetect]);
        assert_eq!(debug(DR6 | 0x4000, DR7), [Cause::Step]);
        assert_eq!(debug(DR6 | 0x8000, DR7), [Cause::TaskSwitch]);
    }

    #[test]
    fn a_slot_that_is_not_enabled_does_not_count() {
        assert_eq!(debug(DR6 | 8, DR7), []);
        assert_eq!(debug(DR6 | 0x400f, 0x400), [Cause::Step]);
        assert_eq!(debug(DR6 | 8, DR7 | 0x40), [Cause::Breakpoint { slot: 3 }], "enabled locally");
    }

    #[test]
    fn an_io_slot_is_not_taken_for_a_watch() {
        assert_eq!(debug(DR6 | 1, 0x0002_0402), [Cause::Io { slot: 0 }]);
    }

    #[test]
    fn what_happened_before_pc_comes_first() {
        let all = [
            Cause::TaskSwitch,
            Cause::Watch { slot: 1, kind: WatchKind::Write },
            Cause::Watch { slot: 2, kind: WatchKind::Access },
            Cause::BusLock,
            Cause::Step,
            Cause::Breakpoint { slot: 0 },
            Cause::Breakpoint { slot: 3 },
            Cause::GeneralDetect,
        ];
        assert_eq!(debug((DR6 | 0xe00f) & !0x800, DR7 | 0x80), all);
        assert!(all.is_sorted_by_key(|cause| cause.is_fault()));
        assert_eq!(all.iter().filter(|cause| cause.is_fault()).count(), 3);
    }

    #[test]
    fn int3_is_at_pc_and_what_an_earlier_exit_left_is_ignored() {
        let exit = DebugExitArch { exception: BP_VECTOR, pc: 0xffff_ffff_8100_0000, dr6: DR6 | 0xe00f, dr7: DR7 };
        assert_eq!(decode(&exit), Stop::Int3 { address: 0xffff_ffff_8100_0000 });
    }

    #[test]
    fn rtm_is_inverted_and_beside_the_causes() {
        let exit = DebugExitArch { exception: DB_VECTOR, pc: 0, dr6: 0xfffe_0ff1, dr7: DR7 };
        assert_eq!(decode(&exit), Stop::Debug { causes: vec![Cause::Breakpoint { slot: 0 }], rtm: true });
    }

    #[test]
    fn another_vector_is_passed_on() {
        let exit = DebugExitArch { exception: 14, dr6: DR6 | 1, ..DebugExitArch::default() };
        assert_eq!(decode(&exit), Stop::Other { exception: 14 });
    }

    proptest! {
        #[test]
        fn any_exit_decodes_to_ordered_causes_of_enabled_slots(pc: u64, dr6: u64, dr7: u64) {
            let Stop::Debug { causes, .. } = decode(&DebugExitArch { exception: DB_VECTOR, pc, dr6, dr7 }) else {
                return Err(TestCaseError::fail("not a debug exception"));
            };
            prop_assert!(causes.is_sorted());
            let mut slots = 0;
            for cause in causes {
                if let Cause::Breakpoint { slot } | Cause::Watch { slot, .. } | Cause::Io { slot } = cause {
                    slots |= 1 << slot;
                }
            }
            let enabled = (0..4).filter(|n| dr7 >> (2 * n) & 3 != 0).fold(0, |mask, n| mask | 1 << n);
            prop_assert_eq!(slots, dr6 & enabled & 0xf);
        }
    }
}
