//! What this host's KVM can do, tried out: what it says is not always so where the host is a virtual machine itself.

use crate::guest::{CODE, DATA, FLD1, Guest, INT_80, INT3, NOP, STI, STORE, SYSCALL, UNMAPPED};
use guest_debug::DebugConfig;
use guest_debug::DebugVcpu as _;
use guest_debug::uapi::x86_64::KVM_GUESTDBG_BLOCKIRQ;
use guest_debug::x86_64::slot::{Condition, Length};
use guest_debug::x86_64::{HwDebug, Reg, Slot, VaBits};
use std::io::Write as _;
use std::sync::OnceLock;

/// Something that a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// KVM itself.
    Kvm,
    /// `KVM_GUESTDBG_SINGLESTEP`.
    Step,
    /// `KVM_GUESTDBG_BLOCKIRQ`.
    BlockInterrupts,
    /// Execution breakpoints in debug registers.
    Execute,
    /// Data watches in debug registers.
    Data,
    /// `KVM_GUESTDBG_USE_SW_BP`.
    Int3,
    /// A step ends behind STI, and not behind the instruction after it: QEMU's CPU lets nothing trap there, as behind MOV SS.
    StepSti,
    /// Guests can execute SYSCALL.
    Syscall,
    /// Guests can execute INT.
    Int,
    /// Guests can execute INT in real mode.
    RealModeInt,
    /// Guests can have page faults.
    PageFault,
    /// Guests can execute x87 instructions.
    Float,
}

const ALL: [Ability; 12] = [
    Ability::Kvm,
    Ability::Step,
    Ability::BlockInterrupts,
    Ability::Execute,
    Ability::Data,
    Ability::Int3,
    Ability::StepSti,
    Ability::Syscall,
    Ability::Int,
    Ability::RealModeInt,
    Ability::PageFault,
    Ability::Float,
];

/// Whether the host has it, for tests that expect something else where it has not.
pub fn can(ability: Ability) -> bool {
    static FOUND: OnceLock<Vec<Ability>> = OnceLock::new();
    FOUND.get_or_init(|| ALL.into_iter().filter(|ability| ability.is_there()).collect()).contains(&ability)
}

/// Whether the host has all of them. Where not, the test says so and is skipped.
pub fn has(needed: &[Ability]) -> bool {
    let needed = [&[Ability::Kvm], needed].concat();
    let Some(missing) = needed.iter().find(|ability| !can(**ability)) else { return true };
    let test = std::thread::current();
    // Past libtest, which would keep it to itself.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: {}: this host's KVM has no {}",
        test.name().unwrap_or("a test"),
        missing.name()
    );
    false
}

/// How often a step is tried: it may be told before its instruction has executed.
pub const STEPS: u32 = 32;

impl Ability {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "device, or it can't be opened",
            Self::Step => "single-step",
            Self::BlockInterrupts => "KVM_GUESTDBG_BLOCKIRQ",
            Self::Execute => "execution breakpoints",
            Self::Data => "data watchpoints",
            Self::Int3 => "INT3 exits",
            Self::StepSti => "steps of STI alone",
            Self::Syscall => "SYSCALL for its guests",
            Self::Int => "INT for its guests",
            Self::RealModeInt => "INT in real mode for its guests",
            Self::PageFault => "page faults for its guests",
            Self::Float => "x87 instructions for its guests",
        }
    }

    fn is_there(self) -> bool {
        let slot = |address, condition| Slot::new(address, condition, VaBits::Bits48);
        let hw = |slot: Result<Slot, _>| slot.ok().and_then(|slot| HwDebug::new(&[slot]).ok()).unwrap_or_default();
        let (code, hw) = match self {
            Self::Execute => (NOP, hw(slot(CODE + 1, Condition::Execute))),
            Self::Data => (STORE, hw(slot(DATA, Condition::Write(Length::Four)))),
            Self::Int3 => (INT3, HwDebug::default()),
            Self::StepSti => (STI, HwDebug::default()),
            Self::Syscall => (SYSCALL, HwDebug::default()),
            Self::Int | Self::RealModeInt => (INT_80, HwDebug::default()),
            Self::PageFault => (STORE, HwDebug::default()),
            Self::Float => (FLD1, HwDebug::default()),
            _ => (NOP, HwDebug::default()),
        };
        let Some(guest) = Guest::new(&[code, NOP]) else { return false };
        let single_step = matches!(self, Self::Step | Self::StepSti);
        match self {
            Self::Kvm => return true,
            Self::BlockInterrupts => return guest.caps.control_flags & KVM_GUESTDBG_BLOCKIRQ != 0,
            Self::Syscall | Self::Int | Self::Float => return guest.ends(),
            Self::RealModeInt => {
                guest.enter_real_mode((CODE >> 4) as u16);
                return guest.ends();
            }
            Self::PageFault => {
                return guest.vcpu.set_u64(Reg::Rax, UNMAPPED).is_ok() && guest.ends();
            }
            _ => {}
        }
        let config = DebugConfig { enabled: true, single_step, block_interrupts: false, hw };
        let attempt = || {
            guest.vcpu.set_guest_debug(&config).ok()?;
            guest.run()
        };
        // The session begins a step again whose instruction has not executed.
        let mut attempts = (0..if single_step { STEPS } else { 1 }).map(|_| attempt());
        let exit = attempts.find(|exit| exit.as_ref().is_none_or(|exit| exit.pc != CODE || !single_step)).flatten();
        let Some(exit) = exit else { return false };
        match self {
            Self::Step | Self::StepSti => exit.exception == 1 && exit.pc == CODE + 1 && exit.dr6 & 0x4000 != 0,
            Self::Execute => exit.exception == 1 && exit.pc == CODE + 1 && exit.dr6 & 1 != 0,
            Self::Data => exit.exception == 1 && exit.pc == CODE + 2 && exit.dr6 & 1 != 0,
            _ => exit.exception == 3 && exit.pc == CODE,
        }
    }
}
