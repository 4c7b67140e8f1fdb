//! Core registers, the thread pointer, and the system registers.

use super::{Builder, Source, Special, sysreg_names};
use guest_debug::arm64::{Reg, SysReg};
use std::collections::BTreeSet;

/// Fields of `cpsr`: name, first and last bit (Arm ARM, C5.2 "SPSR_EL1").
const PSTATE_FIELDS: [(&str, u8, u8); 20] = [
    ("SP", 0, 0),
    ("EL", 2, 3),
    ("nRW", 4, 4),
    ("F", 6, 6),
    ("I", 7, 7),
    ("A", 8, 8),
    ("D", 9, 9),
    ("BTYPE", 10, 11),
    ("SSBS", 12, 12),
    ("ALLINT", 13, 13),
    ("IL", 20, 20),
    ("SS", 21, 21),
    ("PAN", 22, 22),
    ("UAO", 23, 23),
    ("DIT", 24, 24),
    ("TCO", 25, 25),
    ("V", 28, 28),
    ("C", 29, 29),
    ("Z", 30, 30),
    ("N", 31, 31),
];

/// X0 to X30, SP, PC and PSTATE, which gdb knows as `cpsr`, 32 bits.
pub(super) fn core(builder: &mut Builder) {
    builder.open("org.gnu.gdb.aarch64.core");
    builder.line("<flags id=\"cpsr_flags\" size=\"4\">");
    for (name, first, last) in PSTATE_FIELDS {
        builder.line(&format!("<field name=\"{name}\" start=\"{first}\" end=\"{last}\"/>"));
    }
    builder.line("</flags>");
    for n in 0..31 {
        builder.register(format!("x{n}"), 8, Source::Register(Reg::X(n)), "");
    }
    builder.register("sp", 8, Source::Special(Special::StackPointer), "type=\"data_ptr\"");
    builder.register("pc", 8, Source::Register(Reg::Pc), "type=\"code_ptr\"");
    builder.register("cpsr", 4, Source::Register(Reg::Pstate), "type=\"cpsr_flags\"");
    builder.close();
}

/// The thread pointer of EL0, for thread-local variables.
pub(super) fn tls(builder: &mut Builder) {
    builder.open("org.gnu.gdb.aarch64.tls");
    builder.register("tpidr", 8, Source::Register(Reg::Sys(SysReg::TPIDR_EL0)), "type=\"data_ptr\"");
    builder.close();
}

/// System registers, named as in the Arm ARM. gdb neither saves nor restores them around calls into the guest.
pub(super) fn system(builder: &mut Builder, regs: &[Reg]) {
    const ATTRIBUTES: &str = "type=\"uint64\" group=\"system\" save-restore=\"no\"";
    let mut names = BTreeSet::new();
    builder.open("org.guest-debug.aarch64.system");
    for reg in regs {
        let name = match *reg {
            Reg::SpEl0 => "SP_EL0".to_owned(),
            Reg::SpEl1 => "SP_EL1".to_owned(),
            Reg::ElrEl1 => "ELR_EL1".to_owned(),
            Reg::SpsrEl1 => "SPSR_EL1".to_owned(),
            Reg::Sys(sys) => sysreg_names::name(sys),
            _ => continue,
        };
        // Under nested virtualization some are listed twice, as core and as system registers.
        if !names.insert(name.clone()) {
            continue;
        }
        builder.register(name, 8, Source::Register(*reg), ATTRIBUTES);
    }
    builder.close();
}
