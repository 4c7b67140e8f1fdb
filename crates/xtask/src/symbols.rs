//! An ELF file with the kernel's function symbols, for gdb and lldb.
//!
//! Debian's System.map is a stub and its debug package is 262 MB. But a running kernel lists its symbols in
//! /proc/kallsyms, and the emulated host runs the very kernel that the guests run, without KASLR as they do. So the
//! file is made from that list, once for each kernel. It needs no foreign tool and knows nothing of the kernel's
//! compressed symbol table, whose layout changes from release to release; a machine that is a KVM host itself boots the
//! emulated one for this, once.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::arch::Arch;
use crate::assets;
use crate::context::{Context, HostOptions};
use crate::host::KvmHost;
use crate::paths;
use crate::x86_64::Emulator;

/// Path of the symbols file for [`assets::kernel`]. `host` saves a boot if it is an emulated one.
///
/// # Errors
/// If the emulated host does not boot, or lists no symbols.
pub fn kernel_symbols(context: &Context, host: Option<&KvmHost>) -> Result<PathBuf> {
    let kernel = assets::kernel(&context.packages)?;
    let path = directory(context.arch()).join(format!("vmlinux-{}", kernel.release));
    if path.exists() {
        return Ok(path);
    }
    let list = match host {
        Some(host) if host.is_emulated() => host.download(KALLSYMS)?,
        // Bochs would take minutes for so long a list.
        _ => KvmHost::start_emulated(
            &context.with(HostOptions { host_emulator: Emulator::Qemu, ..context.host.clone() }),
        )?
        .download(KALLSYMS)?,
    };
    let symbols = parse(&String::from_utf8_lossy(&list));
    if !symbols.iter().any(|symbol| symbol.name == "start_kernel") {
        bail!("{KALLSYMS} of the emulated host has no start_kernel among its {} symbols", symbols.len());
    }
    paths::create_atomically(&path, |partial| Ok(fs::write(partial, elf(context.arch().elf_machine(), &symbols))?))?;
    Ok(path)
}

/// Whether symbols have been made before, so that the emulated host is not needed for them.
pub fn any_made(arch: Arch) -> bool {
    fs::read_dir(directory(arch)).is_ok_and(|mut entries| entries.next().is_some())
}

fn directory(arch: Arch) -> PathBuf {
    paths::cache_of(arch).join("symbols")
}

const KALLSYMS: &str = "/proc/kallsyms";

#[derive(Debug, PartialEq, Eq)]
struct Symbol {
    address: u64,
    global: bool,
    name: String,
}

/// Symbols of the kernel itself, sorted by address: modules move, and `$x` and the like mark code for disassemblers.
fn parse(list: &str) -> Vec<Symbol> {
    let mut symbols: Vec<_> = list
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (address, kind, name) = (fields.next()?, fields.next()?, fields.next()?);
            let address = u64::from_str_radix(address, 16).ok()?;
            let text = kind.eq_ignore_ascii_case("t") || kind.eq_ignore_ascii_case("w");
            if address == 0 || !text || fields.next().is_some() || name.starts_with('$') {
                return None;
            }
            Some(Symbol { address, global: kind != "t", name: name.to_owned() })
        })
        .collect();
    symbols.sort_by(|a, b| a.address.cmp(&b.address).then_with(|| a.name.cmp(&b.name)));
    symbols
}

