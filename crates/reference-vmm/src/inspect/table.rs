//! A [`Report`] for people.

use super::report::{Hex, MemoryReport, Report, RflagsReport, SessionReport, StopReport, VcpuDebugReport, VcpuReport};
use guest_debug::WatchKind;
use guest_debug::arm64::Pstate;
use guest_debug::state::Architecture;
use std::fmt::{self, Write as _};

/// Columns are this far apart.
const GAP: usize = 2;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory: Vec<String> = self.memory.iter().map(region).collect();
        let mut facts = vec![
            row(["machine", &format!("{}, {} vCPUs", self.architecture, self.vcpus.len())]),
            row(["memory", &memory.join(", ")]),
        ];
        match &self.session {
            None => facts.push(row(["session", "none: nobody has debugged this VM"])),
            Some(session) => facts.extend(session_facts(session)),
        }
        table(f, &facts)?;
        let state = match self.architecture {
            Architecture::Aarch64 => "PSTATE",
            Architecture::X86_64 => "RFLAGS",
        };
        let mut vcpus = vec![row(["vCPU", "power", "pc", "sp", state, "debug", "told"])];
        vcpus.extend(self.vcpus.iter().map(vcpu));
        f.write_char('\n')?;
        table(f, &vcpus)?;
        self.session.as_ref().map_or(Ok(()), |session| breakpoints(f, session))
    }
}

fn region(region: &MemoryReport) -> String {
    let (size, unit) = match region.length {
        length if length.is_multiple_of(1 << 20) => (length >> 20, "MiB"),
        length => (length, "bytes"),
    };
    format!("{size} {unit} at {}", region.address)
}

fn session_facts(session: &SessionReport) -> Vec<Vec<String>> {
    let client = match (session.attached, session.held) {
        (true, false) => "a client is attached",
        (true, true) => "a client is attached, and has not let the VM run yet",
        (false, false) => "no client is attached",
        (false, true) => "no client is attached, and the VM waits for one",
    };
    let none = || "none".to_owned();
    let mut facts = vec![
        row(["session", &format!("version {}; {client}", session.version)]),
        row(["selected", &session.selected_vcpu.map_or_else(none, |vcpu| format!("vCPU {vcpu}"))]),
        row(["reported", &session.reported.as_ref().map_or_else(none, stop)]),
    ];
    for (name, stops) in [("pending", &session.pending), ("put aside", &session.put_aside)] {
        if stops.is_empty() {
            facts.push(row([name, "none"]));
        }
        // One line each, in their order; only the first has the name.
        facts.extend(stops.iter().enumerate().map(|(n, one)| row([if n == 0 { name } else { "" }, &stop(one)])));
    }
    facts
}

fn stop(stop: &StopReport) -> String {
    let reason = match (stop.reason, stop.kind, stop.address) {
        ("unsupported_aarch32", ..) => "AArch32 code, which can't be debugged".to_owned(),
        ("unsupported_vector_catch", ..) => "a vector catch, which can't be debugged".to_owned(),
        (_, Some(kind), Some(address)) => format!("{} watchpoint, access at {address}", kind_name(kind)),
        (reason, ..) => reason.replace('_', " "),
    };
    let void = if stop.holds { "" } else { " (void: it has moved on)" };
    format!("vCPU {} at {}: {reason}{void}", stop.vcpu, stop.pc)
}

fn vcpu(vcpu: &VcpuReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let value = |value: Option<Hex>| value.map_or_else(dash, |value| value.to_string());
    row([
        &vcpu.vcpu.to_string(),
        if vcpu.powered_on { "on" } else { "off" },
        &value(vcpu.pc),
        &value(vcpu.sp),
        &state(vcpu).unwrap_or_else(dash),
        &vcpu.debug.as_ref().map_or_else(dash, mode),
        &vcpu.debug.as_ref().and_then(|debug| debug.told.as_ref()).map_or_else(dash, |told| {
            let watches: String = told.watches.iter().map(|watch| format!(", watch {watch}")).collect();
            format!("{}{watches}", told.pc)
        }),
    ])
}

fn state(vcpu: &VcpuReport) -> Option<String> {
    let pstate = vcpu.pstate.as_ref().map(|pstate| Pstate(pstate.value.0).to_string());
    let rflags = vcpu.rflags.as_ref().map(|RflagsReport { value, mode, cpl, interrupts }| {
        format!("{mode} CPL {cpl}{} ({value})", if *interrupts { " IF" } else { "" })
    });
    pstate.or(rflags)
}

fn mode(debug: &VcpuDebugReport) -> String {
    match &debug.range {
        Some(range) => format!("stepping in {}..{}", range.start, range.end),
        None => debug.mode.to_owned(),
    }
}

fn breakpoints(f: &mut fmt::Formatter<'_>, session: &SessionReport) -> fmt::Result {
    let mut hardware = vec![row(["hardware breakpoint"])];
    hardware.extend(session.hardware_breakpoints.iter().map(|address| row([&address.to_string()])));
    let mut watches = vec![row(["watchpoint", "address", "length", "slots"])];
    watches.extend(session.watches.iter().map(|watch| {
        let (length, slots) = (watch.length.to_string(), watch.slots.to_string());
        row([kind_name(watch.kind), &watch.address.to_string(), &length, &slots])
    }));
    let words = session.software_breakpoints.iter().any(|one| one.instruction.is_some());
    let title = if words { "instruction" } else { "" };
    let mut software = vec![row(["software breakpoint", "physical", "original", title])];
    for one in &session.software_breakpoints {
        let names: Vec<_> = one.names.iter().map(Hex::to_string).collect();
        let instruction = one.instruction.map_or_else(String::new, |word| format!("{:#010x}", word.0));
        software.push(row([&names.join(", "), &one.physical.to_string(), &one.original, &instruction]));
    }
    let mut rules = vec![row(["rule of the", "conditions", "messages", "ignore", "reached", "hits"])];
    rules.extend(session.rules.iter().map(|rule| {
        let counts = [rule.conditions.len() as u64, rule.commands.len() as u64, rule.ignore, rule.reached, rule.hits];
        std::iter::once(rule.breakpoint.clone()).chain(counts.map(|count| count.to_string())).collect()
    }));
    if session.rules.is_empty() {
        rules = vec![row(["rule"])];
    }
    for rows in [hardware, watches, software, rules] {
        f.write_char('\n')?;
        match rows.as_slice() {
            [title] => writeln!(f, "no {}s", title.first().map_or("", String::as_str))?,
            rows => table(f, rows)?,
        }
    }
    Ok(())
}

fn kind_name(kind: WatchKind) -> &'static str {
    match kind {
        WatchKind::Write => "write",
        WatchKind::Read => "read",
        WatchKind::Access => "access",
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Writes rows with their columns aligned, and no blanks at the ends of lines.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0) + GAP;
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
