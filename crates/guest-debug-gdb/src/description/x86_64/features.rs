//! General, x87, SSE and AVX registers, segment bases, and what of the system QEMU's users know.

use super::{Builder, Source};
use guest_debug::x86_64::Reg;

/// A bit field of a flags type: name, first and last bit.
type Field = (&'static str, u8, u8);

/// EFLAGS (SDM volume 1, 3.4.3), without IOPL as in gdb: it would be shown also where it is 0.
const EFLAGS: [Field; 16] = [
    ("CF", 0, 0),
    ("PF", 2, 2),
    ("AF", 4, 4),
    ("ZF", 6, 6),
    ("SF", 7, 7),
    ("TF", 8, 8),
    ("IF", 9, 9),
    ("DF", 10, 10),
    ("OF", 11, 11),
    ("NT", 14, 14),
    ("RF", 16, 16),
    ("VM", 17, 17),
    ("AC", 18, 18),
    ("VIF", 19, 19),
    ("VIP", 20, 20),
    ("ID", 21, 21),
];

/// MXCSR (SDM volume 1, 10.2.3), without RC for the same reason.
const MXCSR: [Field; 14] = [
    ("IE", 0, 0),
    ("DE", 1, 1),
    ("ZE", 2, 2),
    ("OE", 3, 3),
    ("UE", 4, 4),
    ("PE", 5, 5),
    ("DAZ", 6, 6),
    ("IM", 7, 7),
    ("DM", 8, 8),
    ("ZM", 9, 9),
    ("OM", 10, 10),
    ("UM", 11, 11),
    ("PM", 12, 12),
    ("FZ", 15, 15),
];

/// Views of an SSE register: name, gdb's type of an element, how many.
const VIEWS: [(&str, &str, usize); 6] = [
    ("v4_float", "ieee_single", 4),
    ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8),
    ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2),
];

/// General registers, RIP, EFLAGS, selectors and x87.
pub(super) fn core(builder: &mut Builder) {
    builder.open("org.gnu.gdb.i386.core");
    flags(builder, "i386_eflags", &EFLAGS);
    for reg in Reg::CORE {
        let attributes = match reg {
            Reg::Rsp | Reg::Rbp => "type=\"data_ptr\"",
            Reg::Rip => "type=\"code_ptr\"",
            Reg::Eflags => "type=\"i386_eflags\"",
            Reg::St(_) => "type=\"i387_ext\"",
            reg if reg.size() == 8 => "type=\"int64\"",
            Reg::Cs | Reg::Ss | Reg::Ds | Reg::Es | Reg::Fs | Reg::Gs => "type=\"int32\"",
            _ => "type=\"int\" group=\"float\"",
        };
        add(builder, reg, attributes);
    }
    builder.close();
}

/// XMM0 to XMM15 and MXCSR.
pub(super) fn sse(builder: &mut Builder) {
    builder.open("org.gnu.gdb.i386.sse");
    for (name, element, count) in VIEWS {
        builder.line(&format!("<vector id=\"{name}\" type=\"{element}\" count=\"{count}\"/>"));
    }
    builder.line("<union id=\"vec128\">");
    for (name, ..) in VIEWS {
        builder.line(&format!("<field name=\"{name}\" type=\"{name}\"/>"));
    }
    builder.line("<field name=\"uint128\" type=\"uint128\"/>");
    builder.line("</union>");
    flags(builder, "i386_mxcsr", &MXCSR);
    for reg in Reg::SSE {
        let attributes = if reg == Reg::Mxcsr { "type=\"i386_mxcsr\" group=\"vector\"" } else { "type=\"vec128\"" };
        add(builder, reg, attributes);
    }
    builder.close();
}

/// FS and GS base.
pub(super) fn segments(builder: &mut Builder) {
    builder.open("org.gnu.gdb.i386.segments");
    for reg in Reg::SEGMENTS {
        add(builder, reg, "type=\"int\"");
    }
    builder.close();
}

/// The upper halves of YMM0 to YMM15. gdb puts them together with the lower ones.
pub(super) fn avx(builder: &mut Builder) {
    builder.open("org.gnu.gdb.i386.avx");
    for reg in Reg::AVX {
        add(builder, reg, "type=\"uint128\"");
    }
    builder.close();
}

/// Control registers, EFER and what SWAPGS exchanges, by the names that QEMU gives them. gdb neither saves nor restores
/// them around calls into the guest.
pub(super) fn system(builder: &mut Builder, regs: &[Reg]) {
    builder.open("org.guest-debug.x86_64.system");
    for reg in Reg::SYSTEM.into_iter().filter(|reg| regs.contains(reg)) {
        add(builder, reg, "type=\"uint64\" group=\"system\" save-restore=\"no\"");
    }
    builder.close();
}

fn add(builder: &mut Builder, reg: Reg, attributes: &str) {
    builder.register(reg.to_string(), reg.size(), Source::Register(reg), attributes);
}

fn flags(builder: &mut Builder, id: &str, fields: &[Field]) {
    builder.line(&format!("<flags id=\"{id}\" size=\"4\">"));
    for (name, first, last) in fields {
        builder.line(&format!("<field name=\"{name}\" start=\"{first}\" end=\"{last}\"/>"));
    }
    builder.line("</flags>");
}
