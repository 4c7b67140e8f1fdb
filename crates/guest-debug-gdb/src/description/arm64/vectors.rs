//! SIMD and floating point, with and without SVE.

use super::{Builder, Source, Values};
use guest_debug::arm64::Reg;

/// Width in bytes, its letter, and the types of that width, each with gdb's name and its letter.
type Elements = (usize, char, &'static [(&'static str, char)]);

/// Element types of a vector register.
const ELEMENTS: [Elements; 5] = [
    (16, 'q', &[("uint128", 'u'), ("int128", 's')]),
    (8, 'd', &[("ieee_double", 'f'), ("uint64", 'u'), ("int64", 's')]),
    (4, 's', &[("ieee_single", 'f'), ("uint32", 'u'), ("int32", 's')]),
    (2, 'h', &[("ieee_half", 'f'), ("uint16", 'u'), ("int16", 's')]),
    (1, 'b', &[("uint8", 'u'), ("int8", 's')]),
];

/// V0 to V31, FPSR, FPCR. Returns the number of registers so far.
pub(super) fn fpu(builder: &mut Builder) -> usize {
    builder.open("org.gnu.gdb.aarch64.fpu");
    vector_union(builder, "aarch64v", 16);
    for n in 0..32 {
        builder.register(format!("v{n}"), 16, Source::Register(Reg::V(n)), "type=\"aarch64v\"");
    }
    status_and_control(builder);
    builder.close();
    builder.entries.len()
}

/// Z0 to Z31, FPSR, FPCR, P0 to P15, FFR, VG, for vectors of `length` bytes. gdb derives V0 to V31 from them.
pub(super) fn sve(builder: &mut Builder, length: usize) -> usize {
    let predicate = length / 8;
    builder.open("org.gnu.gdb.aarch64.sve");
    vector_union(builder, "svev", length);
    builder.line(&format!("<vector id=\"svep\" type=\"uint8\" count=\"{predicate}\"/>"));
    for n in 0..32 {
        builder.register(format!("z{n}"), length, Source::Register(Reg::Z(n)), "type=\"svev\"");
    }
    status_and_control(builder);
    for n in 0..16 {
        builder.register(format!("p{n}"), predicate, Source::Register(Reg::P(n)), "type=\"svep\"");
    }
    builder.register("ffr", predicate, Source::Register(Reg::Ffr), "type=\"svep\" group=\"vector\"");
    builder.register("vg", 8, Source::Constant(length as u64 / 8), "type=\"int\"");
    builder.close();
    builder.entries.len()
}

/// The vCPU's largest vector length in bytes; the architecture's smallest if it does not say.
pub(super) fn vector_length(values: &Values) -> usize {
    let bitmap = values.get(&Reg::SveVls).map_or(&[][..], Vec::as_slice);
    let lengths = bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1));
    // Lengths go up to 256 bytes, whatever the bitmap says.
    let longest = lengths.take(16).enumerate().filter(|(_, set)| *set == 1).last();
    longest.map_or(16, |(n, _)| 16 * (n + 1))
}

fn status_and_control(builder: &mut Builder) {
    builder.register("fpsr", 4, Source::Register(Reg::Fpsr), "type=\"int\" group=\"float\"");
    builder.register("fpcr", 4, Source::Register(Reg::Fpcr), "type=\"int\" group=\"float\"");
}

/// A union that shows a vector of `length` bytes with elements of every width.
fn vector_union(builder: &mut Builder, id: &str, length: usize) {
    for (width, letter, types) in ELEMENTS {
        let count = length / width;
        for (gdb_type, kind) in types {
            builder.line(&format!("<vector id=\"{id}_{letter}{kind}\" type=\"{gdb_type}\" count=\"{count}\"/>"));
        }
        builder.line(&format!("<union id=\"{id}_{letter}\">"));
        for (_, kind) in types {
            builder.line(&format!("<field name=\"{kind}\" type=\"{id}_{letter}{kind}\"/>"));
        }
        builder.line("</union>");
    }
    builder.line(&format!("<union id=\"{id}\">"));
    for (_, letter, _) in ELEMENTS {
        builder.line(&format!("<field name=\"{letter}\" type=\"{id}_{letter}\"/>"));
    }
    builder.line("</union>");
}
