//! `monitor` commands.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};
use guest_debug::{Breakpoint, Gva, VcpuId};
use std::fmt::Write as _;

/// A command of the server's own. Those of the VMM come after these.
struct Command<'v, A: GdbArch, V> {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&mut GuestTarget<'v, A, V>, &str) -> Result<String, VmError>,
}

impl<'v, A: GdbArch, V: DebugVm<A>> GuestTarget<'v, A, V> {
    const COMMANDS: [Command<'v, A, V>; 10] = [
        Command { name: "help", arguments: "", help: "this list", run: Self::help },
        // scripts/gdb/linux/utils.py of Linux asks QEMU's monitor for it, and takes thread n + 1 for CPU n if there is an answer.
        Command { name: "info version", arguments: "", help: "what this is", run: Self::version },
        Command {
            name: "breakpoints",
            arguments: "",
            help: "what is inserted, the slots there are, and why the last insertion was refused",
            run: Self::list_breakpoints,
        },
        Command { name: "vcpus", arguments: "", help: "state of every vCPU", run: Self::list_vcpus },
        Command {
            name: "translate",
            arguments: "ADDR",
            help: "guest-physical address of a guest-virtual one, for the current thread",
            run: Self::show_translation,
        },
        Command {
            name: "phys",
            arguments: "[on|off]",
            help: "read and write guest-physical memory instead of virtual",
            run: Self::switch_physical,
        },
        Command {
            name: "condition",
            arguments: "ADDR [OPERAND COMPARISON NUMBER]",
            help: "stop at ADDR only if so; alone it says how to write one, or with ADDR removes it",
            run: Self::set_condition,
        },
        Command {
            name: "message",
            arguments: "ADDR [\"TEXT\" OPERAND ...]",
            help: "print at ADDR instead of stopping; the same",
            run: Self::set_message,
        },
        Command {
            name: "ignore",
            arguments: "ADDR COUNT",
            help: "pass the next COUNT hits at ADDR",
            run: Self::set_ignore_count,
        },
        Command {
            name: "hits",
            arguments: "",
            help: "how often breakpoints with a condition, a message or an ignore count were hit",
            run: Self::list_hits,
        },
    ];

    /// The answer to a command line. Never an error: gdbstub would end the session.
    fn monitor(&mut self, line: &str) -> Result<String, VmError> {
        let line = if line.trim().is_empty() { "help" } else { line.trim() };
        let named = Self::COMMANDS.iter().find_map(|command| {
            let arguments = line.strip_prefix(command.name)?;
            let whole = arguments.is_empty() || arguments.starts_with(char::is_whitespace);
            whole.then(|| (command, arguments.trim()))
        });
        if let Some((command, arguments)) = named {
            return (command.run)(self, arguments);
        }
        match self.vm.monitor(self.current(), line.to_owned())? {
            Some(answer) => Ok(answer),
            None => Ok(format!("unknown command \"{line}\"; \"monitor help\" lists those there are\n")),
        }
    }

    fn help(&mut self, _: &str) -> Result<String, VmError> {
        let mut text = String::new();
        let own = Self::COMMANDS.iter().map(|c| (format!("{} {}", c.name, c.arguments), c.help.to_owned()));
        for (usage, help) in own.chain(self.vm.monitor_help()) {
            let _ = writeln!(text, "{usage:<44} {help}");
        }
        Ok(text)
    }

    fn version(&mut self, _: &str) -> Result<String, VmError> {
        Ok(format!("guest-debug {}\n", env!("CARGO_PKG_VERSION")))
    }

    fn list_breakpoints(&mut self, _: &str) -> Result<String, VmError> {
        let inserted = self.vm.breakpoints()?;
        let caps = self.vm.capabilities()?;
        let mut text = String::new();
        let (mut breakpoint_slots, mut watch_slots) = (0, 0);
        for item in &inserted {
            let what = match item.breakpoint {
                Breakpoint::Hardware(Gva(address)) => {
                    breakpoint_slots += item.slots;
                    format!("hardware breakpoint at {address:#x}")
                }
                Breakpoint::Software(Gva(address)) => format!("software breakpoint at {address:#x}"),
                Breakpoint::Watch { kind, address: Gva(address), length } => {
                    watch_slots += item.slots;
                    let kind = format!("{kind:?}").to_lowercase();
                    format!("{kind} watchpoint at {address:#x}, {length} bytes, {} slots", item.slots)
                }
            };
            let separator = if item.note.is_empty() { "" } else { ", " };
            let _ = writeln!(text, "{what}{separator}{}", item.note);
        }
        if inserted.is_empty() {
            text.push_str("nothing is inserted\n");
        }
        let _ = writeln!(text, "hardware breakpoint slots: {breakpoint_slots} of {} in use", caps.hw_bps);
        let _ = writeln!(text, "watchpoint slots: {watch_slots} of {} in use", caps.hw_wps);
        if let Some(refusal) = &self.client.last_refusal {
            let _ = writeln!(text, "last refused: {refusal}");
        }
        Ok(text)
    }

    fn list_vcpus(&mut self, _: &str) -> Result<String, VmError> {
        let count = u32::try_from(self.vm.vcpu_states()?.len()).unwrap_or(u32::MAX);
        Ok((0..count).map(|n| self.describe_vcpu(VcpuId(n)) + "\n").collect())
    }

    fn show_translation(&mut self, arguments: &str) -> Result<String, VmError> {
        let Some(address) = arguments.split_whitespace().next().and_then(parse_number) else {
            return Ok("usage: monitor translate ADDR, a number such as 0xffff800008000000\n".to_owned());
        };
        let vcpu = self.current();
        let physical = self.vm.translate(vcpu, Gva(address))?;
        Ok(format!("{vcpu}: virtual {address:#x} is physical {:#x}\n", physical.0))
    }

    fn switch_physical(&mut self, arguments: &str) -> Result<String, VmError> {
        match arguments {
            "on" => self.client.physical = true,
            "off" => self.client.physical = false,
            "" => {}
            _ => return Ok("usage: monitor phys [on|off]\n".to_owned()),
        }
        let kind = if self.client.physical { "guest-physical" } else { "guest-virtual" };
        Ok(format!("memory accesses are {kind}\n"))
    }
}

impl<A: GdbArch, V: DebugVm<A>> MonitorCmd for GuestTarget<'_, A, V> {
    fn handle_monitor_cmd(&mut self, cmd: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), VmError> {
        match self.monitor(&String::from_utf8_lossy(cmd)) {
            // One console packet must fit into the client's buffer.
            Ok(answer) => answer.as_bytes().chunks(4096).for_each(|chunk| {
                out.write_raw(chunk);
                out.flush();
            }),
            Err(VmError::Gone) => return Err(VmError::Gone),
            Err(error) => out.write_raw(format!("{error}\n").as_bytes()),
        }
        Ok(())
    }
}

/// A decimal number, or a hexadecimal one behind `0x`.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
