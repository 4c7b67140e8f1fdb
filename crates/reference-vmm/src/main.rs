//! `reference-vmm`, see `--help`.

use clap::Parser;
use reference_vmm::cli::{Cli, Task};
use reference_vmm::{control_socket, inspect, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Cli { verbose, command } = Cli::parse();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(if verbose { log::LevelFilter::Debug } else { log::LevelFilter::Info });
    }
    let result = match command.into_task() {
        Task::Run(origin, surroundings) => run::run(&origin, &surroundings),
        Task::Inspect(directory, output) => inspect::inspect(&directory, &output),
        Task::Control(socket, command) => {
            let sent = control_socket::send(&socket, &command, &mut |line| eprintln!("{line}"));
            sent.map(|done| println!("{done}"))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reference-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Messages go to stderr; stdout is the guest's console.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("reference-vmm: {}", record.args());
    }

    fn flush(&self) {}
}