/// An executable with one section of code that has addresses but no content (debuggers read the guest's memory), and a
/// symbol table. The few structures are written by hand, as elf(5) has them: they have not changed in decades, and a
/// library for them would be larger than all of this.
fn elf(machine: u16, symbols: &[Symbol]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const SYMBOL: u64 = 24;
    // Code goes on for a while after the last symbol; how long is not in the list.
    const REST: u64 = 0x1000;
    const NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
    let (start, end) = match (symbols.first(), symbols.last()) {
        (Some(first), Some(last)) => (first.address, last.address + REST),
        _ => (0, 0),
    };

    let mut strings = vec![0];
    let mut table = Vec::new();
    let mut locals = 1;
    push_symbol(&mut table, 0, 0, 0, 0, 0);
    // ELF wants local symbols first.
    for global in [false, true] {
        for (index, symbol) in symbols.iter().enumerate().filter(|(_, symbol)| symbol.global == global) {
            let next =
                symbols[index..].iter().find(|next| next.address > symbol.address).map_or(end, |next| next.address);
            // Type FUNC, binding LOCAL or GLOBAL, section 1.
            let info = if global { 0x12 } else { 0x02 };
            push_symbol(&mut table, strings.len() as u32, info, 1, symbol.address, next - symbol.address);
            strings.extend_from_slice(symbol.name.as_bytes());
            strings.push(0);
            locals += u32::from(!global);
        }
    }

    let symtab = HEADER + PROGRAM_HEADER;
    let strtab = symtab + table.len() as u64;
    let names = strtab + strings.len() as u64;
    let sections = (names + NAMES.len() as u64).next_multiple_of(8);
    let entry = symbols.iter().find(|symbol| symbol.name == "_text").map_or(start, |symbol| symbol.address);

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    put16(&mut file, &[2, machine]); // ET_EXEC
    put32(&mut file, &[1]);
    put64(&mut file, &[entry, HEADER, sections]);
    put32(&mut file, &[0]);
    put16(&mut file, &[HEADER as u16, PROGRAM_HEADER as u16, 1, 64, 5, 4]);
    // One segment, read and execute, without content.
    put32(&mut file, &[1, 5]);
    put64(&mut file, &[0, start, start, 0, end - start, 0x1000]);
    file.extend_from_slice(&table);
    file.extend_from_slice(&strings);
    file.extend_from_slice(NAMES);
    file.resize(sections as usize, 0);
    let section = |file: &mut Vec<u8>, head: [u32; 2], place: [u64; 4], link: [u32; 2], tail: [u64; 2]| {
        put32(file, &head);
        put64(file, &place);
        put32(file, &link);
        put64(file, &tail);
    };
    section(&mut file, [0, 0], [0; 4], [0; 2], [0; 2]);
    // NOBITS, allocated and executable.
    section(&mut file, [1, 8], [6, start, symtab, end - start], [0; 2], [4, 0]);
    section(&mut file, [7, 2], [0, 0, symtab, table.len() as u64], [3, locals], [8, SYMBOL]);
    section(&mut file, [15, 3], [0, 0, strtab, strings.len() as u64], [0; 2], [1, 0]);
    section(&mut file, [23, 3], [0, 0, names, NAMES.len() as u64], [0; 2], [1, 0]);
    file
}

fn push_symbol(table: &mut Vec<u8>, name: u32, info: u8, section: u16, address: u64, size: u64) {
    put32(table, &[name]);
    table.extend_from_slice(&[info, 0]);
    put16(table, &[section]);
    put64(table, &[address, size]);
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "ffff800008000000 T _text\n\
                        ffff800008010000 t do_idle\n\
                        ffff800008010000 t $x\n\
                        ffff800008020000 W weak\n\
                        ffff800008030000 D jiffies\n\
                        0000000000000000 A zero\n\
                        ffff800001000000 t of_a_module\t[virtio]\n";

    #[test]
    fn only_functions_of_the_kernel_itself_are_taken() {
        let names: Vec<_> = parse(LIST).into_iter().map(|symbol| symbol.name).collect();
        assert_eq!(names, ["_text", "do_idle", "weak"]);
    }

    #[test]
    fn symbols_reach_to_the_next_one_and_tables_are_where_the_headers_say() {
        let file = elf(183, &parse(LIST));
        let u64_at = |offset: usize| u64::from_le_bytes(file[offset..offset + 8].try_into().unwrap());
        let u32_at = |offset: usize| u32::from_le_bytes(file[offset..offset + 4].try_into().unwrap());
        assert_eq!(u64_at(24), 0xffff_8000_0800_0000);
        let sections = u64_at(40) as usize;
        assert_eq!(sections + 5 * 64, file.len());
        let symtab = sections + 2 * 64;
        assert_eq!(u32_at(symtab + 44), 2, "one local symbol after the null symbol");
        let table = u64_at(symtab + 24) as usize;
        assert_eq!(u64_at(symtab + 32), 4 * 24);
        let local = table + 24;
        assert_eq!((u64_at(local + 8), u64_at(local + 16)), (0xffff_8000_0801_0000, 0x1_0000));
        let strtab = u64_at(sections + 3 * 64 + 24) as usize;
        let name = &file[strtab + u32_at(local) as usize..];
        assert!(name.starts_with(b"do_idle\0"));
    }
}
